/* The table of the CUDA backend; its context, memory, copies and batches. */
#include "kernels/cuda/cuda.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Pinned memory. Input that has to be read before a function returns goes through `in`, from its
 * start again after each wait. Results that the host is promised at check() come through `out`, and
 * are copied to their places when the stream has been waited for. */
enum { IN_BYTES = 4 << 20, OUT_BYTES = 16 * CUDA_RECEIVE_BYTES, RESULTS_MAX = 64 };
struct result {
    void *host;
    const void *pinned;
    size_t bytes;
};
struct cuda_staging {
    char *in, *out;
    size_t in_used, out_used;
    struct result result[RESULTS_MAX];
    size_t results;
};

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* ---- Failures */
void cuda_fail(struct backend_context *c, err e)
{
    if (!err_is(c->first)) c->first = e;
}

err cuda_error(const struct backend_context *c, cudaError_t status, const char *what)
{
    return err_make(ERR_MACHINE, "cuda:%d: %s: %s", c->device, what, cudaGetErrorString(status));
}

bool cuda_good(struct backend_context *c, cudaError_t status, const char *what)
{
    if (status != cudaSuccess && !err_is(c->first)) c->first = cuda_error(c, status, what);
    return status == cudaSuccess;
}

/* ---- Start and end of operations */

static double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The device is set each time, because calls may come from any thread. */
double cuda_begin(struct backend_context *c)
{
    cuda_good(c, cudaSetDevice(c->device), "selecting the device");
    if (!c->timed) return 0.0;
    cuda_wait(c);
    return clock_seconds();
}

void cuda_done(struct backend_context *c, enum backend_op op, double since)
{
    cuda_good(c, cudaGetLastError(), backend_op_name(op));
    c->profile.calls[op]++;
    if (!c->timed) return;
    cuda_wait(c);
    c->profile.seconds[op] += clock_seconds() - since;
}

void cuda_wait(struct backend_context *c)
{
    struct cuda_staging *s = c->staging;
    if (c->capturing) {
        c->uncapturable = true;
        return;
    }
    bool good = cuda_good(c, cudaStreamSynchronize(c->stream), "running the operations");
    for (size_t i = 0; good && i < s->results; i++)
        memcpy(s->result[i].host, s->result[i].pinned, s->result[i].bytes);
    s->in_used = s->out_used = s->results = 0;
    c->waits++;
}

static err check(struct backend_context *c)
{
    cuda_begin(c);
    cuda_wait(c);
    err e = c->first;
    c->first = ERR_NONE;
    return e;
}

/* ---- Memory */

err cuda_take(void *out, struct backend_context *c, size_t bytes)
{
    void *memory;
    if (!cuda_taken_room(c)) return err_sys(ENOMEM, "cuda");
    cudaError_t status = cudaMalloc(&memory, bytes ? bytes : 1);
    if (status == cudaErrorMemoryAllocation) {
        size_t available = 0, all = 0;
        (void)cudaGetLastError(); /* else the next launch would report it again */
        (void)cudaMemGetInfo(&available, &all);
        return err_make(
            ERR_MACHINE, "cuda:%d: out of memory: %.2f MB needed, %.2f MB of %.2f are free",
            c->device, (double)bytes * 1e-6, (double)available * 1e-6, (double)all * 1e-6);
    }
    if (status != cudaSuccess) return cuda_error(c, status, "allocating memory");
    c->taken[c->takes++] = {memory, bytes};
    *(void **)out = memory;
    return ERR_NONE;
}

void cuda_give(struct backend_context *c, void *memory)
{
    if (!memory) return;
    REQUIRE(!c->capturing);
    cuda_begin(c);
    cuda_wait(c); /* queued work may still use it */
    c->given++;
    cuda_taken_remove(c, memory);
    cuda_good(c, cudaFree(memory), "freeing memory");
}

void *cuda_grow(struct backend_context *c, struct cuda_room *r, size_t bytes)
{
    if (bytes > r->bytes && c->capturing) {
        c->uncapturable = true; /* the work runs again without a capture, and grows it then */
        return NULL;
    }
    if (bytes > r->bytes) {
        cuda_give(c, r->data);
        *r = {};
        err e = cuda_take(&r->data, c, bytes);
        if (err_is(e))
            cuda_fail(c, e);
        else
            r->bytes = bytes;
    }
    return r->data;
}

void *cuda_scratch(struct backend_context *c, size_t bytes)
{
    return cuda_grow(c, &c->scratch, bytes);
}

static err memory_take(void *out, struct backend_context *c, size_t bytes)
{
    cuda_begin(c);
    void *memory = NULL;
    TRY(cuda_take(&memory, c, bytes));
    cuda_good(c, cudaMemsetAsync(memory, 0, bytes, c->stream), "clearing memory");
    *(void **)out = memory;
    return ERR_NONE;
}

/* Through pinned memory, because the caller may change its own as soon as this returns. */
static void copy_in(struct backend_context *c, void *to, const void *host, size_t bytes)
{
    double since = cuda_begin(c);
    cuda_send(c, to, host, bytes);
    cuda_done(c, OP_COPY, since);
}

static void copy_out(struct backend_context *c, void *host, const void *from, size_t bytes)
{
    double since = cuda_begin(c);
    if (bytes)
        cuda_good(c, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, c->stream),
                  "copying from the device");
    cuda_done(c, OP_COPY, since);
}

void cuda_send(struct backend_context *c, void *to, const void *host, size_t bytes)
{
    struct cuda_staging *s = c->staging;
    c->uncapturable |= c->capturing; /* the next copy through this memory may be another one */
    while (bytes && !c->uncapturable) {
        if (s->in_used == IN_BYTES) cuda_wait(c);
        size_t n = IN_BYTES - s->in_used < bytes ? IN_BYTES - s->in_used : bytes;
        memcpy(s->in + s->in_used, host, n);
        if (!cuda_good(
                c, cudaMemcpyAsync(to, s->in + s->in_used, n, cudaMemcpyHostToDevice, c->stream),
                "copying to the device"))
            return;
        s->in_used = round_up(s->in_used + n, 64);
        to = (char *)to + n;
        host = (const char *)host + n;
        bytes -= n;
    }
}

static void promise(struct backend_context *c, void *host, const void *pinned, size_t bytes)
{
    struct cuda_staging *s = c->staging;
    s->result[s->results++] = {host, pinned, bytes};
}

void cuda_receive(struct backend_context *c, void *host, const void *from, size_t bytes)
{
    struct cuda_staging *s = c->staging;
    REQUIRE(bytes <= CUDA_RECEIVE_BYTES && !c->capturing);
    if (s->results == RESULTS_MAX || s->out_used + CUDA_RECEIVE_BYTES > OUT_BYTES) cuda_wait(c);
    char *pinned = s->out + s->out_used;
    s->out_used = round_up(s->out_used + bytes, 64);
    if (cuda_good(c, cudaMemcpyAsync(pinned, from, bytes, cudaMemcpyDeviceToHost, c->stream),
                  "copying from the device"))
        promise(c, host, pinned, bytes);
}

static void staging_close(struct cuda_staging *s)
{
    if (!s) return;
    if (s->in) (void)cudaFreeHost(s->in);
    free(s);
}

static err pinned_take(void **out, const struct backend_context *c, size_t bytes)
{
    cudaError_t status = cudaMallocHost(out, bytes);
    if (status == cudaSuccess) return ERR_NONE;
    return cuda_error(c, status, "allocating pinned memory");
}

static err staging_open(struct backend_context *c)
{
    struct cuda_staging *s = (struct cuda_staging *)calloc(1, sizeof *s);
    if (!s) return err_sys(ENOMEM, "cuda");
    c->staging = s;
    void *memory;
    TRY(pinned_take(&memory, c, IN_BYTES + OUT_BYTES));
    s->in = (char *)memory;
    s->out = s->in + IN_BYTES;
    return ERR_NONE;
}

/* ---- Opening a device */

static void context_close(struct backend_context *c)
{
    if (!c) return;
    if (c->stream) {
        if (c->staging) cuda_wait(c);
        cuda_products_close(c->products);
        cuda_set_close(c->set);
        (void)cudaFree(c->scratch.data);
        (void)cudaFree(c->sums);
        staging_close(c->staging);
        if (c->event) (void)cudaEventDestroy(c->event);
        (void)cudaStreamDestroy(c->stream);
    }
    free(c->taken);
    free(c);
}

/* Without any driver the runtime answers as for one that is too old. */
static err driver_error(int device)
{
    int has = 0, needs = 0;
    (void)cudaDriverGetVersion(&has);
    (void)cudaRuntimeGetVersion(&needs);
    if (!has) return err_make(ERR_MACHINE, "cuda:%d: this machine has no NVIDIA driver", device);
    return err_make(ERR_MACHINE,
                    "cuda:%d: the NVIDIA driver supports CUDA %d.%d at most, and %d.%d is needed: "
                    "install a newer driver",
                    device, has / 1000, has % 1000 / 10, needs / 1000, needs % 1000 / 10);
}

static err find_device(int device)
{
    int count = 0, major = 0, minor = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) return driver_error(device);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        return err_make(ERR_MACHINE, "cuda:%d: this machine has no GPU that CUDA can use", device);
    if (status != cudaSuccess)
        return err_make(ERR_MACHINE, "cuda:%d: looking for GPUs: %s", device,
                        cudaGetErrorString(status));
    if (device < 0 || device >= count)
        return err_make(ERR_INPUT, "cuda:%d: this machine has %d GPU%s", device, count,
                        count == 1 ? "" : "s");
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (status == cudaSuccess) status = cudaSetDevice(device);
    if (status != cudaSuccess)
        return err_make(ERR_MACHINE, "cuda:%d: opening the device: %s", device,
                        cudaGetErrorString(status));
    if (major < 8) /* bfloat16 and asynchronous copies began with 8.0 */
        return err_make(ERR_MACHINE,
                        "cuda:%d: this GPU has compute capability %d.%d, and 8.0 is needed", device,
                        major, minor);
    return ERR_NONE;
}

static err context_open(struct backend_context **out, const struct backend_options *o)
{
    TRY(find_device(o->device));
    struct backend_context *c = (struct backend_context *)calloc(1, sizeof *c);
    if (!c) return err_sys(ENOMEM, "cuda");
    c->timed = o->profile;
    c->device = o->device;
    c->precision = o->precision == DTYPE_NONE ? DTYPE_BF16 : o->precision;
    cudaError_t status = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    err e = ERR_NONE;
    if (status != cudaSuccess) e = cuda_error(c, status, "opening the device");
    if (!err_is(e)) e = staging_open(c);
    if (!err_is(e)) e = cuda_take(&c->sums, c, CUDA_SUMS * sizeof(double));
    if (!err_is(e)) e = cuda_products_open(&c->products, c);
    if (err_is(e))
        context_close(c);
    else
        *out = c;
    return e;
}

/* ---- Batches */

static void batch_close(struct backend_batch *b)
{
    if (!b) return;
    struct backend_context *c = b->context;
    cuda_give(c, b->block); /* waits, so results that lie in the batch are delivered */
    if (b->pinned) (void)cudaFreeHost(b->pinned);
    free(b);
}

/* Offsets of the input are the same in the device block and in the pinned copies. With a NULL block
 * this only counts. */
static size_t batch_place(struct backend_batch *b, char *block)
{
    size_t at = 0, tokens = b->most.tokens, learned = b->most.learned;
    b->scalars = (struct batch_scalars *)cuda_place(block, &at, sizeof *b->scalars);
    b->id = (int32_t *)cuda_place(block, &at, tokens * 4);
    b->position = (uint32_t *)cuda_place(block, &at, tokens * 4);
    b->start = (uint32_t *)cuda_place(block, &at, (b->most.rows + 1) * 4);
    b->index = (uint32_t *)cuda_place(block, &at, learned * 4);
    b->target = (int32_t *)cuda_place(block, &at, learned * 4);
    b->gradient_scale = (float *)cuda_place(block, &at, learned * 4);
    b->input_bytes = at;
    b->nll = (double *)cuda_place(block, &at, learned * sizeof(double));
    return at;
}

size_t cuda_batch_bytes(const struct batch_rows *most)
{
    struct backend_batch b = {};
    b.most = *most;
    return batch_place(&b, NULL);
}

static err batch_open(struct backend_batch **out, struct backend_context *c,
                      const struct batch_rows *most)
{
    cuda_begin(c);
    struct backend_batch *b = (struct backend_batch *)calloc(1, sizeof *b);
    if (!b) return err_sys(ENOMEM, "cuda");
    b->context = c;
    b->most.tokens = most->tokens;
    b->most.rows = most->rows;
    b->most.learned = most->learned;
    void *pinned = NULL;
    size_t bytes = batch_place(b, NULL), nll_bytes = round_up(most->learned * sizeof(double), 256);
    bool good = !err_is(c->first);
    err e = cuda_take(&b->block, c, bytes);
    if (!err_is(e)) e = pinned_take(&pinned, c, 2 * b->input_bytes + nll_bytes);
    if (!err_is(e)) { /* kernels must not read a batch that could not be copied as places */
        cuda_good(c, cudaMemsetAsync(b->block, 0, bytes, c->stream), "clearing a batch");
        e = cuda_new_failure(c, good);
    }
    b->pinned = (char *)pinned;
    if (err_is(e)) {
        batch_close(b);
        return e;
    }
    memset(b->pinned, 0, 2 * b->input_bytes + nll_bytes);
    batch_place(b, (char *)b->block);
    b->pinned_nll = (double *)(void *)(b->pinned + 2 * b->input_bytes);
    *out = b;
    return ERR_NONE;
}

/* Writes n values of an array into the pinned copy of its place in the device block. */
static void fill(const struct backend_batch *b, char *input, const void *place, const void *host,
                 size_t n)
{
    if (host && n) memcpy(input + ((const char *)place - (const char *)b->block), host, n * 4);
}

/* Two pinned copies take turns, so a batch can be set while the one before is being copied. */
static void batch_set(struct backend_context *c, struct backend_batch *b,
                      const struct batch_rows *rows)
{
    double since = cuda_begin(c);
    REQUIRE(rows->tokens <= b->most.tokens && rows->rows <= b->most.rows &&
            rows->learned <= b->most.learned);
    unsigned slot = b->slot ^= 1;
    if (b->slot_waits[slot] > c->waits) cuda_wait(c);
    char *input = b->pinned + slot * b->input_bytes;
    struct batch_scalars scalars = {rows->dropout_key, rows->dropout};
    memcpy(input, &scalars, sizeof scalars);
    fill(b, input, b->id, rows->id, rows->tokens);
    fill(b, input, b->position, rows->position, rows->tokens);
    fill(b, input, b->start, rows->start, rows->start ? rows->rows + 1 : 0);
    fill(b, input, b->index, rows->index, rows->learned);
    fill(b, input, b->target, rows->target, rows->learned);
    float *scale = (float *)(void *)(input + ((char *)b->gradient_scale - (char *)b->block));
    for (size_t i = 0; i < rows->learned; i++)
        scale[i] = rows->gradient_scales ? rows->gradient_scales[i] : rows->gradient_scale;
    cuda_good(c,
              cudaMemcpyAsync(b->block, input, b->input_bytes, cudaMemcpyHostToDevice, c->stream),
              "copying a batch to the device");
    b->slot_waits[slot] = c->waits + 1;
    b->now = *rows;
    b->now.id = b->now.target = NULL;
    b->now.start = b->now.position = b->now.index = NULL;
    b->now.gradient_scales = NULL;
    cuda_done(c, OP_COPY, since);
}

/* The pinned copy may still hold values of an earlier call that have not been delivered. */
static void batch_nll(struct backend_context *c, double *nll, const struct backend_batch *b)
{
    REQUIRE(!c->capturing);
    double since = cuda_begin(c);
    struct cuda_staging *s = c->staging;
    size_t bytes = b->now.learned * sizeof(double);
    bool full = s->results == RESULTS_MAX;
    for (size_t i = 0; i < s->results; i++)
        full |= s->result[i].pinned == b->pinned_nll;
    if (full) cuda_wait(c);
    if (bytes &&
        cuda_good(c,
                  cudaMemcpyAsync(b->pinned_nll, b->nll, bytes, cudaMemcpyDeviceToHost, c->stream),
                  "copying from the device"))
        promise(c, nll, b->pinned_nll, bytes);
    cuda_done(c, OP_COPY, since);
}

extern const struct backend backend_cuda = {
    .name = "cuda",
    .bucket = BUCKET,
    .devices = cuda_devices,
    .open = context_open,
    .close = context_close,
    .precision = cuda_precision,
    .check = check,
    .profile = cuda_profile,
    .rows_alone = cuda_rows_alone,
    .memory_free = cuda_memory_free,
    .memory_held = cuda_memory_held,
    .weight_bytes = cuda_weight_bytes,
    .scratch_bytes = cuda_scratch_bytes,
    .memory_take = memory_take,
    .memory_give = cuda_give,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .zero = cuda_zero,
    .convert = cuda_convert,
    .add = cuda_add,
    .peer_copy = cuda_peer_copy,
    .peer_add = cuda_peer_add,
    .batch_open = batch_open,
    .batch_set = batch_set,
    .batch_nll = batch_nll,
    .batch_close = batch_close,
    .repeat = cuda_repeat,
    .record_close = cuda_record_close,
    .weight_pack = cuda_weight_pack,
    .weight_close = cuda_weight_close,
    .embed = cuda_embed,
    .low_rank_room = cuda_low_rank_room,
    .low_rank_open = cuda_low_rank_open,
    .low_rank_close = cuda_low_rank_close,
    .low_rank_load = cuda_low_rank_load,
    .low_rank_set = cuda_low_rank_set,
    .linear = cuda_linear,
    .low_rank_shrink = cuda_low_rank_shrink,
    .linear_back = cuda_linear_back,
    .low_rank_gradient = cuda_low_rank_gradient,
    .head_loss = cuda_head_loss,
    .learned_take = cuda_learned_take,
    .learned_add = cuda_learned_add,
    .norm = cuda_norm,
    .norm_back = cuda_norm_back,
    .rope = cuda_rope,
    .attention = cuda_attention,
    .attention_back = cuda_attention_back,
    .attention_decode = cuda_attention_decode,
    .gate = cuda_gate,
    .gate_back = cuda_gate_back,
    .adamw = cuda_adamw,
};

const char backend_cuda_build[] = FEDLORA_BACKEND_BUILD;
