/* The options of local training. This table is the only list of them. `fedlora train` and `fedlora
 * run create` read their flags with it, RunConfig and a member's task are checked with it
 * (proto/training_wire.h), and engine/train takes its defaults from it.
 *
 * To add an option: a member of struct training_options, a row of TRAINING_ROWS, a field of the
 * same name in message Training of proto/fedlora.proto, and one line in train_set()
 * (engine/train/train.c). tests/unit/training_wire.c fails while one of them is missing. */
#ifndef BASE_TRAINING_OPTIONS_H
#define BASE_TRAINING_OPTIONS_H

#include "base/dtype.h"
#include "base/limits.h"
#include "base/option.h"

enum training_schedule { TRAINING_CONSTANT, TRAINING_LINEAR, TRAINING_COSINE };
enum training_precision {
    TRAINING_PRECISION_AUTO,
    TRAINING_PRECISION_F32,
    TRAINING_PRECISION_BF16
};
/* Prompt and completion as one text, or apart. */
enum training_boundary { TRAINING_BOUNDARY_MERGE, TRAINING_BOUNDARY_SPLIT };
extern const char *const training_schedules[];  /* names in the order of the enum, then NULL */
extern const char *const training_precisions[]; /* names in the order of the enum, then NULL */
extern const char *const training_boundaries[]; /* names in the order of the enum, then NULL */
/* The type of an enum training_precision; DTYPE_NONE for auto. */
enum dtype training_dtype(int precision);

struct training_options {
    int64_t steps;      /* optimizer steps; 0: from epochs */
    double epochs;      /* passes over the data, used when steps is 0 */
    int64_t batch;      /* rows of one forward pass */
    int64_t accumulate; /* forward passes of one step */
    int64_t seq;        /* most tokens of a row */
    double lr;
    int64_t warmup; /* steps */
    double weight_decay, beta1, beta2, eps;
    double clip; /* largest norm of the gradient; 0: off */
    double dropout;
    int64_t seed;
    int schedule;  /* enum training_schedule */
    int precision; /* enum training_precision */
    int boundary;  /* enum training_boundary */
    bool shuffle, eos, bos;
    bool keep_optimizer; /* in a run: engine/member/member_optimizer.h */
};

/* Rows for a command's own table; at_ is the offset of its struct training_options. The field in
 * message Training has the name after "train.", or "no_" and that name if the flag is on by
 * default. */
/* clang-format off */
#define TRAINING_ROW(at_, member_) .at = (at_) + offsetof(struct training_options, member_)

/* `fedlora eval` has the rows of the data too (SEQ, EOS, BOS, BOUNDARY), so their at_ is the offset
 * of the member itself. */
#define TRAINING_ROW_SEQ(at_) {.at = (at_), .flag = "seq", .key = "train.seq",                     \
     .kind = OPTION_INT, .fallback = "1024", .least = 1, .most = LIMIT_SEQUENCE,                   \
     .help = "largest number of tokens in a row; longer rows are cut"}
/* Default and help differ between commands, because a run leaves the rate to its method. */
#define TRAINING_ROW_LR(at_, fallback_, help_) {TRAINING_ROW(at_, lr), .flag = "lr",               \
     .key = "train.lr", .kind = OPTION_NUM, .fallback = (fallback_), .least = 0, .most = 10,       \
     .help = (help_)}
#define TRAINING_LR "2e-4"
#define TRAINING_ROW_EOS(at_) {.at = (at_), .flag = "eos", .key = "train.eos",                     \
     .kind = OPTION_FLAG, .fallback = "yes",                                                       \
     .help = "do not append the end-of-sequence token to the learned tokens"}
#define TRAINING_ROW_BOS(at_) {.at = (at_), .flag = "bos", .key = "train.bos",                     \
     .kind = OPTION_FLAG, .fallback = "no",                                                        \
     .help = "put the beginning-of-sequence token before rows of text, and before prompts, that "  \
             "do not start with it"}
#define TRAINING_ROW_BOUNDARY(at_) {.at = (at_), .flag = "boundary", .key = "train.boundary",      \
     .kind = OPTION_CHOICE, .fallback = "merge", .choices = training_boundaries,                   \
     .help = "merge: tokenise prompt and completion as one text; split: each on its own, so that " \
             "no token holds parts of both"}
/* Only a run has rounds. */
#define TRAINING_ROW_KEEP_OPTIMIZER(at_) {TRAINING_ROW(at_, keep_optimizer),                       \
     .flag = "keep-optimizer", .key = "train.keep_optimizer", .kind = OPTION_FLAG,                 \
     .fallback = "no",                                                                             \
     .help = "let each member keep AdamW's averages and step count from round to round"}

/* Every option of local training except the two above, and except seed and precision, which every
 * command has. */
#define TRAINING_ROWS(at_)                                                                         \
    {TRAINING_ROW(at_, steps), .flag = "steps", .key = "train.steps", .kind = OPTION_INT,          \
     .fallback = "0", .least = 0, .most = 1e9,                                                     \
     .help = "optimizer steps (of each round in a run); 0: as many as --epochs needs"},            \
    {TRAINING_ROW(at_, epochs), .flag = "epochs", .key = "train.epochs", .kind = OPTION_NUM,       \
     .fallback = "1", .least = 0, .most = 1e6,                                                     \
     .help = "passes over the data (in each round of a run); used when --steps is 0"},             \
    {TRAINING_ROW(at_, batch), .flag = "batch", .key = "train.batch", .kind = OPTION_INT,          \
     .fallback = "4", .least = 1, .most = 65536, .help = "rows of one forward pass"},              \
    {TRAINING_ROW(at_, accumulate), .flag = "accumulate", .key = "train.accumulate",               \
     .kind = OPTION_INT, .fallback = "1", .least = 1, .most = 65536,                               \
     .help = "forward passes of one optimizer step"},                                              \
    TRAINING_ROW_SEQ((at_) + offsetof(struct training_options, seq)),                              \
    {TRAINING_ROW(at_, schedule), .flag = "schedule", .key = "train.schedule",                     \
     .kind = OPTION_CHOICE, .fallback = "linear", .choices = training_schedules,                   \
     .help = "learning rate after the warm-up (restarts in each round of a run)"},                \
    {TRAINING_ROW(at_, warmup), .flag = "warmup", .key = "train.warmup", .kind = OPTION_INT,       \
     .fallback = "0", .least = 0, .most = 1e9,                                                     \
     .help = "steps in which the learning rate rises from 0 to its full value"},                   \
    {TRAINING_ROW(at_, weight_decay), .flag = "weight-decay", .key = "train.weight_decay",         \
     .kind = OPTION_NUM, .fallback = "0", .least = 0, .most = 1e3,                                 \
     .help = "decoupled weight decay of AdamW"},                                                   \
    {TRAINING_ROW(at_, beta1), .flag = "beta1", .key = "train.beta1", .kind = OPTION_NUM,          \
     .fallback = "0.9", .least = 0, .most = 0.999999,                                              \
     .help = "AdamW's decay of the mean gradient"},                                                \
    {TRAINING_ROW(at_, beta2), .flag = "beta2", .key = "train.beta2", .kind = OPTION_NUM,          \
     .fallback = "0.999", .least = 0, .most = 0.999999999,                                         \
     .help = "AdamW's decay of the mean squared gradient"},                                        \
    {TRAINING_ROW(at_, eps), .flag = "eps", .key = "train.eps", .kind = OPTION_NUM,                \
     .fallback = "1e-8", .least = 0, .most = 1,                                                    \
     .help = "AdamW's constant that keeps the division finite"},                                   \
    {TRAINING_ROW(at_, clip), .flag = "clip", .key = "train.clip", .kind = OPTION_NUM,             \
     .fallback = "1", .least = 0, .most = 1e9,                                                     \
     .help = "largest norm of the gradient; 0: no clipping"},                                      \
    {TRAINING_ROW(at_, dropout), .flag = "dropout", .key = "train.dropout", .kind = OPTION_NUM,    \
     .fallback = "0", .least = 0, .most = 0.99,                                                    \
     .help = "dropout probability on the input of the adapter"},                                   \
    {TRAINING_ROW(at_, shuffle), .flag = "shuffle", .key = "train.shuffle", .kind = OPTION_FLAG,   \
     .fallback = "yes",                                                                            \
     .help = "read rows in file order, starting over at the end of the file"},                     \
    TRAINING_ROW_EOS((at_) + offsetof(struct training_options, eos)),                              \
    TRAINING_ROW_BOS((at_) + offsetof(struct training_options, bos)),                              \
    TRAINING_ROW_BOUNDARY((at_) + offsetof(struct training_options, boundary))
/* clang-format on */

/* All rows, lr, seed and precision included; `at` counts from a struct training_options. */
const struct option_set *training_options_set(void);
void training_options_defaults(struct training_options *out);

#endif
