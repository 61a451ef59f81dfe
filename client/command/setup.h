/* Opening what train, eval and generate need: the base model, its tokenizer, the engine, and the
 * adapter or state named on the command line. A zeroed struct is closed; setup_close() accepts one
 * that is half open. */
#ifndef CLIENT_SETUP_H
#define CLIENT_SETUP_H

#include "base/training_options.h"
#include "client/command/command.h"
#include "engine/adapter.h"
#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "engine/tokens/tokenizer.h"

/* Option rows for the inputs of setup_open(). `at_` is the member's offset in the options struct;
 * `use_` completes "PEFT adapter ..." in the help ("to evaluate"). */
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
/* `key_`: its key in a configuration file, or NULL. */
#define SETUP_ROW_BASE_MEMORY(at_, key_)                                                           \
    {                                                                                              \
        .flag = "base-memory", .key = (key_), .kind = OPTION_CHOICE, .at = (at_),                  \
        .fallback = "auto", .choices = base_memories,                                              \
        .help = "weights of the base: packed: converted once; file: kept as in the file and "      \
                "converted at each use, which is slower and takes less memory; auto: packed if "   \
                "they fit"                                                                         \
    }

#define SETUP_ROW_TEMPLATE(at_, key_)                                                              \
    {                                                                                              \
        .flag = "template", .key = (key_), .kind = OPTION_TEXT, .at = (at_), .value = "FILE|NAME", \
        .help = "chat template for messages: a Jinja file, or one of " CHAT_NAMES                  \
                "; default: the model's own"                                                       \
    }

/* The inputs named on the command line, and the needs of the command. */
struct setup_options {
    const struct command_common *common;
    const char *base;
    const char *adapter, *state; /* at most one; NULL: the base alone */
    bool inference;              /* no training */
    int base_memory;             /* enum base_memory */
    size_t tokens;               /* of the largest pass; 0: not known */
    bool checkpoint;
    bool profile;
    bool f32;  /* use float32 if --precision is auto */
    bool text; /* refuse a base without a tokenizer before the engine is opened */
};

/* The open inputs of a command. */
struct setup {
    struct model model;          /* its address is kept by the engine */
    struct tokenizer *tokenizer; /* NULL if the base has none */
    err no_tokenizer;            /* the reason why it has none */
    struct engine *engine;
    struct adapter adapter; /* open only if `adapted` */
    bool adapted;           /* --adapter or --state was given */
    bool quiet;             /* print no notes */
};

/* *out must not move while it is open: the engine keeps the address of the model in it. */
err setup_open(struct setup *out, const struct setup_options *o);
void setup_close(struct setup *s);
/* &s->adapter if an adapter or state was opened, else NULL (the base alone). */
const struct adapter *setup_adapter(const struct setup *s);
/* The reason why the base has no tokenizer, or success. */
err setup_need_tokenizer(const struct setup *s);
/* A data file and how its rows are read. */
struct setup_data_options {
    const char *path;     /* JSON Lines */
    int64_t seq;          /* 0: LIMIT_SEQUENCE */
    bool eos, bos;        /* add these tokens to text rows */
    int boundary;         /* enum training_boundary */
    const char *template; /* as data_options.template */
};
/* Rows of token ids (input_ids) are accepted even if the base has no tokenizer. Prints the report
 * of client/session/data_report.h. */
err setup_data(struct dataset *out, const struct setup *s, const struct setup_data_options *o);

#endif
