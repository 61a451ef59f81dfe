/* What train, eval and generate begin with: the base model, its tokenizer, the engine over it, and
 * the adapter or state that the command line names. Zeroed is closed; setup_close() takes half-open
 * ones. */
#ifndef CLIENT_SETUP_H
#define CLIENT_SETUP_H

#include "client/adapter.h"
#include "client/command.h"
#include "client/data.h"
#include "client/engine.h"
#include "client/model.h"
#include "client/tokenizer.h"

struct setup_options {
    const struct command_common *common;
    const char *base;
    const char *adapter, *state; /* at most one; NULL: the base alone */
    bool inference;              /* no training: half the memory for weights */
    bool text;                   /* refuse a base without a tokenizer before the engine is opened */
};

struct setup {
    struct model model;
    struct tokenizer *tokenizer; /* NULL where the base has none */
    err no_tokenizer;            /* why */
    struct engine *engine;
    struct adapter adapter;
    bool adapted;
};

err setup_open(struct setup *out, const struct setup_options *o);
void setup_close(struct setup *s);
/* s->adapter where there is one, else NULL. */
const struct adapter *setup_adapter(const struct setup *s);
err setup_need_tokenizer(const struct setup *s);
/* Every id that ends an answer, by the model's word or the tokenizer's. */
err setup_stop_ids(const int32_t **out, size_t *count, const struct setup *s, struct arena *arena);

struct setup_data_options {
    const char *path;
    int64_t seq; /* 0: no bound but the system's */
    bool eos, bos;
};
/* Rows that are token ids already need no tokenizer. */
err setup_data(struct dataset *out, const struct setup *s, const struct setup_data_options *o);

#endif
