#include "base/training_options.h"

const char *const training_schedules[] = {"constant", "linear", "cosine", NULL};
const char *const training_boundaries[] = {"merge", "split", NULL};
const char *const training_precisions[] = {"auto", "f32", "bf16", NULL};

enum dtype training_dtype(int precision)
{
    static const enum dtype type[] = {DTYPE_NONE, DTYPE_F32, DTYPE_BF16};
    return type[precision];
}

static const struct option_row rows[] = {
    TRAINING_ROWS(0),
    TRAINING_ROW_KEEP_OPTIMIZER(0),
    TRAINING_ROW_LR(0, TRAINING_LR, "learning rate"),
    {TRAINING_ROW(0, seed), .flag = "seed", .key = "train.seed", .kind = OPTION_INT,
     .fallback = "0", .least = 0, .most = 0x1p53, .help = "seed of all random numbers"},
    {TRAINING_ROW(0, precision), .flag = "precision", .key = "train.precision",
     .kind = OPTION_CHOICE, .fallback = "auto", .choices = training_precisions,
     .help = "precision of weights and activations"},
};
static const struct option_table table = {rows, sizeof rows / sizeof *rows};
static const struct option_set set = {.table = &table, .count = 1};

const struct option_set *training_options_set(void)
{
    return &set;
}

void training_options_defaults(struct training_options *out)
{
    struct arena arena = {0};
    *out = (struct training_options){0};
    err e = option_defaults(out, &set, &arena);
    REQUIRE(!err_is(e)); /* the defaults are part of this program, and a test reads them */
    arena_close(&arena);
}
