/* The table of the CPU backend, its context, memory and batches. */
#include "base/limits.h"
#include "base/memory.h"
#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static void cpu_close(struct backend_context *c)
{
    if (!c) return;
    cpu_primitives_close(c->primitives);
    free(c->scratch);
    free(c->room);
    free(c);
}

int backend_threads(int asked)
{
    int threads = asked > 0 ? asked : omp_get_num_procs();
    return threads < LIMIT_THREADS ? threads : LIMIT_THREADS;
}

static err cpu_open(struct backend_context **out, const struct backend_options *o)
{
    struct backend_context *c = calloc(1, sizeof *c);
    if (!c) return err_sys(ENOMEM, "engine");
    c->threads = backend_threads(o->threads);
    c->precision = o->precision;
    if (o->precision == DTYPE_NONE) c->precision = cpu_bf16_is_faster() ? DTYPE_BF16 : DTYPE_F32;
    err e = cpu_primitives_open(&c->primitives, c);
    if (err_is(e))
        cpu_close(c);
    else
        *out = c;
    return e;
}

static enum dtype cpu_precision(const struct backend_context *c)
{
    return c->precision;
}

static err cpu_check(struct backend_context *c)
{
    err e = c->first;
    c->first = ERR_NONE;
    return e;
}

static void cpu_profile(struct backend_profile *out, const struct backend_context *c)
{
    *out = c->profile;
}

static int cpu_devices(void)
{
    return 1;
}

static bool cpu_rows_alone(const struct backend_context *c)
{
    return c->precision == DTYPE_F32;
}

static uint64_t cpu_memory_free(struct backend_context *c)
{
    (void)c;
    return memory_available();
}

static uint64_t cpu_memory_held(const struct backend_context *c)
{
    return c->packed_bytes;
}

/* Scratch of the kernels for each thread: kept exponentials of the head, and panels. */
enum { THREAD_BYTES = 40 << 20, OTHER_BYTES = 64 << 20 };

static uint64_t cpu_scratch_bytes(const struct backend_context *c, const struct backend_need *need)
{
    (void)need;
    return (uint64_t)THREAD_BYTES * (uint64_t)c->threads + OTHER_BYTES;
}

/* There is one memory, so that contexts copy as one does by itself. */
static void cpu_peer_copy(struct backend_context *c, float *to, struct backend_context *other,
                          const float *from, size_t n)
{
    (void)c, (void)other;
    if (n) memcpy(to, from, n * sizeof *to);
}

static void cpu_peer_add(struct backend_context *c, float *to, struct backend_context *other,
                         const float *from, size_t n)
{
    (void)c, (void)other;
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

/* calloc() gives large blocks whose pages cost memory only when they are used. It does not align to
 * 64 bytes, so the address of the whole block is stored just before the aligned one. */
static err cpu_memory_take(void *out, struct backend_context *c, size_t bytes)
{
    (void)c;
    char *whole = calloc(1, bytes + 128);
    if (!whole) return err_sys(ENOMEM, "engine: %zu bytes", bytes);
    char *memory = whole + 64 - (uintptr_t)whole % 64;
    if (memory - whole < (ptrdiff_t)sizeof(void *)) memory += 64;
    memcpy(memory - sizeof(void *), &whole, sizeof(void *));
    *(void **)out = memory;
    return ERR_NONE;
}

static void cpu_memory_give(struct backend_context *c, void *memory)
{
    (void)c;
    void *whole;
    memcpy(&whole, (char *)memory - sizeof(void *), sizeof(void *));
    free(whole);
}

static void cpu_copy_in(struct backend_context *c, void *to, const void *host, size_t bytes)
{
    (void)c;
    if (bytes) memcpy(to, host, bytes);
}

/* Everything is computed when it is called, so the arrays need only be copied. */
static err cpu_batch_open(struct backend_batch **out, struct backend_context *c,
                          const struct batch_rows *most)
{
    (void)c;
    struct backend_batch *b = calloc(1, sizeof *b);
    if (!b) return err_sys(ENOMEM, "engine");
    size_t words = 2 * most->tokens + most->rows + 1 + 3 * most->learned;
    b->memory = malloc(most->learned * sizeof(double) + words * sizeof(uint32_t));
    if (!b->memory) {
        free(b);
        return err_sys(ENOMEM, "engine: a batch of %zu tokens", most->tokens);
    }
    b->nll = b->memory;
    uint32_t *word = (uint32_t *)(void *)(b->nll + most->learned);
    b->rows.start = word;
    b->rows.position = word + most->rows + 1;
    b->rows.id = (int32_t *)(word + most->rows + 1 + most->tokens);
    b->rows.index = word + most->rows + 1 + 2 * most->tokens;
    b->rows.target = (int32_t *)(word + most->rows + 1 + 2 * most->tokens + most->learned);
    b->scales = (float *)(void *)(b->rows.target + most->learned);
    *out = b;
    return ERR_NONE;
}

static void cpu_batch_set(struct backend_context *c, struct backend_batch *b,
                          const struct batch_rows *rows)
{
    struct batch_rows own = *rows;
    own.id = memcpy((void *)b->rows.id, rows->id, rows->tokens * sizeof *rows->id);
    own.start = memcpy((void *)b->rows.start, rows->start, (rows->rows + 1) * sizeof *rows->start);
    own.position =
        memcpy((void *)b->rows.position, rows->position, rows->tokens * sizeof *rows->position);
    own.index = b->rows.index;
    own.target = b->rows.target;
    if (rows->learned) memcpy((void *)own.index, rows->index, rows->learned * sizeof *rows->index);
    if (rows->learned && rows->target)
        memcpy((void *)own.target, rows->target, rows->learned * sizeof *rows->target);
    if (rows->learned && rows->gradient_scales)
        own.gradient_scales =
            memcpy(b->scales, rows->gradient_scales, rows->learned * sizeof *b->scales);
    b->rows = own;
    (void)c;
}

static void cpu_batch_nll(struct backend_context *c, double *nll, const struct backend_batch *b)
{
    (void)c;
    if (b->rows.learned) memcpy(nll, b->nll, b->rows.learned * sizeof *nll);
}

static void cpu_batch_close(struct backend_batch *b)
{
    if (!b) return;
    free(b->memory);
    free(b);
}

static void cpu_repeat(struct backend_context *c, struct backend_record **record, uint64_t key,
                       void (*work)(void *user), void *user)
{
    (void)c, (void)record, (void)key;
    work(user);
}

static void cpu_record_close(struct backend_record *record)
{
    REQUIRE(!record);
}

const struct backend backend_cpu = {
    .name = "cpu",
    .bucket = 1,
    .devices = cpu_devices,
    .open = cpu_open,
    .close = cpu_close,
    .precision = cpu_precision,
    .check = cpu_check,
    .profile = cpu_profile,
    .rows_alone = cpu_rows_alone,
    .memory_free = cpu_memory_free,
    .memory_held = cpu_memory_held,
    .weight_bytes = cpu_weight_bytes,
    .scratch_bytes = cpu_scratch_bytes,
    .memory_take = cpu_memory_take,
    .memory_give = cpu_memory_give,
    .copy_in = cpu_copy_in,
    .copy_out = cpu_copy_in,
    .zero = cpu_zero,
    .convert = cpu_convert,
    .add = cpu_add,
    .peer_copy = cpu_peer_copy,
    .peer_add = cpu_peer_add,
    .batch_open = cpu_batch_open,
    .batch_set = cpu_batch_set,
    .batch_nll = cpu_batch_nll,
    .batch_close = cpu_batch_close,
    .repeat = cpu_repeat,
    .record_close = cpu_record_close,
    .weight_pack = cpu_weight_pack,
    .weight_close = cpu_weight_close,
    .embed = cpu_embed,
    .low_rank_room = cpu_low_rank_room,
    .low_rank_open = cpu_low_rank_open,
    .low_rank_close = cpu_low_rank_close,
    .low_rank_load = cpu_low_rank_load,
    .low_rank_set = cpu_low_rank_set,
    .linear = cpu_linear,
    .low_rank_shrink = cpu_low_rank_shrink,
    .linear_back = cpu_linear_back,
    .low_rank_gradient = cpu_low_rank_gradient,
    .head_loss = cpu_head_loss,
    .learned_take = cpu_learned_take,
    .learned_add = cpu_learned_add,
    .norm = cpu_norm,
    .norm_back = cpu_norm_back,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attention_back = cpu_attention_back,
    .attention_decode = cpu_attention_decode,
    .gate = cpu_gate,
    .gate_back = cpu_gate_back,
    .adamw = cpu_adamw,
};
