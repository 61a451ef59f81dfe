/* Accuracy: greedy completions of the rows that have one, compared with the expected text. A
 * completion is correct if the two are equal without white space at both ends and without tokens
 * that end an answer. Every accuracy that the program prints is computed here. */
#ifndef ENGINE_COMPLETIONS_H
#define ENGINE_COMPLETIONS_H

#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "engine/tokens/tokenizer.h"

struct completions {
    const char **found; /* (rows) the generated text; NULL for rows without a completion */
    bool *correct;      /* (rows) */
    size_t asked;       /* rows with a completion */
    size_t right;       /* of these, the correct ones */
};

struct completions_task {
    const struct model *model;
    const struct tokenizer *tokenizer;
    struct engine *engine;
    const struct adapter *adapter; /* NULL: the base alone */
    const struct dataset *data;
    bool (*progress)(void *user, size_t done, size_t rows); /* or NULL; false: ERR_STOPPED */
    void *user;
};

/* The ids that end an answer, from the model's configuration and from the tokenizer. */
err completions_stop_ids(const int32_t **out, size_t *count, const struct model *model,
                         const struct tokenizer *tokenizer, struct arena *arena);
size_t completions_wanted(const struct dataset *data); /* rows with a completion */
/* The lists are allocated in the arena. If no row has a completion, `asked` is 0 and the tokenizer
 * may be NULL. */
err completions_measure(struct completions *out, const struct completions_task *task,
                        struct arena *arena);

#endif
