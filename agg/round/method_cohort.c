/* Opening a round; contract in method_cohort.h. */
#include "agg/round/method_cohort.h"

#include "agg/round/method_state.h"
#include "base/digest.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of all updates together whose pages may stay in memory; the state with its companions may
 * hold as much again. Dropping pages is a system call and stops the other threads for a moment, so
 * the pages of a file are dropped when its share of this has been read, not after every module. The
 * bound is a target: the modules that threads are reading come on top of it. */
enum { HELD_BYTES = 64 << 20 };

/* At its first use the kernel maps this much of a file (fault_around_bytes), or all of a smaller
 * one. */
enum { AROUND_BYTES = 64 << 10 };

/* Up to this number of members, their factors of a module stay in memory until the module is
 * done. */
enum { HELD_MEMBERS = 4 };

struct method_sent { /* one module of one update; rank 0: not sent */
    uint32_t rank;
    double scale;
    const float *value[3]; /* A, B, R in the map; NULL: not sent */
};

/* An open update: only its map and the places of its factors, because thousands may be open. */
struct method_update {
    struct file_map map;
    struct method_sent *module; /* (state modules) */
    size_t held;                /* bytes that may be read before its pages are dropped */
    atomic_size_t read;         /* bytes since its pages were dropped */
};

void method_cohort_close(struct method_cohort *c)
{
    for (size_t i = 0; i < c->opened; i++)
        file_map_close(&c->update[i].map);
    adapter_file_close(&c->state);
    adapter_file_close(&c->frozen);
    adapter_file_close(&c->memory);
    json_decref(c->dropped);
    arena_close(&c->arena);
    *c = (struct method_cohort){0};
}

static int by_member(const void *a, const void *b)
{
    return strcmp((*(const struct contribution *const *)a)->member,
                  (*(const struct contribution *const *)b)->member);
}

static err weigh(struct method_cohort *c, const struct method_next *next)
{
    double sum = 0;
    c->count = next->count;
    TRY(arena_take(&c->member, &c->arena, c->count, sizeof *c->member));
    TRY(arena_take(&c->p, &c->arena, c->count, sizeof *c->p));
    TRY(arena_take(&c->update, &c->arena, c->count, sizeof *c->update));
    for (size_t i = 0; i < c->count; i++)
        c->member[i] = &next->contribution[i];
    if (c->count) qsort(c->member, c->count, sizeof *c->member, by_member);
    for (size_t i = 0; i < c->count; i++) {
        const struct contribution *x = c->member[i];
        if (!(x->weight > 0) || !isfinite(x->weight))
            return err_make(ERR_INPUT, "member %s: weight %g, expected a number above zero",
                            x->member, x->weight);
        if (i && strcmp(c->member[i - 1]->member, x->member) == 0)
            return err_make(ERR_INPUT, "member %s has two updates in one round", x->member);
        sum += x->weight;
    }
    for (size_t i = 0; i < c->count; i++)
        c->p[i] = c->member[i]->weight / sum;
    return isfinite(sum) ? ERR_NONE : err_make(ERR_INPUT, "the sum of the weights is not finite");
}

/* Keeps the map and the places of the factors, and frees the rest of the open file. */
static err update_open(struct method_update *out, struct method_cohort *c, const char *path)
{
    struct adapter_file file = {0};
    struct method_update u = {0};
    err e = ERR_NONE;
    TRY(adapter_file_map(&file, path));
    TRY_OUT(e, arena_take(&u.module, &c->arena, c->state.count, sizeof *u.module));
    for (size_t i = 0; i < c->state.count; i++) {
        const struct adapter_file_module *state = &c->state.module[i];
        const struct adapter_file_module *m = adapter_file_find(&file, state->name);
        if (!m) continue;
        if ((m->d_out && m->d_out != state->d_out) || (m->d_in && m->d_in != state->d_in)) {
            e = err_make(ERR_INPUT, "%s: module %s: its shape differs from the state's", path,
                         m->name);
            goto out;
        }
        u.module[i] = (struct method_sent){.rank = m->rank, .scale = m->scale};
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_R; r++) {
            if (m->factor[r].tensor && !m->factor[r].f32) {
                e = err_make(ERR_INPUT, "%s: tensor %s: expected aligned F32", path,
                             m->factor[r].tensor->name);
                goto out;
            }
            u.module[i].value[r] = m->factor[r].f32;
        }
    }
    u.map = file.tensors.map;
    file.tensors.map = (struct file_map){0};
    out->map = u.map;
    out->module = u.module;
out:
    adapter_file_close(&file);
    return e;
}

/* Opens the server optimizer's memory. Its digest must be the one that the state names, because
 * the memory of another round would silently give another result. */
static err open_memory(struct method_cohort *c, const struct method_next *next)
{
    const char *named = c->state.meta.memory;
    char text[DIGEST_TEXT_BYTES];
    struct digest digest;
    if (c->options.server != METHOD_SERVER_NONE && !next->memory_out)
        return err_make(ERR_INPUT, "no path is given for the server optimizer's memory");
    if (!named[0]) return ERR_NONE;
    if (!next->memory_path)
        return err_make(ERR_INPUT,
                        "%s: no file is given for its server optimizer's memory %.16s...",
                        c->state.path, named);
    TRY(digest_of_file(&digest, next->memory_path));
    digest_text(text, &digest);
    if (strcmp(text, named) != 0)
        return err_make(ERR_INPUT,
                        "%s is not the memory that %s names: digest %.16s..., expected %.16s...",
                        next->memory_path, c->state.path, text, named);
    TRY(adapter_file_map(&c->memory, next->memory_path));
    c->has_memory = true;
    return ERR_NONE;
}

/* Sets how many bytes of each update may be read before its pages are dropped. If all updates fit
 * into HELD_BYTES, there is no bound. Else each has an equal share; but a first read maps at least
 * AROUND_BYTES, or all of a smaller file, so the updates for which even this does not fit are
 * dropped after every module. Small files may fill half of the memory, because there may be very
 * many of them. */
static void share_memory(struct method_cohort *c)
{
    size_t all = 0, touched = 0;
    for (size_t i = 0; i < c->count; i++)
        all += c->update[i].map.size;
    for (size_t i = 0; i < c->count; i++) {
        struct method_update *u = &c->update[i];
        bool small = u->map.size < AROUND_BYTES;
        size_t most = small ? HELD_BYTES / 2 : HELD_BYTES;
        touched += small ? u->map.size : AROUND_BYTES;
        u->held = touched <= most ? HELD_BYTES / c->count : 1;
        if (all <= HELD_BYTES) u->held = SIZE_MAX;
    }
}

err method_cohort_open(struct method_cohort *out, const struct method *method,
                       const struct method_next *next, bool memory)
{
    struct method_cohort c = {0};
    err e = ERR_NONE;
    TRY_OUT(e, weigh(&c, next));
    TRY_OUT(e, arena_take(&c.read, &c.arena, 1, sizeof *c.read));
    TRY_OUT(e, adapter_file_map(&c.state, next->state_path));
    if (c.state.meta.kind != ADAPTER_FILE_STATE || strcmp(c.state.meta.method, method->name) != 0) {
        e = err_make(ERR_INPUT, "%s: expected a state of the method %s", next->state_path,
                     method->name);
        goto out;
    }
    TRY_OUT(e, method_options_read(&c.options, method, c.state.meta.options));
    method_task(&c.task, method, &c.options, c.state.meta.round ? c.state.meta.round : 1);
    if (memory) TRY_OUT(e, open_memory(&c, next));
    TRY_OUT(e, method_state_dropped_parse(&c.dropped, &c.state));
    if (method->frozen && next->frozen_path) {
        TRY_OUT(e, adapter_file_map(&c.frozen, next->frozen_path));
        c.has_frozen = true;
    }
    for (; c.opened < c.count; c.opened++) {
        e = update_open(&c.update[c.opened], &c, c.member[c.opened]->path);
        if (err_is(e)) {
            e = err_in(e, "member %s", c.member[c.opened]->member);
            goto out;
        }
    }
    share_memory(&c);
    *out = c;
    return ERR_NONE;
out:
    method_cohort_close(&c);
    return e;
}

/* A copy of the module with every factor as float32; factors stored otherwise are converted into
 * the arena. */
static err module_copy(struct adapter_file_module *out, const struct adapter_file_module *m,
                       struct arena *arena)
{
    *out = *m;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        if (out->factor[r].tensor)
            TRY(adapter_file_f32(&out->factor[r].f32, &out->factor[r], arena));
    return ERR_NONE;
}

static void sent_shapes(uint32_t rows[3], uint32_t cols[3], const struct adapter_file_module *state,
                        uint32_t rank)
{
    rows[ADAPTER_FILE_A] = rows[ADAPTER_FILE_R] = rank;
    cols[ADAPTER_FILE_B] = cols[ADAPTER_FILE_R] = rank;
    cols[ADAPTER_FILE_A] = state->d_in;
    rows[ADAPTER_FILE_B] = state->d_out;
}

static void view_sent(struct adapter_file_module *out, const struct adapter_file_module *state,
                      const struct method_sent *sent)
{
    uint32_t rows[3], cols[3];
    sent_shapes(rows, cols, state, sent->rank);
    *out = (struct adapter_file_module){.name = state->name,
                                        .d_out = state->d_out,
                                        .d_in = state->d_in,
                                        .rank = sent->rank,
                                        .scale = sent->scale};
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_R; r++)
        if (sent->value[r])
            out->factor[r] = (struct adapter_file_factor){
                .f32 = sent->value[r], .rows = rows[r], .cols = cols[r]};
}

static size_t factor_bytes(const struct adapter_file_module *m)
{
    size_t values = 0;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        values += (size_t)m->factor[r].rows * m->factor[r].cols;
    return values * sizeof(float);
}

/* Drops the whole map, not the module's part, because the kernel also maps pages around those that
 * were asked for (whole folios of megabytes since Linux 6).
 *
 * Several threads may call it for one file. The map is read-only and the file does not change, so
 * pages dropped while another thread reads them come back from the page cache with the same bytes.
 * Between the addition and the store another thread may drop the pages as well, or its addition may
 * be lost; then pages are dropped once too often, or one module per thread later. Results do not
 * depend on either. */
static void count_read(atomic_size_t *read, const struct file_map *map, size_t bytes, size_t most)
{
    if (atomic_fetch_add(read, bytes) + bytes < most) return;
    atomic_store(read, 0);
    file_map_drop(map, 0, map->size);
}

static void count_update(const struct method_cohort *c, size_t k,
                         const struct adapter_file_module *m)
{
    struct method_update *u = &c->update[k];
    count_read(&u->read, &u->map, factor_bytes(m), u->held);
}

/* A member's factors of one module have been read. */
static void done_with(const struct method_round *round, size_t k)
{
    if (round->update[k]) count_update(round->files, k, round->update[k]);
}

static err gather(struct method_view *s, struct method_round *round, const struct method_cohort *c,
                  size_t i)
{
    const char *name = c->state.module[i].name;
    TRY(arena_take(&s->copy, &s->arena, c->count, sizeof *s->copy));
    TRY(arena_take(&s->update, &s->arena, c->count, sizeof *s->update));
    TRY(module_copy(&s->state, &c->state.module[i], &s->arena));
    for (size_t k = 0; k < c->count; k++) {
        if (!c->update[k].module[i].rank) continue;
        view_sent(&s->copy[k], &s->state, &c->update[k].module[i]);
        s->update[k] = &s->copy[k];
    }
    const struct adapter_file_module *frozen =
        c->has_frozen ? adapter_file_find(&c->frozen, name) : NULL;
    if (frozen) {
        TRY(module_copy(&s->frozen, frozen, &s->arena));
        round->frozen = &s->frozen;
    }
    round->module = &s->state;
    round->update = s->update;
    round->p = c->p;
    round->count = c->count;
    /* Few members: methods read factors more than once, and dropping them between would only
     * cost. */
    if (c->count > HELD_MEMBERS) round->done = done_with;
    round->files = c;
    if (c->dropped) round->dropped = json_number_value(json_object_get(c->dropped, name));
    return ERR_NONE;
}

/* Counts a module of the state or of the frozen factors as read. The server optimizer's memory is
 * not counted: it is at most a few times as large, and its pages are dropped with the state's. */
static void count_state(const struct method_cohort *c, const struct adapter_file_module *m)
{
    size_t bytes = factor_bytes(m);
    if (atomic_fetch_add(c->read, bytes) + bytes < HELD_BYTES) return;
    atomic_store(c->read, 0);
    file_map_drop(&c->state.tensors.map, 0, c->state.tensors.map.size);
    if (c->has_frozen) file_map_drop(&c->frozen.tensors.map, 0, c->frozen.tensors.map.size);
    if (c->has_memory) file_map_drop(&c->memory.tensors.map, 0, c->memory.tensors.map.size);
}

err method_view_finite(const struct adapter_file_module *m)
{
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
        const struct adapter_file_factor *x = &m->factor[r];
        char name[LIMIT_TENSOR_NAME_BYTES];
        if (!x->f32) continue;
        adapter_file_tensor_name(name, m->name, (enum adapter_file_role)r);
        TRY(adapter_file_finite(x->f32, (size_t)x->rows * x->cols, name, 0));
    }
    return ERR_NONE;
}

err method_view_blame(const struct method_view *s, const struct method_cohort *c, err otherwise)
{
    for (size_t k = 0; k < c->count; k++) {
        err e = s->update[k] ? method_view_finite(s->update[k]) : ERR_NONE;
        if (err_is(e)) return err_in(e, "member %s", c->member[k]->member);
    }
    err e = method_view_finite(&s->state);
    return err_is(e) ? err_in(e, "%s", c->state.path) : otherwise;
}

err method_view_open(struct method_view *out, struct method_round *round,
                     const struct method_cohort *c, size_t i)
{
    err e = gather(out, round, c, i); /* `round` points into *out, so it is filled in place */
    if (err_is(e)) method_view_close(out, c);
    return e;
}

void method_view_close(struct method_view *view, const struct method_cohort *c)
{
    count_state(c, &view->state);
    if (view->frozen.rank) count_state(c, &view->frozen);
    for (size_t k = 0; k < c->count && view->update; k++)
        if (view->update[k]) count_update(c, k, view->update[k]);
    arena_close(&view->arena);
    *view = (struct method_view){0};
}
