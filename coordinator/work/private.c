#include "coordinator/work/private.h"

#include "agg/adapter/adapter_file.h"
#include "base/file.h"

#include <stdlib.h>
#include <string.h>

/* ---- the values that a round trains, as one list ---- */

/* Of one trained factor. */
struct shape {
    uint32_t rows, cols;
};

/* The part of a method that a round trains. */
struct task {
    struct method_task method;
    /* A round of training is planned while the state is still one that finds its basis. The factors
     * do not exist yet; they will have the run's rank. */
    bool before_basis;
};

static void task_of(struct task *out, const struct adapter_file *state, const struct method *method,
                    const struct method_options *options, uint32_t round)
{
    uint32_t setup = method_setup_rounds(options);
    method_task(&out->method, method, options, round);
    out->before_basis = state->meta.round <= setup && round > setup;
}

/* Shapes follow from the state, never from an update, because the number of coordinates is fixed by
 * the plan and must be the same in every round of a kind. */
static struct shape shape_of(const struct adapter_file *state, const struct adapter_file_module *m,
                             int role, bool before_basis)
{
    const struct adapter_file_factor *x = &m->factor[role];
    uint32_t least = m->d_out < m->d_in ? m->d_out : m->d_in;
    uint32_t r = m->rank && !before_basis ? m->rank : state->meta.rank;
    if (before_basis && r > least) r = least;
    if (x->tensor && !before_basis) return (struct shape){x->rows, x->cols};
    if (role == ADAPTER_FILE_A) return (struct shape){r, m->d_in};
    return (struct shape){role == ADAPTER_FILE_B ? m->d_out : r, r};
}

/* Roles after R (the carry) are never trained. */
static bool trains(const struct task *task, int role)
{
    static const unsigned flag[] = {METHOD_A, METHOD_B, METHOD_R};
    return role <= ADAPTER_FILE_R && (task->method.trains & flag[role]);
}

static uint64_t count_values(const struct adapter_file *state, const struct task *task)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < state->count; i++)
        for (int role = ADAPTER_FILE_A; role <= ADAPTER_FILE_R; role++) {
            struct shape s = shape_of(state, &state->module[i], role, task->before_basis);
            if (trains(task, role)) sum += (uint64_t)s.rows * s.cols;
        }
    return sum;
}

/* Noise is drawn for every coordinate of a round, and the plan is judged for the larger kind. */
static uint64_t largest(const struct adapter_file *state, const struct private_what *what,
                        uint32_t first, uint32_t last)
{
    uint64_t most = 0;
    for (uint32_t round = first; round <= last; round++) {
        struct task task;
        task_of(&task, state, what->method, what->options, round);
        uint64_t dim = count_values(state, &task);
        if (dim > most) most = dim;
    }
    return most;
}

err private_measure(struct private_dims *out, const char *state_path,
                    const struct private_what *what)
{
    struct adapter_file state = {0};
    uint32_t setup = method_setup_rounds(what->options);
    TRY(adapter_file_map(&state, state_path));
    /* At most two kinds of rounds alternate (rolora trains A and B in turn). */
    *out = (struct private_dims){.training = largest(&state, what, setup + 1, setup + 2),
                                 .basis = largest(&state, what, 1, setup)};
    adapter_file_close(&state);
    return ERR_NONE;
}

/* Copies the values of `from` to their places in the state's list of coordinates. A member of
 * smaller rank has the leading rows, columns or block. Places that it does not have keep the
 * value that `out` had, so its change there is 0. */
static err lay_out(float *out, const struct adapter_file *state, const struct adapter_file *from,
                   const struct task *task)
{
    for (size_t i = 0; i < state->count; i++) {
        const struct adapter_file_module *m = adapter_file_find(from, state->module[i].name);
        for (int role = ADAPTER_FILE_A; role <= ADAPTER_FILE_R; role++) {
            if (!trains(task, role)) continue;
            struct shape s = shape_of(state, &state->module[i], role, task->before_basis);
            const struct adapter_file_factor *x = m ? &m->factor[role] : NULL;
            if (x && x->tensor && (!x->f32 || x->rows > s.rows || x->cols > s.cols))
                return err_make(ERR_INPUT, "%s: tensor %s: expected float32, at most (%u, %u)",
                                from->path, x->tensor->name, s.rows, s.cols);
            for (uint32_t k = 0; x && x->f32 && k < x->rows; k++)
                memcpy(out + (size_t)k * s.cols, x->f32 + (size_t)k * x->cols,
                       x->cols * sizeof *out);
            out += (size_t)s.rows * s.cols;
        }
    }
    return ERR_NONE;
}

/* ---- ledger and budget ---- */

/* The terms were made from the configuration alone; the dimensions are known now. */
static struct plan plan_of(const struct private_terms *terms, const struct private_dims *dims)
{
    struct plan plan = terms->plan;
    plan.dim = dims->training;
    plan.basis_dim = dims->basis;
    return plan;
}

/* The key is read here and closed again, so that it is in memory only while a line is signed. */
err private_begin(struct private_start *out, const struct private_terms *terms,
                  const struct private_dims *dims)
{
    struct private_start start = {.line.max = LEDGER_LINE_BYTES, .says.max = PRIVATE_SAYS_BYTES};
    struct plan plan = plan_of(terms, dims);
    const struct cohort last = {.run = terms->run, .round = terms->rounds, .q = 1};
    struct plan_summary summary;
    struct ledger_head head = {0};
    struct ledger_key key;
    cohort_seed_draw(&start.seed);
    plan.cohorts = cohort_anchor(&start.seed, &last, terms->id, terms->plan.units);
    TRY(plan_check(&summary, &plan));
    TRY(ledger_key_open(&key, terms->key_path));
    struct ledger_terms first = (plan.basis_passes ? plan_basis_terms : plan_terms)(
        &plan, &summary, terms->run, "coordinator");
    err e = plan_text(&start.says, &plan, &summary);
    if (!err_is(e)) e = ledger_start(&start.line, &head, &key, &first);
    ledger_key_close(&key);
    start.head = head.hash;
    if (err_is(e))
        private_start_close(&start);
    else
        *out = start;
    return e;
}

void private_start_close(struct private_start *start)
{
    bytes_close(&start->line);
    bytes_close(&start->says);
    sodium_memzero(&start->seed, sizeof start->seed);
}

/* The budget is computed from the ledger itself, not from a counter, so the two cannot disagree.
 * A different signing key is refused, because all lines of a ledger must have the same key. */
static err read_ledger(struct private_round *p, struct store *store, int64_t run)
{
    struct bytes text = {.max = STORE_LEDGER_BYTES_MAX};
    err e = ERR_NONE;
    TRY_OUT(e, store_ledger(&text, store, run));
    TRY_OUT(e, ledger_read(&p->ledger, (const char *)text.data, text.size, "privacy ledger"));
    TRY_OUT(e, ledger_key_open(&p->key, p->terms->key_path));
    if (memcmp(p->key.public, p->ledger.public, sizeof p->key.public) != 0) {
        e = err_make(ERR_INPUT,
                     "%s: not the key that signed the first line of this run's privacy ledger",
                     p->terms->key_path);
        goto out;
    }
    TRY_OUT(e, ledger_check_simulated(&p->ledger, p->terms->plan.simulated, "privacy ledger"));
    TRY_OUT(e, spend_open(&p->spend, p->ledger.terms.epsilon, p->ledger.terms.delta));
    for (size_t i = 0; i < p->ledger.count; i++)
        if (!strcmp(p->ledger.entry[i].kind, "release"))
            TRY_OUT(e, spend_charge(&p->spend, &p->ledger.entry[i].release.charged));
out:
    bytes_close(&text);
    return e;
}

static struct account_event event_of(const struct ledger_terms *t)
{
    return (struct account_event){.noise = t->noise, .sampling = t->sampling, .count = 1};
}

/* A spent budget is permanent: ERR_LIMIT (try again) becomes ERR_STATE (do not). */
static err check_budget(const struct private_round *p, const struct ledger_terms *terms)
{
    struct account_event next = event_of(terms);
    struct spend_total total;
    err e = spend_allows(&total, &p->spend, &next);
    return e.kind == ERR_LIMIT ? err_make(ERR_STATE, "%s", e.text) : e;
}

/* The budget is checked before any update is read, because a round that cannot be charged must not
 * be computed. */
err private_open(struct private_round *out, const struct private_terms *terms, struct store *store,
                 int64_t run, uint32_t round)
{
    struct private_round p = {.terms = terms, .round = round};
    err e = store_private_load(&p.was, store, run, round);
    if (!err_is(e)) e = read_ledger(&p, store, run);
    if (!err_is(e)) e = check_budget(&p, p.ledger.in_force);
    if (err_is(e))
        private_close(&p);
    else
        *out = p;
    return e;
}

void private_close(struct private_round *p)
{
    bytes_close(&p->next_line);
    central_close(&p->central);
    spend_close(&p->spend);
    ledger_close(&p->ledger);
    ledger_key_close(&p->key);
    *p = (struct private_round){0};
}

/* ---- the noisy mean ---- */

struct mean {
    struct adapter_file state;
    struct task task;
    struct arena arena;
    size_t dim;
    float *start, *now;
    double *mean;
};

/* Public weights of the plan; 1 without them. */
static double weight_of(const struct private_terms *terms, const char *member)
{
    for (uint64_t i = 0; terms->plan.weight && i < terms->plan.units; i++)
        if (!strcmp(terms->id[i], member)) return terms->plan.weight[i];
    return 1;
}

/* The member's values are written over a copy of the start values, so the difference that is
 * clipped is the member's change. */
static err add_member(struct mean *m, struct private_round *p, const struct contribution *c)
{
    struct adapter_file update = {0};
    struct clip_tensor tensor = {.now = m->now, .start = m->start, .count = m->dim};
    err e = adapter_file_map(&update, c->path);
    if (err_is(e)) return err_in(e, "member %s", c->member);
    memcpy(m->now, m->start, m->dim * sizeof *m->now);
    e = lay_out(m->now, &m->state, &update, &m->task);
    if (!err_is(e)) e = central_add(&p->central, &tensor, 1, weight_of(p->terms, c->member));
    adapter_file_close(&update);
    return err_is(e) ? err_in(e, "member %s", c->member) : e;
}

/* The mean has the form of an update of a member named "private", so that methods need no
 * special case. */
static err write_mean(const struct mean *m, const char *path)
{
    struct adapter_file_module *module = NULL;
    struct arena arena = {0};
    const float *at = m->now;
    TRY(arena_take(&module, &arena, m->state.count, sizeof *module));
    for (size_t i = 0; i < m->state.count; i++) {
        const struct adapter_file_module *from = &m->state.module[i];
        module[i] = (struct adapter_file_module){
            .name = from->name,
            .rank = from->rank ? from->rank : m->state.meta.rank,
            .alpha = from->alpha > 0 ? from->alpha : m->state.meta.alpha,
            .scale = from->scale};
        for (int role = ADAPTER_FILE_A; role <= ADAPTER_FILE_R; role++) {
            struct shape s = shape_of(&m->state, from, role, m->task.before_basis);
            if (!trains(&m->task, role)) continue;
            module[i].factor[role] =
                (struct adapter_file_factor){.f32 = at, .rows = s.rows, .cols = s.cols};
            at += (size_t)s.rows * s.cols;
        }
    }
    struct adapter_file_meta meta = m->state.meta;
    meta.kind = ADAPTER_FILE_UPDATE;
    meta.member = "private";
    meta.modules = meta.dropped = meta.options = meta.memory = NULL;
    err e = adapter_file_write(path, &meta, module, m->state.count, /*replace*/ true);
    arena_close(&arena);
    return e;
}

/* The clip norm in the row of the round is used instead of the plan's, because adaptive clipping
 * has changed it. */
static struct central_spec spec_of(const struct private_round *p, size_t dim)
{
    const struct ledger_terms *t = p->ledger.in_force;
    return (struct central_spec){.dim = dim,
                                 .noise = t->noise,
                                 .clip = p->was.clip > 0 ? p->was.clip : t->clip,
                                 .denominator = t->denominator,
                                 .expected = t->sampling * (double)t->units,
                                 .adaptive = t->adaptive};
}

/* Three blocks of all coordinates: 16 bytes a coordinate, for one member at a time. */
static err mean_open(struct mean *out, const struct private_round *p,
                     const struct private_files *files)
{
    struct mean m = {0};
    err e = ERR_NONE;
    TRY(adapter_file_map(&m.state, files->state));
    task_of(&m.task, &m.state, files->what.method, files->what.options, p->round);
    m.dim = (size_t)count_values(&m.state, &m.task);
    if (m.dim == 0) e = err_make(ERR_INPUT, "%s: nothing is trained in this round", files->state);
    if (!err_is(e)) e = arena_take(&m.start, &m.arena, m.dim, sizeof *m.start);
    if (!err_is(e)) e = arena_take(&m.now, &m.arena, m.dim, sizeof *m.now);
    if (!err_is(e)) e = arena_take(&m.mean, &m.arena, m.dim, sizeof *m.mean);
    /* A gradient is sent in place of values, so it is not a change, and all of it is clipped. */
    if (!err_is(e) && !m.task.method.gradient) e = lay_out(m.start, &m.state, &m.state, &m.task);
    *out = m;
    return e;
}

err private_noise_ahead(struct central **out, const struct private_round *p,
                        const struct private_files *files)
{
    struct mean m = {0};
    struct central *noise = calloc(1, sizeof *noise);
    err e = noise ? mean_open(&m, p, files) : err_make(ERR_MACHINE, "no memory for noise");
    struct central_spec spec = spec_of(p, m.dim);
    if (!err_is(e)) e = central_begin(noise, &spec);
    adapter_file_close(&m.state);
    arena_close(&m.arena);
    if (err_is(e))
        free(noise);
    else
        *out = noise;
    return e;
}

void private_noise_ahead_close(struct central *noise)
{
    if (noise) central_close(noise);
    free(noise);
}

/* Noise from private_noise_ahead() is used only if it was drawn for exactly these parameters;
 * otherwise it is drawn now, before any update is read. */
static err begin_round(struct private_round *p, const struct central_spec *spec,
                       struct central *noise)
{
    bool fits = noise && noise->spec.dim == spec->dim && noise->spec.clip == spec->clip &&
                noise->spec.noise == spec->noise && !noise->finished && noise->members == 0;
    if (!fits) return central_begin(&p->central, spec);
    p->central = *noise;
    *noise = (struct central){0};
    return ERR_NONE;
}

/* m.now held the values of one member after the other, so it is wiped before its memory is given
 * back. */
err private_mean(bool *made, struct private_round *p, const struct private_files *files,
                 struct central *noise)
{
    struct mean m = {0};
    struct central_spec spec;
    err e = mean_open(&m, p, files);
    if (err_is(e)) goto out;
    spec = spec_of(p, m.dim);
    if (p->was.noisy.size) {
        TRY_OUT(e, central_restore(&p->central, &spec, p->was.next_clip));
        *made = false;
        goto out;
    }
    TRY_OUT(e, begin_round(p, &spec, noise));
    for (size_t i = 0; i < files->count; i++)
        TRY_OUT(e, add_member(&m, p, &files->from[i]));
    central_finish(m.mean, &p->central);
    for (size_t i = 0; i < m.dim; i++)
        m.now[i] = (float)((double)m.start[i] + m.mean[i]);
    TRY_OUT(e, write_mean(&m, files->out));
    p->was.next_clip = p->central.next_clip;
    *made = true;
out:
    if (m.now) sodium_memzero(m.now, m.dim * sizeof *m.now);
    adapter_file_close(&m.state);
    arena_close(&m.arena);
    return e;
}

/* After the last pass for a basis. The rounds that follow are charged under the plan for
 * training, whose line is committed with this round. */
static err plan_training(struct ledger_terms *out, struct private_round *p,
                         const struct private_what *what, const char *state_path)
{
    struct private_dims dims;
    struct plan_summary summary;
    TRY(private_measure(&dims, state_path, what));
    struct plan plan = plan_of(p->terms, &dims);
    plan.cohorts = p->ledger.terms.cohorts;
    plan.force = true; /* it was judged at the start */
    TRY(plan_check(&summary, &plan));
    *out = plan_terms(&plan, &summary, p->terms->run, "coordinator");
    return ledger_plan(&p->next_line, &p->ledger.head, &p->key, out);
}

/* The sampling rate is part of the charge, because sampling amplifies privacy. */
static err make_release(struct release **out, struct private_round *p, const struct digest *state)
{
    const struct ledger_terms *t = p->ledger.in_force;
    struct release_charge charge = {.round = p->round, .sampling = t->sampling};
    return release_noisy(out, &p->spend, &p->ledger.head, &p->key, &p->central, state, &charge);
}

/* Charges the release, then looks ahead: if the next round could not be charged, the run ends
 * with this one and the ledger says why. */
err private_release(struct release **out, char stop[ERR_TEXT_BYTES], struct private_round *p,
                    const struct private_files *files, const struct digest *state)
{
    struct release *release = NULL;
    struct ledger_terms training, *next = NULL;
    p->next_line.max = 2 * LEDGER_LINE_BYTES;
    p->next_clip = p->central.next_clip;
    TRY(make_release(&release, p, state));
    err e = ERR_NONE;
    if (p->round == method_setup_rounds(files->what.options)) {
        TRY_OUT(e, plan_training(&training, p, &files->what, files->state));
        next = &training;
        p->next_clip = 0; /* the new plan's */
    }
    if (p->round < p->terms->rounds) e = check_budget(p, next ? next : p->ledger.in_force);
    if (err_is(e) && e.kind != ERR_STATE) goto out;
    snprintf(stop, ERR_TEXT_BYTES, "%s", e.text);
    e = *stop ? ledger_note(&p->next_line, &p->ledger.head, &p->key, "stop", stop) : ERR_NONE;
    if (err_is(e)) goto out;
    *out = release;
    release = NULL;
out:
    release_close(release);
    return e;
}

/* Written from the committed rows, whole, so a crash leaves the old copy or the new one. */
err private_export(struct store *store, int64_t run, const char *name)
{
    char dir[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES], file[LIMIT_NAME_BYTES + 8];
    struct bytes text = {.max = STORE_LEDGER_BYTES_MAX};
    snprintf(file, sizeof file, "%s.jsonl", name);
    TRY(file_join(dir, sizeof dir, store->dir, "ledgers"));
    TRY(file_join(path, sizeof path, dir, file));
    TRY(file_make_dirs(dir));
    err e = store_ledger(&text, store, run);
    if (!err_is(e) && text.size) e = file_write(path, text.data, text.size, /*replace*/ true);
    bytes_close(&text);
    return e;
}
