#include "client/session_train.h"

#include "agg/method.h"
#include "base/digest.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

err session_trains(unsigned *out, char *const *word, size_t count)
{
    unsigned trains = 0;
    for (size_t i = 0; i < count; i++) {
        const char *w = word[i];
        unsigned bit = strcmp(w, "A") == 0   ? (unsigned)ADAPTER_A
                       : strcmp(w, "B") == 0 ? (unsigned)ADAPTER_B
                       : strcmp(w, "R") == 0 ? (unsigned)ADAPTER_R
                                             : 0u;
        if (bit == 0)
            return err_make(ERR_INPUT,
                            "the coordinator asks to train \"%.40s\"; this program knows A, B, R",
                            w);
        trains |= bit;
    }
    if (trains == 0) return err_make(ERR_INPUT, "the coordinator's task has nothing to train");
    *out = trains;
    return ERR_NONE;
}

/* ---------------------------------------------------------------- the state as an adapter */

static err check_state(const struct adapter_file *state, const struct session_round *r)
{
    const struct adapter_file_meta *meta = &state->meta;
    if (strcmp(meta->base, r->base) != 0)
        return err_make(ERR_INPUT,
                        "the state of round %u is for the base %.16s..., ours is %.16s...",
                        r->round, meta->base, r->base);
    if (strcmp(meta->run, r->run) != 0)
        return err_make(ERR_INPUT, "the state of round %u is of run \"%s\", expected \"%s\"",
                        r->round, meta->run, r->run);
    return ERR_NONE;
}

/* The rank a module is trained with: all of the state's R or factors, or the leading part of it. */
static uint32_t rank_of(const struct adapter_file_module *m, const struct session_round *r,
                        bool fresh)
{
    if (fresh) return r->rank;
    return r->rank != 0 && r->rank < m->rank ? r->rank : m->rank;
}

static bool has(const struct adapter_file_module *m, enum adapter_file_role role)
{
    return m->factor[role].rows != 0;
}

/* A member that trains only the leading block of R keeps the rest of it frozen: it is B (R - block)
 * A, which is a carry of R's whole rank. */
static bool has_rest(const struct adapter_file_module *m, uint32_t rank)
{
    return has(m, ADAPTER_FILE_R) && rank < m->rank;
}

static err module_spec(struct adapter_spec *out, const struct adapter_file_module *m,
                       const struct arch *arch, const struct session_round *r, bool fresh)
{
    uint32_t layer = 0, d_out = 0, d_in = 0, rank = rank_of(m, r, fresh);
    enum module_kind kind = MODULE_Q;
    TRY(model_module_parse(&layer, &kind, m->name));
    model_module_shape(&d_out, &d_in, arch, kind);
    if (layer >= arch->layers || m->d_out != d_out || m->d_in != d_in)
        return err_make(ERR_INPUT, "the state's module %s is (%u, %u), this base's is (%u, %u)",
                        m->name, m->d_out, m->d_in, d_out, d_in);
    if (rank == 0 || rank > LIMIT_RANK)
        return err_make(ERR_INPUT, "the state has no factors to train for module %s", m->name);
    bool small = has(m, ADAPTER_FILE_R);
    double scale = small ? m->scale : r->rslora ? r->alpha / sqrt(rank) : r->alpha / rank;
    if (!isfinite(scale) || scale == 0)
        return err_make(ERR_INPUT, "module %s: alpha %g and rank %u make no scale", m->name,
                        r->alpha, rank);
    *out = (struct adapter_spec){
        .layer = layer, .kind = kind, .rank = rank, .small_matrix = small, .scale = scale};
    out->carry_rank = m->carry_rank + (has_rest(m, rank) ? m->rank : 0);
    return ERR_NONE;
}

/* out (rows, out_cols) = the leading corner of in (.., in_cols); an absent factor is zero. */
static void copy_corner(float *out, uint32_t rows, uint32_t out_cols,
                        const struct adapter_file_factor *in)
{
    if (in->f32 == NULL) return;
    for (uint32_t i = 0; i < rows; i++)
        memcpy(out + (size_t)i * out_cols, in->f32 + (size_t)i * in->cols, out_cols * sizeof *out);
}

/* carry_B [:, at..] = s B (R with its leading (rank, rank) block zeroed), carry_A [at.., :] = A. */
static void fill_rest(struct adapter_module *to, const struct adapter_file_module *m, uint32_t rank)
{
    const float *b = m->factor[ADAPTER_FILE_B].f32, *rr = m->factor[ADAPTER_FILE_R].f32;
    uint32_t whole = m->rank, at = m->carry_rank;
    memcpy(to->carry_a + (size_t)at * m->d_in, m->factor[ADAPTER_FILE_A].f32,
           (size_t)whole * m->d_in * sizeof *to->carry_a);
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < whole; j++) {
            double sum = 0;
            for (uint32_t k = 0; k < whole; k++)
                if (k >= rank || j >= rank)
                    sum += (double)b[(size_t)i * whole + k] * rr[(size_t)k * whole + j];
            to->carry_b[(size_t)i * to->carry_rank + at + j] = (float)(m->scale * sum);
        }
}

static void fill_module(struct adapter_module *to, const struct adapter_file_module *m,
                        const struct session_round *r, bool fresh)
{
    const struct adapter_file_factor *carry_b = &m->factor[ADAPTER_FILE_CARRY_B];
    if (fresh) {
        const struct method_fresh key = {.seed = r->seed,
                                         .run = r->run,
                                         .member = r->member,
                                         .module = m->name,
                                         .round = r->round};
        method_fresh_a(to->a, to->rank, to->d_in, &key);
    } else {
        copy_corner(to->a, to->rank, to->d_in, &m->factor[ADAPTER_FILE_A]);
        copy_corner(to->b, to->d_out, to->rank, &m->factor[ADAPTER_FILE_B]);
        if (to->r != NULL) copy_corner(to->r, to->rank, to->rank, &m->factor[ADAPTER_FILE_R]);
    }
    if (m->carry_rank > 0) {
        memcpy(to->carry_a, m->factor[ADAPTER_FILE_CARRY_A].f32,
               (size_t)m->carry_rank * m->d_in * sizeof *to->carry_a);
        for (uint32_t i = 0; i < m->d_out; i++)
            memcpy(to->carry_b + (size_t)i * to->carry_rank,
                   carry_b->f32 + (size_t)i * m->carry_rank, m->carry_rank * sizeof *to->carry_b);
    }
    if (!fresh && has_rest(m, to->rank)) fill_rest(to, m, to->rank);
}

static err build(struct session_adapter *a, const struct arch *arch, const struct session_round *r,
                 struct arena *arena)
{
    const struct method *method = method_find(r->method);
    if (method == NULL)
        return err_make(ERR_INPUT, "this program does not know the method \"%.60s\"", r->method);
    struct adapter_spec *spec = NULL;
    TRY(arena_take(&spec, arena, a->state.count, sizeof *spec));
    for (size_t i = 0; i < a->state.count; i++)
        TRY(module_spec(&spec[i], &a->state.module[i], arch, r, method->fresh));
    TRY(adapter_open(&a->adapter, arch, spec, a->state.count, r->trains));
    for (size_t i = 0; i < a->state.count; i++) {
        struct adapter_module *to = adapter_find(&a->adapter, spec[i].layer, spec[i].kind);
        REQUIRE(to != NULL);
        fill_module(to, &a->state.module[i], r, method->fresh);
    }
    return ERR_NONE;
}

err session_adapter_open(struct session_adapter *out, const struct arch *arch,
                         const struct session_round *r)
{
    struct session_adapter a = {0};
    struct arena arena = {0};
    err e;
    TRY_OUT(e, adapter_file_open(&a.state, r->state_path));
    TRY_OUT(e, check_state(&a.state, r));
    if (r->frozen_path != NULL) {
        TRY_OUT(e, adapter_file_open(&a.frozen, r->frozen_path));
        TRY_OUT(e, adapter_file_join(&a.state, &a.frozen, r->frozen_digest));
    }
    if (adapter_file_needs_frozen(&a.state)) {
        e = err_make(ERR_INPUT,
                     "the state of round %u needs frozen factors that the task does not name",
                     r->round);
        goto out;
    }
    TRY_OUT(e, build(&a, arch, r, &arena));
    *out = a;
    a = (struct session_adapter){0};
out:
    arena_close(&arena);
    session_adapter_close(&a);
    return e;
}

void session_adapter_close(struct session_adapter *a)
{
    adapter_close(&a->adapter);
    adapter_file_close(&a->state);
    adapter_file_close(&a->frozen);
    *a = (struct session_adapter){0};
}

/* ---------------------------------------------------------------- the update */

static void set_factor(struct adapter_file_module *m, enum adapter_file_role role,
                       const float *value, uint32_t rows, uint32_t cols)
{
    m->factor[role] = (struct adapter_file_factor){.f32 = value, .rows = rows, .cols = cols};
}

err session_update_write(const char *path, const struct session_adapter *a,
                         const struct session_round *r)
{
    struct arena arena = {0};
    struct adapter_file_module *module = NULL;
    uint32_t most = 0;
    TRY(arena_take(&module, &arena, a->state.count, sizeof *module));
    for (size_t i = 0; i < a->state.count; i++) {
        const struct adapter_file_module *from = &a->state.module[i];
        uint32_t layer = 0;
        enum module_kind kind = MODULE_Q;
        err e = model_module_parse(&layer, &kind, from->name);
        REQUIRE(!err_is(e)); /* it was when the adapter was made */
        const struct adapter_module *m = adapter_find(&a->adapter, layer, kind);
        module[i] = (struct adapter_file_module){.name = from->name,
                                                 .d_out = m->d_out,
                                                 .d_in = m->d_in,
                                                 .rank = m->rank,
                                                 .scale = m->scale};
        module[i].alpha = m->r != NULL ? from->alpha : r->alpha;
        if (r->trains & ADAPTER_A) set_factor(&module[i], ADAPTER_FILE_A, m->a, m->rank, m->d_in);
        if (r->trains & ADAPTER_B) set_factor(&module[i], ADAPTER_FILE_B, m->b, m->d_out, m->rank);
        if (r->trains & ADAPTER_R) set_factor(&module[i], ADAPTER_FILE_R, m->r, m->rank, m->rank);
        if (m->rank > most) most = m->rank;
    }
    bool small = (r->trains & ADAPTER_R) != 0;
    const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                           .run = r->run,
                                           .round = r->round,
                                           .method = r->method,
                                           .base = r->base,
                                           .member = r->member,
                                           .frozen = r->frozen_digest,
                                           .rank = most,
                                           .rslora = r->rslora,
                                           .alpha = small ? a->state.meta.alpha : r->alpha};
    err e = adapter_file_write(path, &meta, module, a->state.count, /*replace*/ true);
    arena_close(&arena);
    return e;
}

/* ---------------------------------------------------------------- options */

static err choose_schedule(enum train_schedule *out, const char *word)
{
    static const char *const words[] = {"constant", "linear", "cosine"};
    static const enum train_schedule schedule[] = {TRAIN_CONSTANT, TRAIN_LINEAR, TRAIN_COSINE};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(word, words[i]) == 0) {
            *out = schedule[i];
            return ERR_NONE;
        }
    return word[0] == 0
               ? ERR_NONE
               : err_make(ERR_INPUT,
                          "the run's schedule \"%.40s\": expected constant, linear or cosine",
                          word);
}

static uint64_t order_seed(const struct session_round *r)
{
    char text[3 * LIMIT_NAME_BYTES];
    int length = snprintf(text, sizeof text, "fedlora.order %llu %s %s %u",
                          (unsigned long long)r->seed, r->run, r->member, r->round);
    struct digest d = digest_of(text, (size_t)length);
    uint64_t seed = 0;
    for (int i = 0; i < 8; i++)
        seed |= (uint64_t)d.byte[i] << (8 * i);
    return seed;
}

err session_train_options(struct train_options *out, const Fedlora__V1__Training *t,
                          const struct session_round *r)
{
    struct train_options o = {0};
    train_defaults(&o);
    o.steps = t->steps;
    o.epochs = t->steps == 0 ? t->epochs : 0;
    if (t->batch != 0) o.batch = t->batch;
    if (t->accumulate != 0) o.accumulate = t->accumulate;
    if (t->lr != 0) o.lr = t->lr;
    if (t->beta1 != 0) o.beta1 = t->beta1;
    if (t->beta2 != 0) o.beta2 = t->beta2;
    if (t->eps != 0) o.eps = t->eps;
    o.weight_decay = t->weight_decay;
    o.clip = t->clip;
    o.dropout = t->dropout;
    o.warmup = t->warmup;
    o.shuffle = !t->no_shuffle;
    o.seed = order_seed(r);
    TRY(choose_schedule(&o.schedule, t->schedule));
    const double number[] = {o.epochs, o.lr,  o.weight_decay, o.beta1,
                             o.beta2,  o.eps, o.clip,         o.dropout};
    for (size_t i = 0; i < sizeof number / sizeof number[0]; i++)
        if (!isfinite(number[i]) || number[i] < 0)
            return err_make(ERR_INPUT,
                            "the run's training options hold %g; expected a number from 0 on",
                            number[i]);
    if (o.steps == 0 && o.epochs == 0)
        return err_make(ERR_INPUT, "the run's training options have neither steps nor epochs");
    if (o.beta1 >= 1 || o.beta2 >= 1 || o.dropout >= 1)
        return err_make(ERR_INPUT, "the run's beta1, beta2 and dropout must be below 1");
    *out = o;
    return ERR_NONE;
}
