/* The operations of attention, which choose between tensor cores and float32 arithmetic. The choice
 * depends on types, alignment and head_dim, never on the batch, so that a row keeps its bits. */
#include "kernels/cuda/cuda_attention.cuh"

bool cuda_attention_known(struct backend_context *c, const struct attention_shape *s)
{
    bool known = s->head_dim > 0 && s->head_dim <= CUDA_HEAD_DIM_MAX && s->kv_heads > 0 &&
                 s->heads % s->kv_heads == 0;
    if (!known)
        cuda_fail(c, err_make(ERR_INPUT,
                              "cuda: attention with %u heads, %u key-value heads and head_dim %u: "
                              "expected a multiple, and head_dim at most %d",
                              s->heads, s->kv_heads, s->head_dim, CUDA_HEAD_DIM_MAX));
    return known;
}

float cuda_attention_scale(float *inner, const struct attention_shape *s)
{
    *inner = s->cap > 0.0f ? attention_scale(s) / s->cap : 0.0f;
    return s->cap > 0.0f ? s->cap : attention_scale(s);
}

static struct attention_args args_of(const struct attention_tensors *t,
                                     const struct attention_shape *s, const struct backend_batch *b)
{
    struct attention_args a = {};
    a.q = rows8_of(t->q, s->head_dim);
    a.k = rows8_of(t->k, s->head_dim);
    a.v = rows8_of(t->v, s->head_dim);
    a.out = rows8_of(t->out, s->head_dim);
    a.lse = t->lse;
    a.start = b->start;
    a.tokens = (unsigned)b->now.tokens;
    a.rows = (unsigned)b->now.rows;
    a.heads = s->heads;
    a.kv_heads = s->kv_heads;
    a.head_dim = s->head_dim;
    a.window = s->window;
    a.scale = cuda_attention_scale(&a.inner, s);
    return a;
}

void cuda_attention(struct backend_context *c, const struct attention_tensors *t,
                    const struct attention_shape *s, const struct backend_batch *b)
{
    if (!cuda_attention_known(c, s) || b->now.rows == 0) return;
    struct attention_args a = args_of(t, s, b);
    double since = cuda_begin(c);
    if (attention_mma_known(&a, false))
        attention_mma_forward(c, &a);
    else
        attention_f32_forward(c, &a);
    cuda_done(c, OP_ATTENTION, since);
}

void cuda_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                         const struct attention_tensors *t, const struct attention_shape *s,
                         const struct backend_batch *b)
{
    if (!cuda_attention_known(c, s) || b->now.rows == 0) return;
    struct attention_args a = args_of(t, s, b);
    a.dq = rows8_of(grad->q, s->head_dim);
    a.dk = rows8_of(grad->k, s->head_dim);
    a.dv = rows8_of(grad->v, s->head_dim);
    a.dout = rows8_of(grad->out, s->head_dim);
    double since = cuda_begin(c);
    a.delta = static_cast<float *>(cuda_scratch(c, b->now.tokens * s->heads * sizeof(float)));
    if (a.delta && attention_mma_known(&a, true))
        attention_mma_back(c, &a);
    else if (a.delta)
        attention_f32_back(c, &a);
    cuda_done(c, OP_ATTENTION_BACK, since);
}
