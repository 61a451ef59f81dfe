/* The results of the kernels on fixed inputs, as digests. On a GPU they must be those of the CUDA
 * backend on the CPU (tests/cuda_on_cpu), which writes the file: kernels are compiled without fused
 * products and their sums have one order, so every bit agrees.
 *
 * Products of cuBLAS and of tensor cores add in an order of their own, so they are run on small
 * integers, for which every order is exact. Attention is left out, because its exponentials and
 * fused products have other bits on a GPU; `cuda_check parity` covers it. */
#include "base/digest.h"
#include "bench/gpu/check.h"
#include "kernels/quant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGESTS_MAX = 512, NAME_BYTES = 64 };
static struct line {
    char name[NAME_BYTES], digest[DIGEST_TEXT_BYTES];
} line[DIGESTS_MAX];
static size_t lines;
static enum dtype precision;

static void add(const char *name, const char *part, const void *data, size_t bytes)
{
    struct digest d = digest_of(data, bytes);
    if (lines == DIGESTS_MAX) check_must(err_make(ERR_LIMIT, "too many digests"));
    snprintf(line[lines].name, NAME_BYTES, "%s.%s.%s", name, part, dtype_name(precision));
    digest_text(line[lines].digest, &d);
    line[lines++].digest[16] = 0; /* 64 bits are enough to find a fault */
}
static void add_tensor(const char *name, const char *part, struct mat m, size_t rows, size_t cols)
{
    add(name, part, check_bytes(&m, rows, cols), rows * cols * (m.type == DTYPE_F32 ? 4 : 2));
}
static void add_floats(const char *name, const char *part, float *device, size_t n)
{
    add_tensor(name, part, (struct mat){device, DTYPE_F32, n}, 1, n);
}

static const struct check_values reals = {2.0f, false}, integers = {2.0f, true};

/* ---- Rows, copies, norms, rotation, gate */
static void digest_rows(void)
{
    enum { ROWS = 3, LENGTH = 23, TOKENS = ROWS * LENGTH, COLS = 51 };
    struct backend_batch *b = check_batch(ROWS, LENGTH, 100, 0.0f);
    struct mat from = check_random(DTYPE_F32, TOKENS, COLS, reals);
    struct mat to = check_empty(precision, TOKENS, COLS),
               sum = check_empty(DTYPE_F32, TOKENS, COLS);
    gpu->convert(gpu_context, to, from, TOKENS, COLS, -0.37f);
    add_tensor("convert", "narrow", to, TOKENS, COLS);
    gpu->convert(gpu_context, sum, to, TOKENS, COLS, 1.7f);
    add_tensor("convert", "wide", sum, TOKENS, COLS);
    gpu->learned_take(gpu_context, to, from, b, 5, TOKENS - 5, COLS);
    add_tensor("learned_take", "to", to, TOKENS - 5, COLS);
    gpu->learned_add(gpu_context, sum, to, b, 5, TOKENS - 5, COLS);
    add_tensor("learned_add", "to", sum, TOKENS, COLS);
}

static void digest_norm(const char *name, const struct norm_shape *s, bool set)
{
    size_t cols = s->groups * s->width;
    struct mat x = check_random(set ? precision : DTYPE_F32, s->rows, cols, reals);
    struct mat dy = check_random(precision, s->rows, cols, reals);
    struct mat y = check_empty(precision, s->rows, cols),
               copy = check_empty(precision, s->rows, cols);
    struct mat dx = check_random(set ? precision : DTYPE_F32, s->rows, cols, reals);
    float *weight = check_floats_device(s->width, reals);
    float *inv = check_take(s->rows * s->groups * sizeof *inv);
    gpu->norm(gpu_context, y, inv, copy, x, weight, s);
    add_tensor(name, "y", y, s->rows, cols);
    add_tensor(name, "copy", copy, s->rows, cols);
    add_floats(name, "inv", inv, s->rows * s->groups);
    gpu->norm_back(gpu_context, dx, set ? (struct mat){0} : copy, dy, x, inv, weight, s, set);
    add_tensor(name, "dx", dx, s->rows, cols);
    if (!set) add_tensor(name, "narrow", copy, s->rows, cols);
}

/* The tables are any numbers, because sines would depend on the machine's library. */
static void digest_rope(size_t heads, size_t hd, size_t rotary)
{
    enum { ROWS = 3, LENGTH = 19, TOKENS = ROWS * LENGTH };
    struct backend_batch *b = check_batch(ROWS, LENGTH, 10, 0.0f);
    struct mat x = check_random(precision, TOKENS, heads * hd, reals);
    struct mat to = check_empty(DTYPE_F32, TOKENS, heads * hd);
    float *table = check_floats_device(LENGTH * hd, reals);
    struct rope_shape s = {TOKENS, heads, hd, rotary, table, table + LENGTH * hd / 2, false};
    char name[NAME_BYTES];
    snprintf(name, sizeof name, rotary ? "rope%zu+part" : "rope%zu", hd);
    gpu->rope(gpu_context, to, x, &s, b);
    add_tensor(name, "to", to, TOKENS, heads * hd);
    s.back = true;
    gpu->rope(gpu_context, x, x, &s, b);
    add_tensor(name, "back", x, TOKENS, heads * hd);
}

static void digest_gate(size_t rows, size_t width, enum activation activation)
{
    struct mat both = check_random(precision, rows, 2 * width, (struct check_values){20.0f, false});
    struct mat h = check_empty(precision, rows, width),
               dh = check_random(precision, rows, width, reals);
    struct gate_shape s = {rows, width, activation};
    char name[NAME_BYTES];
    snprintf(name, sizeof name, activation == ACTIVATION_SILU ? "gate%zu" : "gate%zu+gelu", width);
    gpu->gate(gpu_context, h, both, mat_at(both, 0, width), &s);
    add_tensor(name, "h", h, rows, width);
    gpu->gate_back(gpu_context, both, mat_at(both, 0, width), dh, both, mat_at(both, 0, width), &s);
    add_tensor(name, "back", both, rows, 2 * width);
    add_tensor(name, "again", dh, rows, width);
}

/* ---- Weights in the types of files: rows of an embedding, and columns of W by a product with the
 * identity, whose sums have one term. */
static void digest_type(enum dtype type, unsigned keep)
{
    static const struct {
        enum dtype type;
        size_t block, scale, other; /* bytes of a block, places of its two scales */
        uint16_t half;              /* the scales */
        size_t high;                /* without scales: the byte that has the exponent */
        uint8_t set;                /* and bits of it, so that values lie near 1 */
    } kind[] = {
        {DTYPE_F32, 4, 0, 0, 0, 3, 0x38},          {DTYPE_F16, 2, 0, 0, 0, 1, 0x30},
        {DTYPE_BF16, 2, 0, 0, 0, 1, 0x38},         {DTYPE_Q4_0, 18, 0, 0, 0x2c11, 0, 0},
        {DTYPE_Q4_1, 20, 0, 2, 0x2c22, 0, 0},      {DTYPE_Q5_0, 22, 0, 0, 0x2833, 0, 0},
        {DTYPE_Q5_1, 24, 0, 2, 0x2833, 0, 0},      {DTYPE_Q8_0, 34, 0, 0, 0x1c44, 0, 0},
        {DTYPE_Q2_K, 84, 80, 82, 0x2011, 0, 0},    {DTYPE_Q3_K, 110, 108, 108, 0x1c22, 0, 0},
        {DTYPE_Q4_K, 144, 0, 2, 0x1055, 0, 0},     {DTYPE_Q5_K, 176, 0, 2, 0x0c77, 0, 0},
        {DTYPE_Q6_K, 210, 208, 208, 0x0866, 0, 0}, {DTYPE_IQ4_NL, 18, 0, 0, 0x1c88, 0, 0},
        {DTYPE_IQ4_XS, 136, 0, 0, 0x0899, 0, 0},   {DTYPE_MXFP4, 17, 0, 0, 0, 0, 0x78}};
    enum { ROWS = 40, COLS = 256 };
    static uint8_t data[4 * ROWS * COLS];
    struct backend_batch *b = check_batch(2, 31, ROWS, 0.0f);
    uint32_t x = (uint32_t)type;
    size_t bytes = 0;
    if (!dtype_bytes(&bytes, type, (size_t)ROWS * COLS))
        check_must(err_make(ERR_STATE, "no such type"));
    for (size_t i = 0; i < bytes; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (uint8_t)(x >> 24);
    }
    for (size_t i = 0; i < sizeof kind / sizeof kind[0]; i++)
        for (size_t at = 0; kind[i].type == type && at < bytes; at += kind[i].block) {
            uint8_t *high = data + at + kind[i].high;
            if (!kind[i].half) *high = (uint8_t)((*high & 0xbf) | kind[i].set);
            if (!kind[i].half) continue;
            memcpy(data + at + kind[i].scale, &kind[i].half, 2);
            memcpy(data + at + kind[i].other, &kind[i].half, 2);
        }
    struct weight_source s = {.n = ROWS, .k = COLS, .parts = 1};
    s.part[0] = (struct weight_part){data, type, ROWS, 4}; /* rows permuted in four heads */
    s.products = BACKEND_FORWARD | BACKEND_EMBED | keep;
    struct backend_weight *w = NULL;
    check_must(gpu->weight_pack(&w, gpu_context, &s));
    struct mat rows = check_empty(DTYPE_F32, 62, COLS), y = check_empty(precision, COLS, ROWS);
    float *identity = check_floats(COLS * COLS, (struct check_values){0.0f, false});
    for (size_t i = 0; i < COLS; i++)
        identity[i * COLS + i] = 1.0f;
    struct mat one = check_empty(precision, COLS, COLS), wide = check_empty(DTYPE_F32, COLS, COLS);
    gpu->copy_in(gpu_context, wide.data, identity, (size_t)COLS * COLS * sizeof *identity);
    gpu->convert(gpu_context, one, wide, COLS, COLS, 1.0f);
    gpu->embed(gpu_context, rows, w, b);
    add_tensor(dtype_name(type), keep ? "embed kept" : "embed packed", rows, 62, COLS);
    gpu->linear(gpu_context, y, one, w, NULL, NULL, COLS, false);
    add_tensor(dtype_name(type), keep ? "W kept" : "W packed", y, COLS, ROWS);
    check_must(gpu->check(gpu_context));
    gpu->weight_close(w);
}

/* ---- Products on integers. In bfloat16 the low-rank kernels on tensor cores run if the rows of
 * each module begin at a multiple of eight; with SIMT_PART rows in the first module they do not. */
enum { K = 40, N = 72, RANK = 6, WIDTH = 18, FACTORS = 9, MMA_PART = 32, SIMT_PART = 30 };
/* Places of the trained factors of two modules: A, B and room for R of the first, A and B of the
 * second. */
enum {
    B_AT = RANK * K,
    R_AT = B_AT + MMA_PART * RANK,
    A2_AT = R_AT + RANK * RANK,
    B2_AT = A2_AT + FACTORS * K,
    VALUES = B2_AT + (N - SIMT_PART) * FACTORS
};
struct linear_case {
    const char *name;
    uint32_t part; /* rows of the first module */
    size_t rows, length;
    float dropout;
    bool small, each_row; /* an R; a gradient for each row */
};

static struct backend_low_rank *pair_open(struct backend_weight *w, uint32_t part, bool small)
{
    const unsigned both = LOW_RANK_A | LOW_RANK_B;
    uint32_t rest = N - part;
    struct backend_low_rank *l = NULL;
    struct low_rank_module m[2] = {
        {0, part, 0, RANK, FACTORS, 0.5f, small, both, 0, B_AT, R_AT, 0},
        {part, rest, FACTORS, FACTORS, FACTORS, 1.0f, false, both, A2_AT, B2_AT, 0, 3}};
    if (small) m[0].trains |= LOW_RANK_R;
    struct low_rank_values v[2] = {{check_floats(RANK * K, integers),
                                    check_floats(part * RANK, integers),
                                    small ? check_floats(RANK * RANK, integers) : NULL,
                                    check_floats((FACTORS - RANK) * K, integers),
                                    check_floats(part * (FACTORS - RANK), integers)},
                                   {check_floats(FACTORS * K, integers),
                                    check_floats(rest * FACTORS, integers), NULL, NULL, NULL}};
    check_must(gpu->low_rank_open(&l, gpu_context, w, m, 2));
    for (size_t i = 0; i < 2; i++)
        gpu->low_rank_load(gpu_context, l, i, &v[i]);
    return l;
}

/* Integers with room to their right, which does not change them. */
static struct mat random_beside(size_t rows, size_t cols, size_t room)
{
    struct mat from = check_random(precision, rows, cols, integers);
    struct mat to = check_empty(precision, rows, cols + room);
    gpu->convert(gpu_context, to, from, rows, cols, 1.0f);
    return to;
}

static void digest_linear(const struct linear_case *c)
{
    size_t tokens = c->rows * c->length, gradients = c->each_row ? c->rows : 1;
    struct backend_weight *w = check_weight(N, K, integers, BACKEND_FORWARD | BACKEND_BACKWARD);
    struct backend_batch *b = check_batch(c->rows, c->length, 10, c->dropout);
    struct backend_low_rank *l = pair_open(w, c->part, c->small);
    size_t room = gpu->low_rank_room(gpu_context, WIDTH);
    float *gradient = check_take(gradients * VALUES * sizeof *gradient);
    struct low_rank_use use = {l, 0, tokens, gradient, 0, c->each_row ? c->rows : 0, VALUES};
    struct low_rank_site site = {.use = &use, .uses = 1};
    site.h = check_empty(precision, tokens, WIDTH);
    site.g = check_empty(precision, tokens, WIDTH);
    site.p = check_empty(precision, tokens, WIDTH);
    struct mat x = random_beside(tokens, K, room), dy = random_beside(tokens, N, room);
    struct mat y = check_empty(DTYPE_F32, tokens, N), dx = check_empty(DTYPE_F32, tokens, K);
    gpu->linear(gpu_context, y, x, w, &site, b, tokens, false);
    add_tensor(c->name, "y", y, tokens, N);
    add_tensor(c->name, "h", site.h, tokens, WIDTH);
    gpu->linear_back(gpu_context, dx, dy, w, &site, b, tokens);
    add_tensor(c->name, "dx", dx, tokens, K);
    add_tensor(c->name, "g", site.g, tokens, WIDTH);
    gpu->low_rank_gradient(gpu_context, &site, dy, x, b);
    add_floats(c->name, "gradient", gradient, gradients * VALUES);
    gpu->low_rank_set(gpu_context, &l, 1, check_floats_device(VALUES, integers));
    gpu->low_rank_shrink(gpu_context, &site, x, b);
    add_tensor(c->name, "h after set", site.h, tokens, WIDTH);
    check_must(gpu->check(gpu_context));
    gpu->low_rank_close(l);
}

/* W is the identity, so the gradient of the hidden states is that of the logits. */
static void digest_head(const char *name, float cap)
{
    enum { TOKENS = 45, D = 96 };
    struct backend_batch *b = check_batch(1, TOKENS, D, 0.0f);
    struct weight_source s = {.n = D, .k = D, .parts = 1};
    float *identity = check_floats(D * D, (struct check_values){0.0f, false});
    for (size_t i = 0; i < D; i++)
        identity[i * D + i] = 1.0f;
    s.part[0] = (struct weight_part){identity, DTYPE_F32, D, 0};
    s.products = BACKEND_FORWARD | BACKEND_BACKWARD | BACKEND_HEAD;
    s.cap = cap;
    struct backend_weight *w = NULL;
    check_must(gpu->weight_pack(&w, gpu_context, &s));
    struct mat hidden = check_random(precision, TOKENS, D, (struct check_values){6.0f, true});
    struct mat back = check_empty(DTYPE_F32, TOKENS, D);
    double nll[TOKENS];
    float rounded[TOKENS]; /* the logarithm's last bit depends on the library */
    gpu->head_loss(gpu_context, back, hidden, w, b, 0, TOKENS);
    gpu->batch_nll(gpu_context, nll, b);
    check_must(gpu->check(gpu_context));
    for (size_t i = 0; i < TOKENS; i++)
        rounded[i] = (float)nll[i];
    add(name, "nll", rounded, sizeof rounded);
    add_tensor(name, "dlogits", back, TOKENS, D);
    gpu->weight_close(w);
}

/* ---- Update, and generation */
static void digest_adamw(double prox, double clip)
{
    enum { COUNT = 5003 };
    float *t[5];
    double norm2[2] = {0, 0};
    for (int i = 0; i < 5; i++)
        t[i] = check_floats_device(COUNT, (struct check_values){1.0f, false});
    struct optimizer o = {t[0], t[1], check_take(COUNT * sizeof(float)), t[3], COUNT, t[4], prox};
    struct adamw a = {0x1p-7, 0.5, 0.75, 0x1p-20, 0.125, 2, clip};
    const char *name = clip > 0 ? "adamw+clip" : "adamw+prox";
    gpu->adamw(gpu_context, norm2, &o, &a);
    add_floats(name, "value", t[0], COUNT);
    add_floats(name, "first", t[1], COUNT);
    add_floats(name, "second", o.second, COUNT);
    add(name, "squares", norm2, prox > 0 ? sizeof norm2 : sizeof norm2[0]);
}

/* Sequence i has step * i positions. */
static void digest_decode(const char *name, const struct attention_shape *s, uint32_t step)
{
    enum { SEQUENCES = 3 };
    size_t capacity = SEQUENCES * (size_t)step;
    size_t wide = (size_t)s->heads * s->head_dim, narrow = (size_t)s->kv_heads * s->head_dim;
    struct decode_row row[SEQUENCES];
    struct attention_tensors t = {.q = check_random(precision, SEQUENCES, wide, reals),
                                  .k = check_random(precision, SEQUENCES, narrow, reals),
                                  .v = check_random(precision, SEQUENCES, narrow, reals),
                                  .out = check_empty(precision, SEQUENCES, wide)};
    for (uint32_t i = 0; i < SEQUENCES; i++)
        row[i] = (struct decode_row){check_random(precision, capacity, narrow, reals),
                                     check_random(precision, capacity, narrow, reals), step * i};
    gpu->attention_decode(gpu_context, &t, row, SEQUENCES, s);
    add_tensor(name, "out", t.out, SEQUENCES, wide);
    add_tensor(name, "keys", row[1].keys, capacity, narrow);
}

static void digest_all(enum dtype type)
{
    static const struct linear_case linear[] = {
        {"linear", SIMT_PART, 2, 41, 0.0f, false, false},
        {"linear+dropout", SIMT_PART, 2, 41, 0.5f, false, false},
        {"linear+R", SIMT_PART, 2, 41, 0.0f, true, false},
        {"linear+rows", SIMT_PART, 5, 19, 0.0f, false, true},
        {"linear+R+rows", SIMT_PART, 5, 19, 0.0f, true, true},
        {"linear+long", SIMT_PART, 3, 700, 0.0f, true, false},
        {"tensor", MMA_PART, 2, 41, 0.0f, false, false},
        {"tensor+dropout", MMA_PART, 2, 41, 0.5f, true, false},
        {"tensor+R", MMA_PART, 2, 41, 0.0f, true, false},
        {"tensor+rows", MMA_PART, 5, 19, 0.0f, false, true},
        {"tensor+long", MMA_PART, 3, 700, 0.0f, true, false},
    };
    precision = type;
    check_must(gpu_reopen(type));
    digest_rows();
    digest_norm("norm576", &(struct norm_shape){9, 1, 576, 1e-5f}, false);
    digest_norm("norm4100", &(struct norm_shape){3, 1, 4100, 1e-5f}, false);
    digest_norm("norm20", &(struct norm_shape){21, 3, 20, 1e-6f}, true);
    digest_norm("norm128", &(struct norm_shape){10, 5, 128, 1e-6f}, true);
    digest_rope(5, 20, 0);
    digest_rope(3, 128, 0);
    digest_rope(3, 128, 96);
    digest_gate(7, 1500, ACTIVATION_SILU);
    digest_gate(3, 5, ACTIVATION_SILU);
    digest_gate(7, 1500, ACTIVATION_GELU_TANH);
    check_free();
    for (int t = 0; t < DTYPE_COUNT; t++)
        for (unsigned keep = 0; keep <= BACKEND_KEEP && quant_known((enum dtype)t);
             keep += BACKEND_KEEP)
            digest_type((enum dtype)t, keep);
    check_free();
    for (size_t i = 0; i < sizeof linear / sizeof linear[0]; i++)
        digest_linear(&linear[i]);
    digest_head("head", 0.0f);
    digest_head("head+cap", 7.0f);
    digest_adamw(0.25, 0.0);
    digest_adamw(0.0, 1.0);
    digest_decode("decode64", &(struct attention_shape){4, 2, 64, 0, 0, 0}, 70);
    digest_decode("decode20", &(struct attention_shape){2, 1, 20, 33, 0, 0}, 70);
    digest_decode("decode+long", &(struct attention_shape){2, 1, 20, 0, 0, 0}, 600);
    digest_decode("decode+cap", &(struct attention_shape){2, 1, 20, 0, 0.4f, 1.5f}, 70);
    check_free();
}

/* ---- The file: a line "NAME DIGEST" for each; names may have blanks. */
static err write_file(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file) return err_sys(errno, "%s", path);
    for (size_t i = 0; i < lines; i++)
        fprintf(file, "%s %s\n", line[i].name, line[i].digest);
    return fclose(file) ? err_sys(errno, "%s", path) : ERR_NONE;
}

static int compare_file(const char *path)
{
    char text[NAME_BYTES + DIGEST_TEXT_BYTES];
    FILE *file = fopen(path, "r");
    size_t same = 0, at = 0;
    int failed = 0;
    if (!file) check_must(err_sys(errno, "%s", path));
    for (; fgets(text, sizeof text, file); at++) {
        char *digest = strrchr(text, ' ');
        text[strcspn(text, "\n")] = 0;
        if (digest) *digest++ = 0;
        if (!digest || at >= lines || strcmp(text, line[at].name) != 0)
            check_must(err_make(ERR_INPUT, "%s: line %zu is not of this program", path, at + 1));
        if (!strcmp(digest, line[at].digest)) {
            same++;
            continue;
        }
        printf("other bits: %s: %s, on the CPU %s\n", text, line[at].digest, digest);
        failed++;
    }
    fclose(file);
    if (at != lines)
        check_must(err_make(ERR_INPUT, "%s: %zu lines, expected %zu", path, at, lines));
    printf("digest: %zu of %zu results have the bits of the CPU; attention is not compared\n", same,
           lines);
    return failed;
}

int check_digest(const struct check_arguments *a)
{
    bool write = a->count == 2 && !strcmp(a->text[1], "write");
    if (a->count < 1 || (a->count > 1 && !write)) return -1;
    digest_all(DTYPE_F32);
    digest_all(DTYPE_BF16);
    if (!write) return compare_file(a->text[0]);
    check_must(write_file(a->text[0]));
    printf("digest: %zu results written\n", lines);
    return 0;
}
