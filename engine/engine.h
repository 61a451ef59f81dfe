/* The engine: a base model packed for products, shared and immutable, and what runs over it.
 *
 *   struct engine *e;  engine_open(&e, &model, &options);   weights are read once; then
 *                      model_drop_pages(&model)             the file's pages are not needed any
 * more engine_evaluate / engine_logits / train_run / generate_... engine_close(e); model must
 * outlive it (embedding rows)
 *
 * One engine works for one caller at a time (it owns scratch memory); its threads are inside
 * operations. The same inputs give the same bytes with any number of threads. */
#ifndef CLIENT_ENGINE_H
#define CLIENT_ENGINE_H

#include "engine/adapter.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "kernels/backend.h"

struct engine;

struct engine_options {
    const char *device;   /* "cpu", "cuda", "auto" (NULL) */
    enum dtype precision; /* DTYPE_F32, DTYPE_BF16; DTYPE_NONE is auto: bf16 where it is fast */
    int threads;          /* 0: all */
    bool inference;       /* no backward pass will be asked for: half the memory for weights */
};
err engine_open(struct engine **out, const struct model *m, const struct engine_options *o);
void engine_close(struct engine *e); /* accepts NULL */

enum dtype engine_precision(const struct engine *e);      /* what auto became */
const struct model *engine_model(const struct engine *e); /* as engine_open() was given it */
void engine_profile(struct backend_profile *out, const struct engine *e); /* since engine_open */

/* Rows run together: their tokens lie one after the other without padding, each row under its own
 * adapter (NULL: the base alone). */
struct engine_row {
    const int32_t *id; /* (count) */
    const int32_t
        *label;     /* (count); DATA_IGNORE = not learned; label[t] is predicted from id[..t] */
    uint32_t count; /* may be 0 */
    const struct adapter *adapter;
};

/* nll[i]: summed negative log likelihood of row i's learned tokens (labels after the first). */
err engine_nll(double *nll, struct engine *e, const struct engine_row *row, size_t rows);
/* logits (count, vocab) of one row. */
err engine_logits(float *out, struct engine *e, const struct engine_row *row);

struct engine_gradient {
    float *value; /* of one adapter's trained block, its value_count floats: added to */
    const struct adapter *adapter;
};
struct engine_pass_options {
    double scale;    /* the gradient is of scale * (sum of negative log likelihoods) */
    bool checkpoint; /* recompute activations layer by layer */
    double dropout;  /* on the input of A, as PEFT; 0: off */
    uint64_t dropout_key;
};
/* As engine_nll, and for every adapter in `gradient` adds the gradient of all rows that use it. */
err engine_gradients(double *nll, struct engine *e, const struct engine_row *row, size_t rows,
                     const struct engine_gradient *gradient, size_t gradients,
                     const struct engine_pass_options *o);

struct engine_evaluation {
    double loss; /* mean over the learned tokens of all rows; 0 when there are none */
    uint64_t tokens;
    size_t rows;
};
/* In batches of about `batch_tokens` (0: a good size). row_nll (count) may be NULL. `progress` may
 * be NULL; false from it stops with ERR_STOPPED. */
struct engine_evaluate_options {
    const struct adapter *adapter;
    uint32_t batch_tokens;
    bool (*progress)(void *user, size_t done, size_t rows);
    void *user;
};
err engine_evaluate(struct engine_evaluation *out, double *row_nll, struct engine *e,
                    const struct dataset *data, const struct engine_evaluate_options *o);

#endif
