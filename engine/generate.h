/* Text generation, greedy or sampled, with a cache of keys and values per sequence.
 *
 * With longrope and dynamic rotation the frequencies depend on the length of a row. All tokens of a
 * sequence have those of its prompt and its largest number of new tokens together, so that the keys
 * in the cache agree. */
#ifndef ENGINE_GENERATE_H
#define ENGINE_GENERATE_H

#include "engine/engine.h"

struct generate_options {
    uint32_t tokens;     /* largest number of new tokens per prompt */
    double temperature;  /* 0: greedy */
    double top_p;        /* total probability of the tokens to sample from; 0 or 1: all tokens */
    uint64_t seed;       /* seed of sampling */
    const int32_t *stop; /* (stops) tokens that end a sequence; they are not returned */
    size_t stops;
    /* Called after each new token; NULL: not called. Returning false ends the sequence without an
     * error. */
    bool (*on_token)(void *user, int32_t id);
    void *user;
};

struct generate_prompt {
    const int32_t *id; /* (count), at least one */
    uint32_t count;
    uint32_t tokens; /* largest number of new tokens; 0: options->tokens */
};

/* out has room for the prompt's new tokens; *count is how many were written. */
err generate_one(int32_t *out, uint32_t *count, struct engine *e, const struct adapter *adapter,
                 const struct generate_prompt *prompt, const struct generate_options *o);
/* Many prompts, in batches whose caches fit in 256 MiB. out[i] has room for the new tokens of
 * prompt[i]. */
err generate_many(int32_t *const *out, uint32_t *count, struct engine *e,
                  const struct adapter *adapter, const struct generate_prompt *prompt,
                  size_t prompts, const struct generate_options *o);

#endif
