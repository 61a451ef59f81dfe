/* Text from a model: greedy or sampled, with a cache of keys and values. */
#ifndef CLIENT_GENERATE_H
#define CLIENT_GENERATE_H

#include "engine/engine.h"

struct generate_options {
    uint32_t tokens;    /* most new tokens of a row */
    double temperature; /* 0: greedy */
    double top_p;       /* 1 (or 0): all */
    uint64_t seed;
    const int32_t
        *stop; /* (stops) generation of a row ends with one of these, which is not returned */
    size_t stops;
    /* After every token of generate_one(); false stops, which is no error. */
    bool (*on_token)(void *user, int32_t id);
    void *user;
};

struct generate_prompt {
    const int32_t *id; /* (count), at least one */
    uint32_t count;
    uint32_t tokens; /* most new tokens of this one; 0: options->tokens */
};

/* out (options->tokens), *count of them. */
err generate_one(int32_t *out, uint32_t *count, struct engine *e, const struct adapter *adapter,
                 const struct generate_prompt *prompt, const struct generate_options *o);
/* Greedy, many prompts at once, in batches that fit; out[i] has room for prompt[i]'s tokens. */
err generate_many(int32_t *const *out, uint32_t *count, struct engine *e,
                  const struct adapter *adapter, const struct generate_prompt *prompt,
                  size_t prompts, const struct generate_options *o);

#endif
