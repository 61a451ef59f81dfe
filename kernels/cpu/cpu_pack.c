#include "kernels/cpu/cpu_pack.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw")))

enum { LANES = 16, TILE_WORDS = LANES * PACK_WIDTH };

bool pack_can_block(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

static size_t up(size_t n, size_t step)
{
    return (n + step - 1) / step;
}

/* Values of a column in one tile. */
static size_t tile_depth_of(const struct pack_shape *s)
{
    return s->type == DTYPE_F32 ? LANES : 2 * LANES;
}

static size_t value_bytes(const struct pack_shape *s)
{
    return s->type == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* Tiles of a panel. */
static size_t tiles_of(const struct pack_shape *s, bool back)
{
    return up(back ? s->n : s->k, tile_depth_of(s));
}

size_t pack_bytes(const struct pack_shape *s, bool back)
{
    if (!s->blocked) return s->n * s->k * value_bytes(s);
    return up(back ? s->k : s->n, PACK_WIDTH) * tiles_of(s, back) * TILE_WORDS * sizeof(uint32_t);
}

size_t pack_groups(const struct pack_shape *s, bool back)
{
    size_t step = !s->blocked ? PACK_ROWS : back ? tile_depth_of(s) : PACK_WIDTH;
    return up(s->n, step) * (step / PACK_ROWS);
}

size_t pack_ld(const struct pack_shape *s)
{
    return up(s->k, PACK_WIDTH) * PACK_WIDTH;
}

/* Transposes 16 x 16 words, in four steps over pairs of rows. */
AVX512 static inline void transpose(__m512i r[LANES])
{
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < LANES; i += 8)
        for (int j = i; j < i + 4; j++) {
            t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
            t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Stores 16 rows of W in the backward operand, at columns 16 at, ... for float32 and 32 at, ... for
 * bfloat16. A float32 row is stored as it is. Two bfloat16 rows are interleaved, because a word has
 * one value of each. */
AVX512 static inline void store_back(uint32_t *to, const struct pack_shape *s, size_t group,
                                     size_t at, const __m512i r[LANES])
{
    size_t tiles = tiles_of(s, true);
    if (s->type == DTYPE_F32) {
        to += (at / 4 * tiles + group) * TILE_WORDS + at % 4 * LANES;
        for (int i = 0; i < LANES; i++, to += PACK_WIDTH)
            _mm512_storeu_si512(to, r[i]);
        return;
    }
    to += (at / 2 * tiles + group / 2) * TILE_WORDS + at % 2 * 2 * LANES;
    to += group % 2 * (LANES / 2) * PACK_WIDTH;
    uint16_t index[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++)
        index[i] = (uint16_t)(i / 2 + i % 2 * 2 * LANES);
    __m512i low = _mm512_loadu_si512(index), high = _mm512_add_epi16(low, _mm512_set1_epi16(LANES));
    for (int i = 0; i < LANES; i += 2, to += PACK_WIDTH) {
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(r[i], low, r[i + 1]));
        _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(r[i], high, r[i + 1]));
    }
}

AVX512 static void block_rows(void *to, const struct pack_shape *s, bool back, const void *rows,
                              size_t group)
{
    size_t ld = pack_ld(s) / (s->type == DTYPE_F32 ? 1 : 2), tiles = tiles_of(s, back);
    uint32_t *panel = (uint32_t *)to + group / 4 * tiles * TILE_WORDS + group % 4 * LANES;
    const uint32_t *from = rows;
    __m512i r[LANES];
    for (size_t at = 0; at < (back ? ld / LANES : tiles); at++, from += LANES) {
        for (size_t i = 0; i < LANES; i++)
            r[i] = _mm512_loadu_si512(from + i * ld);
        if (back) {
            store_back(to, s, group, at, r);
            continue;
        }
        transpose(r);
        for (int i = 0; i < LANES; i++)
            _mm512_storeu_si512(panel + at * TILE_WORDS + i * PACK_WIDTH, r[i]);
    }
}

AVX512 static void block_turn(void *back, const struct pack_shape *s, const void *forward,
                              size_t block)
{
    size_t across = up(s->k, PACK_WIDTH), step = PACK_WIDTH / tile_depth_of(s);
    size_t at = block % across * step, end = at + step, tiles = tiles_of(s, false);
    size_t first = block / across * 4, last = first + 4, groups = pack_groups(s, true);
    __m512i r[LANES];
    for (; at < end; at++)
        for (size_t group = first; group < last && group < groups; group++) {
            const uint32_t *tile = (const uint32_t *)forward +
                                   (group / 4 * tiles + at) * TILE_WORDS + group % 4 * LANES;
            for (int i = 0; i < LANES; i++)
                r[i] =
                    at < tiles ? _mm512_loadu_si512(tile + i * PACK_WIDTH) : _mm512_setzero_si512();
            transpose(r);
            store_back(back, s, group, at, r);
        }
}

/* to (cols, rows) = transpose of from (rows, cols); distances between rows in values. */
static void turn_plain(void *to, size_t to_ld, const void *from, size_t from_ld, size_t rows,
                       size_t cols, bool wide)
{
    for (size_t j = 0; j < cols; j++)
        for (size_t i = 0; i < rows; i++)
            if (wide)
                ((uint32_t *)to)[j * to_ld + i] = ((const uint32_t *)from)[i * from_ld + j];
            else
                ((uint16_t *)to)[j * to_ld + i] = ((const uint16_t *)from)[i * from_ld + j];
}

void pack_rows(void *to, const struct pack_shape *s, bool back, const void *rows, size_t group)
{
    if (s->blocked) {
        block_rows(to, s, back, rows, group);
        return;
    }
    size_t row = group * PACK_ROWS, size = value_bytes(s), ld = pack_ld(s);
    size_t count = s->n - row < PACK_ROWS ? s->n - row : PACK_ROWS;
    if (!back) {
        turn_plain((char *)to + row * size, s->n, rows, ld, count, s->k, s->type == DTYPE_F32);
        return;
    }
    for (size_t i = 0; i < count; i++)
        memcpy((char *)to + (row + i) * s->k * size, (const char *)rows + i * ld * size,
               s->k * size);
}

/* A block is 64 x 64 values of W, so that whole cache lines are read and written. */
size_t pack_blocks(const struct pack_shape *s)
{
    return up(s->n, PACK_WIDTH) * up(s->k, PACK_WIDTH);
}

void pack_turn(void *back, const struct pack_shape *s, const void *forward, size_t block)
{
    if (s->blocked) {
        block_turn(back, s, forward, block);
        return;
    }
    size_t across = up(s->k, PACK_WIDTH), size = value_bytes(s);
    size_t row = block / across * PACK_WIDTH, col = block % across * PACK_WIDTH;
    size_t rows = s->n - row < PACK_WIDTH ? s->n - row : PACK_WIDTH;
    size_t cols = s->k - col < PACK_WIDTH ? s->k - col : PACK_WIDTH;
    turn_plain((char *)back + (row * s->k + col) * size, s->k,
               (const char *)forward + (col * s->n + row) * size, s->n, cols, rows,
               s->type == DTYPE_F32);
}
