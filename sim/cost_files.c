#include "sim/cost_files.h"

#include "agg/algebra/sketch.h"
#include "agg/round/method_state.h"
#include "coordinator/run/run_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Stands for a digest, of which only the length counts. */
static const char digest_like[] =
    "0000000000000000000000000000000000000000000000000000000000000000";
_Static_assert(sizeof digest_like == DIGEST_TEXT_BYTES, "as long as a digest");

void cost_files_close(struct cost_files *f)
{
    arena_close(&f->arena);
    *f = (struct cost_files){0};
}

err cost_files_open(struct cost_files *out, const Fedlora__V1__RunConfig *config,
                    const Fedlora__V1__HelloRequest *modules)
{
    struct cost_files f = {.config = config,
                           .method = run_config_method(config),
                           .count = modules->n_modules,
                           .rank = run_config_rank_max(config)};
    err e;
    run_config_options(&f.options, config);
    TRY_OUT(e, arena_take(&f.module, &f.arena, f.count, sizeof *f.module));
    for (size_t i = 0; i < f.count; i++) {
        const Fedlora__V1__ModuleShape *m = modules->modules[i];
        f.module[i] = (struct method_module){.d_out = m->d_out, .d_in = m->d_in};
        TRY_OUT(e, arena_text(&f.module[i].name, &f.arena, m->name, strlen(m->name)));
    }
    TRY_OUT(e, method_options_text(&f.options_text, &f.options, &f.arena));
    TRY_OUT(e, method_state_modules(&f.modules_text, f.module, f.count, &f.arena));
    f.bound = cost_files_carry(&f, 2, 2) > 0;
    *out = f;
    return ERR_NONE;
out:
    cost_files_close(&f);
    return e;
}

err cost_files_give(struct cost_files *f, const char *path)
{
    struct adapter_file file = {0};
    err e = ERR_NONE;
    TRY(adapter_file_map(&file, path));
    TRY_OUT(e, arena_take(&f->given_rank, &f->arena, f->count, sizeof *f->given_rank));
    f->given_bytes = file.tensors.map.size;
    for (size_t i = 0; i < f->count; i++) {
        const struct adapter_file_module *m = adapter_file_find(&file, f->module[i].name);
        if (!m) {
            e = err_make(ERR_INPUT, "%s: module %s is missing", path, f->module[i].name);
            goto out;
        }
        f->given_rank[i] = m->rank;
    }
out:
    adapter_file_close(&file);
    return e;
}

/* ---- shapes ---- */

static bool square(const struct cost_files *f)
{
    return f->method->factors(1) & METHOD_R;
}

static uint32_t least(const struct method_module *m)
{
    return m->d_out < m->d_in ? m->d_out : m->d_in;
}

static bool finds_basis(const struct cost_files *f, uint32_t round)
{
    return round <= method_setup_rounds(&f->options);
}

/* The rank of a module's own factors in the state of a round; 0: it has none. Frozen factors are
 * orthonormal, so a small module has fewer of them. */
static uint32_t state_rank(const struct cost_files *f, size_t i, uint32_t round)
{
    const struct method_module *m = &f->module[i];
    const struct basis_shape shape = {.d_out = m->d_out, .d_in = m->d_in, .r = f->rank};
    if (finds_basis(f, round)) return sketch_width(&shape);
    if (f->method->fresh) return 0;
    if (!f->method->frozen) return f->rank;
    return f->given_rank ? f->given_rank[i] : sketch_rank(&shape);
}

static void set(struct adapter_file_module *m, enum adapter_file_role role, uint32_t rows,
                uint32_t cols)
{
    m->factor[role] = (struct adapter_file_factor){.rows = rows, .cols = cols};
}

static void set_factors(struct adapter_file_module *out, const struct method_module *m,
                        uint32_t rank, unsigned factors)
{
    *out = (struct adapter_file_module){.name = m->name, .rank = rank};
    if (!rank) return;
    if (factors & METHOD_A) set(out, ADAPTER_FILE_A, rank, m->d_in);
    if (factors & METHOD_B) set(out, ADAPTER_FILE_B, m->d_out, rank);
    if (factors & METHOD_R) set(out, ADAPTER_FILE_R, rank, rank);
}

static err measure(struct cost_size *out, const struct adapter_file_meta *meta,
                   const struct adapter_file_module *module, size_t count)
{
    struct cost_size size = {0};
    TRY(adapter_file_bytes(&size.bytes, &size.values, meta, module, count));
    *out = size;
    return ERR_NONE;
}

/* ---- updates ---- */

/* As in engine/member/member_adapter.c: with frozen factors, or at the state's rank, the alpha of
 * the state stays. */
static double alpha_of(const struct cost_files *f, const struct member_round *r, uint32_t rank,
                       uint32_t of_state)
{
    double whole = square(f) ? f->rank : run_config_alpha(f->config, NULL, f->rank);
    if (f->method->fresh || (rank == r->rank && rank != of_state && !f->method->frozen))
        return r->alpha;
    return whole;
}

static err update_size(struct cost_size *out, const struct cost_files *f,
                       const struct member_round *r)
{
    struct adapter_file_module *module = NULL;
    struct arena arena = {0};
    bool small = (r->trains & METHOD_R) != 0;
    bool frozen = f->method->frozen && !finds_basis(f, r->round);
    uint32_t most = 0, first = 0, first_of_state = 0;
    size_t count = 0;
    TRY(arena_take(&module, &arena, f->count, sizeof *module));
    for (size_t i = 0; i < f->count; i++) {
        uint32_t own = state_rank(f, i, r->round), rank = own;
        if (!member_round_adapts(r, f->module[i].name)) continue;
        if (f->method->fresh || (r->rank && r->rank < own && !r->gradient)) rank = r->rank;
        if (!count) first = rank, first_of_state = own;
        set_factors(&module[count++], &f->module[i], rank, r->trains);
        if (rank > most) most = rank;
    }
    const struct adapter_file_meta meta = {
        .kind = ADAPTER_FILE_UPDATE,
        .run = f->config->name,
        .round = r->round,
        .method = f->method->name,
        .base = digest_like,
        .member = r->member,
        .frozen = frozen ? digest_like : "",
        .rank = frozen && !small ? f->rank : most,
        .rslora = f->method->fresh ? r->rslora : f->config->rslora && !square(f),
        .alpha = small ? f->rank : alpha_of(f, r, first, first_of_state)};
    err e = measure(out, &meta, module, count);
    arena_close(&arena);
    return e;
}

/* Most members of a run have one of a few ranks, and names of equal length. */
err cost_files_update(struct cost_size *out, struct cost_files *f, const struct member_round *r)
{
    const struct cost_files_kept key = {.adapts = r->adapts_count ? r->adapts : NULL,
                                        .rank = r->rank,
                                        .round_digits = (uint32_t)snprintf(NULL, 0, "%u", r->round),
                                        .trains = r->trains,
                                        .member_bytes = strlen(r->member),
                                        .alpha = r->alpha,
                                        .gradient = r->gradient,
                                        .rslora = r->rslora};
    for (size_t i = 0; i < f->kept_count; i++) {
        const struct cost_files_kept *k = &f->kept[i];
        if (k->adapts != key.adapts || k->rank != key.rank || k->trains != key.trains ||
            k->round_digits != key.round_digits || k->member_bytes != key.member_bytes ||
            k->alpha != key.alpha || k->gradient != key.gradient || k->rslora != key.rslora)
            continue;
        *out = k->size;
        return ERR_NONE;
    }
    TRY(update_size(out, f, r));
    size_t at = f->kept_count < COST_FILES_KEPT ? f->kept_count++ : COST_FILES_KEPT - 1;
    f->kept[at] = key;
    f->kept[at].size = *out;
    return ERR_NONE;
}

/* ---- states ---- */

uint64_t cost_files_carry(const struct cost_files *f, uint64_t ranks, size_t members)
{
    if (!f->method->carries || !members) return 0;
    if (f->method->fresh) return ranks;
    /* fedex: the members' differences from their mean. */
    if (f->method->exact) return ranks - ranks / members;
    return f->options.tail == METHOD_TAIL_CARRY ? ranks : 0;
}

/* fedlora.dropped has at most this many bytes a module beside the name. */
static err dropped_like(const char **out, const struct cost_files *f, struct arena *arena)
{
    static const double longest = -1.2345678901234567e-308;
    json_t *map = json_object();
    char *text = NULL;
    bool fine = map != NULL;
    for (size_t i = 0; i < f->count && fine; i++)
        fine = json_object_set_new(map, f->module[i].name, json_real(-longest)) == 0;
    if (fine) text = json_dumps(map, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    err e = text ? arena_text(out, arena, text, strlen(text))
                 : err_make(ERR_MACHINE, "no memory for a plan");
    free(text);
    json_decref(map);
    return e;
}

/* The factors of a state. In the rounds that find a basis it has A and B of the sketch; later the
 * factors that train beside frozen ones, or a pair. */
static unsigned state_factors(const struct cost_files *f, uint32_t round)
{
    if (finds_basis(f, round) || !f->method->frozen) return METHOD_A | METHOD_B;
    return square(f) ? METHOD_R : METHOD_B;
}

static bool set_state(struct adapter_file_module *module, const struct cost_files *f,
                      uint32_t round, const uint64_t *carried)
{
    bool any = false;
    for (size_t i = 0; i < f->count; i++) {
        const struct method_module *m = &f->module[i];
        uint64_t carry = carried && carried[i] < least(m) ? carried[i] : least(m);
        set_factors(&module[i], m, state_rank(f, i, round), state_factors(f, round));
        if (!carried || !carry) continue;
        any = true;
        set(&module[i], ADAPTER_FILE_CARRY_A, (uint32_t)carry, m->d_in);
        set(&module[i], ADAPTER_FILE_CARRY_B, m->d_out, (uint32_t)carry);
    }
    return any;
}

err cost_files_state(struct cost_size *out, struct cost_files *f, uint32_t round,
                     const uint64_t *carried)
{
    uint32_t setup = method_setup_rounds(&f->options);
    struct adapter_file_module *module = NULL;
    struct arena arena = {0};
    bool memory = f->options.server != METHOD_SERVER_NONE && round > setup + 1;
    err e;
    TRY_OUT(e, arena_take(&module, &arena, f->count, sizeof *module));
    struct adapter_file_meta meta = {
        .kind = ADAPTER_FILE_STATE,
        .run = f->config->name,
        .round = round,
        .method = f->method->name,
        .base = digest_like,
        .frozen = f->method->frozen && round > setup ? digest_like : "",
        .rank = f->rank,
        .rslora = f->config->rslora && !square(f),
        .alpha = square(f) ? f->rank : run_config_alpha(f->config, NULL, f->rank),
        .options = f->options_text,
        .modules = f->modules_text,
        .memory = memory ? digest_like : ""};
    if (set_state(module, f, round, carried) && f->config->carry_error > 0)
        TRY_OUT(e, dropped_like(&meta.dropped, f, &arena));
    e = measure(out, &meta, module, f->count);
out:
    arena_close(&arena);
    return e;
}

err cost_files_frozen(struct cost_size *out, struct cost_files *f)
{
    struct adapter_file_module *module = NULL;
    struct arena arena = {0};
    const struct adapter_file_meta meta = {
        .kind = ADAPTER_FILE_FROZEN, .base = digest_like, .rank = f->rank, .alpha = f->rank};
    *out = (struct cost_size){0};
    if (!f->method->frozen) return ERR_NONE;
    TRY(arena_take(&module, &arena, f->count, sizeof *module));
    for (size_t i = 0; i < f->count; i++)
        set_factors(&module[i], &f->module[i],
                    state_rank(f, i, method_setup_rounds(&f->options) + 1),
                    square(f) ? METHOD_A | METHOD_B : METHOD_A);
    err e = measure(out, &meta, module, f->count);
    if (f->given_bytes) out->bytes = f->given_bytes;
    arena_close(&arena);
    return e;
}
