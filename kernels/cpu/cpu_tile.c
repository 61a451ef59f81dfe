#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* A kernel computes exactly as many rows as its name says. */
typedef void (*kernel)(float *c, const void *a, size_t lda, const void *panel,
                       const struct tile_shape *s);
struct kernels { /* for one width: many rows, few rows and one row at once */
    kernel many, few, one;
    size_t many_rows, few_rows;
};

enum level { LEVEL_PLAIN, LEVEL_AVX2, LEVEL_AVX512, LEVEL_BF16, LEVEL_AMX };

CPU_CLONES static void plain_one(float *c, const void *a, size_t lda, const void *panel,
                                 const struct tile_shape *s)
{
    const float *x = a, *b = panel;
    float sum[TILE_WIDTH] = {0};
    (void)lda;
    for (size_t p = 0; p < s->depth; p++)
        for (size_t j = 0; j < s->width; j++)
            sum[j] += x[p] * b[p * s->width + j];
    for (size_t j = 0; j < s->width; j++)
        c[j] = s->add ? c[j] + sum[j] : sum[j];
}

#if defined(__x86_64__)

/* ROWS x VECTORS accumulators of 16 (or 8) floats: one load a vector and one broadcast a row at
 * each p. */
#define KERNEL_AVX512(NAME, ROWS, VECTORS)                                                         \
    __attribute__((target("avx512f"))) static void NAME(                                           \
        float *c, const void *a, size_t lda, const void *panel, const struct tile_shape *s)        \
    {                                                                                              \
        const float *x = a, *b = panel;                                                            \
        __m512 sum[ROWS][VECTORS];                                                                 \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                sum[i][v] = _mm512_setzero_ps();                                                   \
        for (size_t p = 0; p < s->depth; p++) {                                                    \
            __m512 y[VECTORS];                                                                     \
            for (int v = 0; v < VECTORS; v++)                                                      \
                y[v] = _mm512_loadu_ps(b + (p * VECTORS + (size_t)v) * 16);                        \
            for (int i = 0; i < ROWS; i++) {                                                       \
                __m512 z = _mm512_set1_ps(x[(size_t)i * lda + p]);                                 \
                for (int v = 0; v < VECTORS; v++)                                                  \
                    sum[i][v] = _mm512_fmadd_ps(z, y[v], sum[i][v]);                               \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++) {                                                    \
                float *to = c + (size_t)i * s->ldc + v * 16;                                       \
                if (s->add) sum[i][v] = _mm512_add_ps(_mm512_loadu_ps(to), sum[i][v]);             \
                _mm512_storeu_ps(to, sum[i][v]);                                                   \
            }                                                                                      \
    }
KERNEL_AVX512(avx512_12x1, 12, 1)
KERNEL_AVX512(avx512_12x2, 12, 2)
KERNEL_AVX512(avx512_4x1, 4, 1)
KERNEL_AVX512(avx512_4x2, 4, 2)
KERNEL_AVX512(avx512_1x1, 1, 1)
KERNEL_AVX512(avx512_1x2, 1, 2)

#define KERNEL_BF16(NAME, ROWS, VECTORS)                                                           \
    __attribute__((target("avx512f,avx512bf16"))) static void NAME(                                \
        float *c, const void *a, size_t lda, const void *panel, const struct tile_shape *s)        \
    {                                                                                              \
        const uint16_t *x = a, *b = panel;                                                         \
        __m512 sum[ROWS][VECTORS];                                                                 \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                sum[i][v] = _mm512_setzero_ps();                                                   \
        for (size_t p = 0; p < s->depth / 2; p++) {                                                \
            __m512i y[VECTORS];                                                                    \
            for (int v = 0; v < VECTORS; v++)                                                      \
                y[v] = _mm512_loadu_si512(b + (p * VECTORS + (size_t)v) * 32);                     \
            for (int i = 0; i < ROWS; i++) {                                                       \
                int pair;                                                                          \
                memcpy(&pair, x + (size_t)i * lda + 2 * p, sizeof pair);                           \
                __m512i z = _mm512_set1_epi32(pair);                                               \
                for (int v = 0; v < VECTORS; v++)                                                  \
                    sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)z, (__m512bh)y[v]);          \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++) {                                                    \
                float *to = c + (size_t)i * s->ldc + v * 16;                                       \
                if (s->add) sum[i][v] = _mm512_add_ps(_mm512_loadu_ps(to), sum[i][v]);             \
                _mm512_storeu_ps(to, sum[i][v]);                                                   \
            }                                                                                      \
    }
KERNEL_BF16(bf16_12x1, 12, 1)
KERNEL_BF16(bf16_12x2, 12, 2)
KERNEL_BF16(bf16_4x1, 4, 1)
KERNEL_BF16(bf16_4x2, 4, 2)
KERNEL_BF16(bf16_1x1, 1, 1)
KERNEL_BF16(bf16_1x2, 1, 2)

/* Registers are half as wide: two or four vectors a row, so 3 rows at once. */
#define KERNEL_AVX2(NAME, ROWS, VECTORS)                                                           \
    __attribute__((target("avx2,fma"))) static void NAME(                                          \
        float *c, const void *a, size_t lda, const void *panel, const struct tile_shape *s)        \
    {                                                                                              \
        const float *x = a, *b = panel;                                                            \
        __m256 sum[ROWS][VECTORS];                                                                 \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                sum[i][v] = _mm256_setzero_ps();                                                   \
        for (size_t p = 0; p < s->depth; p++)                                                      \
            for (int i = 0; i < ROWS; i++) {                                                       \
                __m256 z = _mm256_set1_ps(x[(size_t)i * lda + p]);                                 \
                for (int v = 0; v < VECTORS; v++) {                                                \
                    __m256 y = _mm256_loadu_ps(b + (p * VECTORS + (size_t)v) * 8);                 \
                    sum[i][v] = _mm256_fmadd_ps(z, y, sum[i][v]);                                  \
                }                                                                                  \
            }                                                                                      \
        for (int i = 0; i < ROWS; i++)                                                             \
            for (int v = 0; v < VECTORS; v++) {                                                    \
                float *to = c + (size_t)i * s->ldc + v * 8;                                        \
                if (s->add) sum[i][v] = _mm256_add_ps(_mm256_loadu_ps(to), sum[i][v]);             \
                _mm256_storeu_ps(to, sum[i][v]);                                                   \
            }                                                                                      \
    }
KERNEL_AVX2(avx2_4x2, 4, 2)
KERNEL_AVX2(avx2_3x4, 3, 4)
KERNEL_AVX2(avx2_1x2, 1, 2)
KERNEL_AVX2(avx2_1x4, 1, 4)

/* Eight tile registers: 0-3 the sums of two blocks of 16 rows by two of 16 columns, 4-5 a, 6-7 the
 * panel. */
__attribute__((target("amx-tile,amx-bf16"))) static void amx_32x2(float *c, const void *a,
                                                                  size_t lda, const void *panel,
                                                                  const struct tile_shape *s,
                                                                  size_t step)
{
    const char *x = a, *b = panel;
    size_t row = lda * 2, ldc = s->ldc * 4;
    if (s->add) {
        _tile_loadd(0, c, ldc);
        _tile_loadd(1, c + 16, ldc);
        _tile_loadd(2, c + 16 * s->ldc, ldc);
        _tile_loadd(3, c + 16 * s->ldc + 16, ldc);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t p = 0; p < s->depth; p += step) {
        _tile_loadd(4, x + p * 2, row);
        _tile_loadd(5, x + 16 * row + p * 2, row);
        _tile_loadd(6, b + p * 64, 128);
        _tile_loadd(7, b + p * 64 + 64, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ldc);
    _tile_stored(1, c + 16, ldc);
    _tile_stored(2, c + 16 * s->ldc, ldc);
    _tile_stored(3, c + 16 * s->ldc + 16, ldc);
}

__attribute__((target("amx-tile,amx-bf16"))) static void amx_16(float *c, const void *a, size_t lda,
                                                                const void *panel,
                                                                const struct tile_shape *s,
                                                                size_t step)
{
    const char *x = a, *b = panel;
    size_t row = lda * 2, ldc = s->ldc * 4, line = s->width * 4;
    bool wide = s->width == TILE_WIDTH;
    _tile_zero(0);
    _tile_zero(1);
    if (s->add) _tile_loadd(0, c, ldc);
    if (s->add && wide) _tile_loadd(1, c + 16, ldc);
    for (size_t p = 0; p < s->depth; p += step) {
        _tile_loadd(4, x + p * 2, row);
        _tile_loadd(6, b + p / 2 * line, line);
        _tile_dpbf16ps(0, 4, 6);
        if (!wide) continue;
        _tile_loadd(7, b + p / 2 * line + 64, line);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, ldc);
    if (wide) _tile_stored(1, c + 16, ldc);
}

static bool amx_allowed(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

/* CPUID leaf 7: EDX bit 22 AMX-BF16, bit 24 AMX-TILE. */
static enum level detect(void)
{
    unsigned a = 7, b, c = 0, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return LEVEL_PLAIN;
    if (!__builtin_cpu_supports("avx512f")) return LEVEL_AVX2;
    if (!__builtin_cpu_supports("avx512bf16")) return LEVEL_AVX512;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    bool amx = (d >> 22 & 1) && (d >> 24 & 1);
    return amx && amx_allowed() ? LEVEL_AMX : LEVEL_BF16;
}

struct tile_config {
    uint8_t palette, start;
    uint8_t reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

__attribute__((target("amx-tile"))) static void amx_begin(size_t step)
{
    struct tile_config t = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        bool left = i == 4 || i == 5, right = i >= 6;
        t.rows[i] = (uint8_t)(right ? step / 2 : 16);
        t.bytes[i] = (uint16_t)(left ? step * 2 : 64);
    }
    __asm__ volatile(""
                     :
                     : "r"(&t)
                     : "memory"); /* the intrinsic does not declare that it reads all of t */
    _tile_loadconfig(&t);
}
__attribute__((target("amx-tile"))) static void amx_end(void)
{
    _tile_release();
}

#else
static enum level detect(void)
{
    return LEVEL_PLAIN;
}
#endif

static enum level level(void)
{
    static enum level found = LEVEL_PLAIN;
    static bool known;
    if (!__atomic_load_n(&known, __ATOMIC_ACQUIRE)) {
        __atomic_store_n(&found, detect(), __ATOMIC_RELAXED);
        __atomic_store_n(&known, true, __ATOMIC_RELEASE);
    }
    return __atomic_load_n(&found, __ATOMIC_RELAXED);
}

enum dtype tile_type(enum dtype precision)
{
    return precision == DTYPE_BF16 && level() >= LEVEL_BF16 ? DTYPE_BF16 : DTYPE_F32;
}
size_t tile_size(enum dtype type)
{
    return type == DTYPE_F32 ? 4 : 2;
}
/* A multiple of 16. bfloat16 panels hold pairs, and AMX tiles take steps of 32 values of k, or of
 * 16 if the depth is no multiple of 32. */
size_t tile_depth(size_t k)
{
    return (k + 15) / 16 * 16;
}
static _Thread_local size_t tile_step; /* depth for which the tiles of this thread are configured */

void tile_begin(enum dtype type, size_t depth)
{
#if defined(__x86_64__)
    tile_step = depth % 32 ? 16 : 32;
    if (type == DTYPE_BF16 && level() == LEVEL_AMX) amx_begin(tile_step);
#endif
    (void)type, (void)depth;
}
void tile_end(enum dtype type)
{
#if defined(__x86_64__)
    if (type == DTYPE_BF16 && level() == LEVEL_AMX) amx_end();
#endif
    (void)type;
}

static const struct kernels *choose(enum dtype type, size_t width)
{
    static const struct kernels plain = {plain_one, plain_one, plain_one, 1, 1};
#if defined(__x86_64__)
    static const struct kernels bf16[2] = {{bf16_12x1, bf16_4x1, bf16_1x1, 12, 4},
                                           {bf16_12x2, bf16_4x2, bf16_1x2, 12, 4}};
    static const struct kernels avx512[2] = {{avx512_12x1, avx512_4x1, avx512_1x1, 12, 4},
                                             {avx512_12x2, avx512_4x2, avx512_1x2, 12, 4}};
    static const struct kernels avx2[2] = {{avx2_4x2, avx2_4x2, avx2_1x2, 4, 4},
                                           {avx2_3x4, avx2_3x4, avx2_1x4, 3, 3}};
    bool wide = width == TILE_WIDTH;
    if (type == DTYPE_BF16) return &bf16[wide];
    if (level() >= LEVEL_AVX512) return &avx512[wide];
    if (level() == LEVEL_AVX2) return &avx2[wide];
#endif
    (void)type, (void)width;
    return &plain;
}

void tile_run(float *c, struct tile_left a, const void *panel, const struct tile_shape *s)
{
    const struct kernels *k = choose(s->type, s->width);
    const char *x = a.data;
    size_t row = 0, stride = a.ld * tile_size(s->type);
#if defined(__x86_64__)
    if (s->type == DTYPE_BF16 && level() == LEVEL_AMX) {
        size_t step = tile_step;
        REQUIRE(step && s->depth % step == 0);
        for (; row + 32 <= s->rows && s->width == TILE_WIDTH; row += 32)
            amx_32x2(c + row * s->ldc, x + row * stride, a.ld, panel, s, step);
        for (; row + 16 <= s->rows; row += 16)
            amx_16(c + row * s->ldc, x + row * stride, a.ld, panel, s, step);
    }
#endif
    for (; row + k->many_rows <= s->rows; row += k->many_rows)
        k->many(c + row * s->ldc, x + row * stride, a.ld, panel, s);
    for (; row + k->few_rows <= s->rows; row += k->few_rows)
        k->few(c + row * s->ldc, x + row * stride, a.ld, panel, s);
    for (; row < s->rows; row++)
        k->one(c + row * s->ldc, x + row * stride, a.ld, panel, s);
}
