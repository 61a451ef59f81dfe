/* The engine: a base model packed for matrix products, and the passes that run over it. Order of
 * use:
 *
 *   engine_open(&e, &model, &options);   reads and packs every weight once
 *   model_drop_pages(&model);            packed weights do not need the pages of the file
 *   engine_evaluate(), engine_logits(), train_run(), generate_many(), ...
 *   engine_close(e);                     before model_close(), which owns the embedding
 *
 * An engine may have several devices. train_run() uses all of them; every other function uses the
 * first one.
 *
 * An engine serves one caller at a time, because it owns the working memory; its threads run inside
 * single operations. The same inputs give the same bytes with any number of threads. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "engine/adapter.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "kernels/backend.h"

struct engine;

/* The place of the frozen weights. BASE_AUTO is BASE_PACKED if that fits into the free memory
 * together with a pass, else BASE_FILE. */
enum base_memory {
    BASE_AUTO,
    BASE_PACKED, /* packed once, for speed */
    BASE_FILE,   /* as the file has them, converted at each use */
};
extern const char *const base_memories[]; /* names in the order of the enum, then NULL */

struct engine_options {
    const char *device;   /* as for backend_list_set(): "cpu", "cuda:0,cuda:1", "auto" (NULL) */
    enum dtype precision; /* DTYPE_F32, DTYPE_BF16; DTYPE_NONE is auto: bf16 where it is faster */
    int threads;          /* 0: all */
    bool profile;         /* engine_profile() has the seconds of operations */
    bool inference;       /* forward passes only */
    enum base_memory base_memory;
    /* For BASE_AUTO, the largest pass that will follow: its tokens (0: 2048), and whether it
     * recomputes activations. */
    size_t tokens;
    bool checkpoint;
};
err engine_open(struct engine **out, const struct model *m, const struct engine_options *o);
/* A further engine over the weights of `e`, with working memory of its own, so that both can run at
 * the same time in two threads. Close it before `e`. */
err engine_share(struct engine **out, const struct engine *e, int threads);
void engine_close(struct engine *e); /* accepts NULL */

/* "cpu" or "cuda"; with several devices their names, "cuda:0,cuda:1". */
const char *engine_device(const struct engine *e);
/* Device "auto": why no GPU is used, or "". */
const char *engine_no_gpu(const struct engine *e);
enum dtype engine_precision(const struct engine *e);         /* DTYPE_F32 or DTYPE_BF16 */
enum base_memory engine_base_memory(const struct engine *e); /* BASE_PACKED or BASE_FILE */
const struct model *engine_model(const struct engine *e);    /* the model of engine_open() */
void engine_profile(struct backend_profile *out, const struct engine *e); /* since engine_open */

/* One row of tokens. Rows of a call run together, one after the other without padding. label[t] is
 * the token to predict at position t from the tokens before it, or DATA_IGNORE. */
struct engine_row {
    const int32_t *id;             /* (count) */
    const int32_t *label;          /* (count); NULL is allowed in engine_logits() */
    uint32_t count;                /* may be 0 */
    const struct adapter *adapter; /* NULL: the base alone */
};

/* Learned tokens of a row. The first token is never learned, because no token before it predicts
 * it. */
static inline size_t engine_learned(const int32_t *label, uint32_t count)
{
    size_t n = 0;
    for (uint32_t t = 1; t < count; t++)
        n += label[t] != DATA_IGNORE;
    return n;
}

/* nll[i]: sum over row i of -log p(label[t] | id[0 .. t - 1]) for t >= 1 where there is a label.
 * ERR_INPUT for an id or label outside the vocabulary. */
err engine_nll(double *nll, struct engine *e, const struct engine_row *row, size_t rows);
/* Logits after each token of one row: out (count, vocab). */
err engine_logits(float *out, struct engine *e, const struct engine_row *row);

struct engine_gradient {
    float *value; /* (adapter->value_count), laid out as adapter->value; the gradient is added */
    const struct adapter *adapter;
};
struct engine_pass_options {
    double scale;         /* gradient of scale * (sum of negative log likelihoods) */
    bool checkpoint;      /* keep only the input of each layer and recompute the rest */
    double dropout;       /* probability on the input of A, as in PEFT; 0: off */
    uint64_t dropout_key; /* equal keys give equal masks */
};
/* As engine_nll(). Also adds the gradient of all rows that use an adapter, for each adapter in
 * `gradient`. */
err engine_gradients(double *nll, struct engine *e, const struct engine_row *row, size_t rows,
                     const struct engine_gradient *gradient, size_t gradients,
                     const struct engine_pass_options *o);

struct engine_evaluation {
    double loss;     /* mean over the learned tokens of all rows; NAN when there are none */
    uint64_t tokens; /* learned ones */
    size_t rows;     /* rows with a learned token; the others have no loss */
};
struct engine_evaluate_options {
    const struct adapter *adapter; /* NULL: the base alone */
    uint32_t batch_tokens;         /* approximate tokens in one pass; 0: 2048 */
    bool (*progress)(void *user, size_t done, size_t rows); /* or NULL; false: ERR_STOPPED */
    void *user;
};
/* The loss over a data set; row_nll (data->count) as engine_nll() gives it, or NULL. */
err engine_evaluate(struct engine_evaluation *out, double *row_nll, struct engine *e,
                    const struct dataset *data, const struct engine_evaluate_options *o);

#endif
