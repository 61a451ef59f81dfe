/* The layouts of packed operands, against the description in the header. */
#include "kernels/cpu/cpu_pack.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Value (row, col) of an operand (depth, width), or 0 beyond it. `w` holds W (n, k). */
static uint32_t value_at(const uint32_t *w, const struct pack_shape *s, bool back, size_t row,
                         size_t col)
{
    size_t i = back ? row : col, j = back ? col : row;
    return i < s->n && j < s->k ? w[i * s->k + j] : 0;
}

/* The operand as the header describes it. */
static void expect(char *out, const uint32_t *w, const struct pack_shape *s, bool back)
{
    size_t depth = back ? s->n : s->k, width = back ? s->k : s->n, at = 0;
    size_t tile = s->type == DTYPE_F32 ? 16 : 32, pair = tile / 16;
    uint32_t *word = (uint32_t *)(void *)out;
    uint16_t *half = (uint16_t *)(void *)out;
    if (!s->blocked) tile = pair = 1;
    size_t panel = s->blocked ? PACK_WIDTH : width;
    for (size_t first = 0; first < width; first += panel)
        for (size_t row = 0; row < (depth + tile - 1) / tile * tile; row += pair)
            for (size_t col = first; col < first + panel; col++)
                for (size_t p = 0; p < pair; p++, at++) {
                    uint32_t v = value_at(w, s, back, row + p, col);
                    if (s->type == DTYPE_F32)
                        word[at] = v;
                    else
                        half[at] = (uint16_t)v;
                }
    cr_assert_eq(at * (s->type == DTYPE_F32 ? 4 : 2), pack_bytes(s, back));
}

static void write_rows(char *to, const uint32_t *w, const struct pack_shape *s, bool back)
{
    size_t ld = pack_ld(s), bytes = PACK_ROWS * ld * 4;
    char *rows = malloc(bytes);
    for (size_t group = 0; group < pack_groups(s, back); group++) {
        memset(rows, 0, bytes);
        for (size_t i = 0; i < PACK_ROWS * ld; i++) {
            uint32_t v = value_at(w, s, true, group * PACK_ROWS + i / ld, i % ld);
            if (s->type == DTYPE_F32)
                ((uint32_t *)(void *)rows)[i] = v;
            else
                ((uint16_t *)(void *)rows)[i] = (uint16_t)v;
        }
        pack_rows(to, s, back, rows, group);
    }
    free(rows);
}

static void check(const struct pack_shape *s)
{
    uint32_t *w = malloc(s->n * s->k * sizeof *w);
    size_t bytes[2] = {pack_bytes(s, false), pack_bytes(s, true)};
    char *have[2] = {malloc(bytes[0]), malloc(bytes[1])};
    char *want[2] = {malloc(bytes[0]), malloc(bytes[1])};
    for (size_t i = 0; i < s->n * s->k; i++)
        w[i] = (uint32_t)(i * 2654435761u + 1);
    for (int back = 0; back < 2; back++) {
        expect(want[back], w, s, back);
        memset(have[back], 0xff, bytes[back]);
        write_rows(have[back], w, s, back);
        cr_expect(!memcmp(have[back], want[back], bytes[back]), "(%zu, %zu) %s %s %s", s->n, s->k,
                  dtype_name(s->type), s->blocked ? "blocked" : "plain", back ? "back" : "forward");
    }
    memset(have[1], 0xff, bytes[1]);
    for (size_t i = 0; i < pack_blocks(s); i++)
        pack_turn(have[1], s, have[0], i);
    cr_expect(!memcmp(have[1], want[1], bytes[1]), "(%zu, %zu) %s %s turned", s->n, s->k,
              dtype_name(s->type), s->blocked ? "blocked" : "plain");
    for (int back = 0; back < 2; back++) {
        free(have[back]);
        free(want[back]);
    }
    free(w);
}

static void check_sizes(bool blocked)
{
    static const size_t size[][2] = {{1, 1},   {1, 200},  {200, 1},  {16, 16},   {17, 33},
                                     {33, 17}, {64, 128}, {65, 129}, {100, 177}, {177, 100}};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        struct pack_shape s = {.n = size[i][0], .k = size[i][1], .blocked = blocked};
        s.type = DTYPE_F32;
        check(&s);
        s.type = DTYPE_BF16;
        check(&s);
    }
}

Test(cpu_pack, writes_and_turns_the_plain_layout)
{
    check_sizes(false);
}

Test(cpu_pack, writes_and_turns_the_blocked_layout)
{
    if (!pack_can_block()) cr_skip_test("the blocked layout needs AVX-512");
    check_sizes(true);
}
