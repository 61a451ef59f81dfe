/* Greedy completions of rows that have one, against the row's own: what `accuracy` means wherever
 * it is printed. Equal but for white space at both ends is right. */
#ifndef CLIENT_COMPLETIONS_H
#define CLIENT_COMPLETIONS_H

#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "engine/tokens/tokenizer.h"

struct completions {
    const char **found; /* (rows) the greedy completion; NULL: the row has none */
    bool *correct;      /* (rows) */
    size_t asked, right;
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

/* Every id that ends an answer, by the model's word or the tokenizer's. */
err completions_stop_ids(const int32_t **out, size_t *count, const struct model *model,
                         const struct tokenizer *tokenizer, struct arena *arena);
size_t completions_wanted(const struct dataset *data); /* rows that have one */
/* The lists live in the arena. Without such rows `asked` is 0 and no tokenizer is needed. */
err completions_measure(struct completions *out, const struct completions_task *task,
                        struct arena *arena);

#endif
