/* What train, eval and generate begin with: the base model, its tokenizer, the engine over it, and
 * the adapter or state that the command line names. Zeroed is closed; setup_close() takes half-open
 * ones. */
#ifndef CLIENT_SETUP_H
#define CLIENT_SETUP_H

#include "client/command/command.h"
#include "engine/adapter.h"
#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "engine/tokens/tokenizer.h"

/* Rows of the option tables that name what setup takes; `at_` is the member's offset. */
#define SETUP_ROW_BASE(at_)                                                                        \
    {                                                                                              \
        .flag = "base", .letter = 'b', .kind = OPTION_TEXT, .required = true, .at = (at_),         \
        .value = "PATH", .help = "base model: a Hugging Face directory or a .gguf file"            \
    }
#define SETUP_ROW_ADAPTER(at_, use_)                                                               \
    {                                                                                              \
        .flag = "adapter", .kind = OPTION_TEXT, .at = (at_), .value = "DIR",                       \
        .help = "directory of the PEFT adapter " use_                                              \
    }
#define SETUP_ROW_STATE(at_, use_)                                                                 \
    {                                                                                              \
        .flag = "state", .kind = OPTION_TEXT, .at = (at_), .value = "FILE",                        \
        .help = "Fedlora state " use_                                                              \
    }
#define SETUP_ROW_SEQ(at_)                                                                         \
    {                                                                                              \
        .flag = "seq", .kind = OPTION_INT, .at = (at_), .fallback = "1024", .least = 1,            \
        .most = LIMIT_SEQUENCE, .help = "largest number of tokens in a row; longer rows are cut"   \
    }
#define SETUP_ROW_EOS(at_)                                                                         \
    {                                                                                              \
        .flag = "eos", .kind = OPTION_FLAG, .at = (at_), .fallback = "yes",                        \
        .help = "do not append the end-of-sequence token to the learned tokens"                    \
    }
#define SETUP_ROW_BOS(at_)                                                                         \
    {                                                                                              \
        .flag = "bos", .kind = OPTION_FLAG, .at = (at_),                                           \
        .help = "prepend the beginning-of-sequence token to text rows"                             \
    }

struct setup_options {
    const struct command_common *common;
    const char *base;
    const char *adapter, *state; /* at most one; NULL: the base alone */
    bool inference;              /* no training: half the memory for weights */
    bool f32;                    /* where the command leaves the precision open */
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
struct setup_data_options {
    const char *path;
    int64_t seq; /* 0: no bound but the system's */
    bool eos, bos;
};
/* Rows that are token ids already need no tokenizer. */
err setup_data(struct dataset *out, const struct setup *s, const struct setup_data_options *o);

#endif
