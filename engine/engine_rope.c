/* Tables of rotation angles, cos(p f_i) and sin(p f_i) for the positions p of a row. The position
 * of a token in the backend's batch is its row in these tables.
 *
 * A table is a list of parts. The first part serves rows of every ordinary length. With longrope
 * and dynamic scaling the frequencies of longer rows depend on the row's own length, and each
 * variant of them has a part of its own behind the first one. Generated tokens belong to a row of
 * the length that the cache has room for, so that all keys of a cache have the same frequencies. */
#include "engine/pass.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STEP = 256 }; /* parts grow by so many positions */

static size_t steps(size_t positions)
{
    return (positions + STEP - 1) / STEP * STEP;
}

static size_t tables_of(const struct engine *e)
{
    return model_rotates_apart(e->model) ? 2 : 1;
}

static const struct rope *rope_of(const struct engine *e, size_t table)
{
    return table ? &e->model->arch.window_rope : &e->model->arch.rope;
}

static size_t half_of(const struct engine *e)
{
    return model_rotated(&e->model->arch) / 2;
}

/* The part of a row with so many positions. */
static struct angle_part part_for(const struct engine *e, size_t positions)
{
    struct angle_part p = {.positions = (uint32_t)positions, .rows = positions};
    for (size_t table = 0; table < 2; table++)
        p.variant[table] = model_rope_variant(rope_of(e, table), p.positions);
    return p;
}

static bool is_ordinary(const struct angle_part *p)
{
    return p->variant[0] == 0 && p->variant[1] == 0;
}

static const struct angle_part *find_part(const struct angles *a, const struct angle_part *want)
{
    for (size_t i = 0; i < a->parts; i++)
        if (!memcmp(a->part[i].variant, want->variant, sizeof want->variant) &&
            a->part[i].rows >= want->rows)
            return &a->part[i];
    return NULL;
}

/* The angle is the float32 product of position and frequency, as in PyTorch; only the cosine of
 * that rounded angle is computed in double. */
static err fill_part(struct engine *e, const struct angles *a, const struct angle_part *p)
{
    size_t half = half_of(e), rows = p->rows, n = rows * half;
    float *host = malloc((2 * n + half) * sizeof(float));
    if (!host) return err_sys(ENOMEM, "engine: %zu positions", rows);
    float *frequency = host + 2 * n;
    for (size_t table = 0; table < a->tables; table++) {
        float factor = model_rope_frequencies(frequency, rope_of(e, table), (uint32_t)(2 * half),
                                              is_ordinary(p) ? 0 : p->positions);
        for (size_t i = 0; i < n; i++) {
            float angle = (float)(i / half) * frequency[i % half];
            host[i] = (float)cos((double)angle) * factor;
            host[n + i] = (float)sin((double)angle) * factor;
        }
        for (size_t side = 0; side < 2; side++)
            e->be->copy_in(e->ctx, a->memory + ((2 * table + side) * a->rows + p->first) * half,
                           host + side * n, n * sizeof(float));
    }
    free(host);
    return ERR_NONE;
}

/* Appends parts for which there is room. */
static err append(struct engine *e, struct angles *a, const struct angle_part *want, size_t wants)
{
    struct angle_part *part = realloc(a->part, (a->parts + wants) * sizeof *part);
    if (!part) return err_sys(ENOMEM, "engine");
    a->part = part;
    for (size_t i = 0; i < wants; i++) {
        struct angle_part p = want[i];
        p.first = a->used;
        TRY(fill_part(e, a, &p));
        a->part[a->parts++] = p;
        a->used += p.rows;
    }
    return ERR_NONE;
}

/* Makes new tables of these parts alone. On failure the old tables stay in use. */
static err replace(struct engine *e, const struct angle_part *want, size_t wants)
{
    struct angles a = {.tables = tables_of(e)};
    for (size_t i = 0; i < wants; i++)
        a.rows += want[i].rows;
    TRY(e->be->memory_take(&a.memory, e->ctx, 2 * a.tables * a.rows * half_of(e) * sizeof(float)));
    err er = append(e, &a, want, wants);
    struct angles *old = err_is(er) ? &a : &e->angles;
    if (old->memory) e->be->memory_give(e->ctx, old->memory);
    free(old->part);
    if (!err_is(er)) e->angles = a;
    return er;
}

void engine_close_angles(struct engine *e)
{
    if (e->angles.memory) e->be->memory_give(e->ctx, e->angles.memory);
    free(e->angles.part);
    e->angles = (struct angles){0};
}

uint64_t engine_angle_bytes(const struct engine *e, const struct pass_size *s)
{
    struct angle_part longest = part_for(e, s->positions);
    uint64_t rows = steps(s->positions) + (is_ordinary(&longest) ? 0 : s->tokens);
    return rows * tables_of(e) * 2 * half_of(e) * sizeof(float);
}

err engine_reserve_positions(struct engine *e, size_t positions)
{
    struct angle_part want = {.rows = steps(positions)};
    return positions == 0 || find_part(&e->angles, &want) ? ERR_NONE : replace(e, &want, 1);
}

static size_t row_positions(const struct batch *b, size_t row)
{
    return b->cache ? b->cache[row]->capacity : b->start[row + 1] - b->start[row];
}

/* Adds a part to a list without repetition. */
static size_t add_want(struct angle_part *want, size_t wants, const struct angle_part *p)
{
    size_t i = 0;
    while (i < wants && memcmp(want[i].variant, p->variant, sizeof p->variant))
        i++;
    if (i == wants) want[wants++] = *p;
    if (want[i].rows < p->rows) want[i].rows = p->rows;
    return wants;
}

/* The parts that the rows of a batch need: in place if they are there or fit behind the others,
 * else in new tables, which keep the first part. */
static err reserve_parts(struct engine *e, const struct angle_part *want, size_t wants)
{
    struct angles *a = &e->angles;
    size_t missing = 0;
    for (size_t i = 0; i < wants; i++)
        missing += find_part(a, &want[i]) ? 0 : want[i].rows;
    if (a->used + missing > a->rows) return replace(e, want, wants);
    for (size_t i = 0; i < wants; i++)
        if (!find_part(a, &want[i])) TRY(append(e, a, &want[i], 1));
    return ERR_NONE;
}

/* The first part is wanted by every batch, because engine_reserve_positions() has been called for
 * it. */
err engine_place_rows(uint32_t **out, struct engine *e, struct batch *b)
{
    struct angle_part *want;
    size_t wants = 0;
    bool ordinary = true;
    *out = b->position;
    for (size_t i = 0; i < b->rows && ordinary; i++) {
        struct angle_part p = part_for(e, row_positions(b, i));
        ordinary = is_ordinary(&p);
    }
    if (ordinary) return ERR_NONE;
    TRY(arena_take(out, &b->arena, b->tokens, sizeof **out));
    TRY(arena_take(&want, &b->arena, b->rows + 1, sizeof *want));
    want[wants++] = (struct angle_part){.rows = steps(b->positions)};
    for (size_t i = 0; i < b->rows; i++) {
        struct angle_part p = part_for(e, row_positions(b, i));
        wants = add_want(want, wants, &p);
    }
    TRY(reserve_parts(e, want, wants));
    for (size_t i = 0; i < b->rows; i++) {
        struct angle_part p = part_for(e, row_positions(b, i));
        const struct angle_part *part = find_part(&e->angles, &p);
        REQUIRE(part);
        for (uint32_t t = b->start[i]; t < b->start[i + 1]; t++)
            (*out)[t] = b->position[t] + (uint32_t)part->first;
    }
    return ERR_NONE;
}

struct rope_shape engine_rotation(const struct engine *e, uint32_t layer)
{
    const struct angles *a = &e->angles;
    size_t half = half_of(e), table = a->tables > 1 && e->model->layer[layer].window > 0;
    const float *cosine = a->memory + 2 * table * a->rows * half;
    return (struct rope_shape){.head_dim = e->model->arch.head_dim,
                               .rotary_dim = 2 * half,
                               .cos = cosine,
                               .sin = cosine + a->rows * half};
}
