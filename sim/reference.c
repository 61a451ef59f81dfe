#include "sim/reference.h"

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "sim/federation.h"
#include "sim/folder.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20 };
const char *const reference_names[] = {"base model", "pooled data", "one member alone",
                                       "worst member alone"};
static const char *const keys[] = {"base", "pooled", "alone", "worst"};

struct making {
    const struct fleet *fleet;
    const struct reference_options *o;
    Fedlora__V1__RunConfig config;
    Fedlora__V1__Training training;
    struct devices devices;
    struct reference_values found;
};

/* ---- one member ---- */

static uint32_t largest_rank(const struct fleet *f)
{
    uint32_t rank = 0;
    for (size_t i = 0; i < f->members; i++)
        if (f->member[i].rank > rank) rank = f->member[i].rank;
    return rank;
}

/* Only what describes the training is taken over: no method, quorum, deadline or faults. */
static void set_config(struct making *m)
{
    const Fedlora__V1__RunConfig *from = m->o->simulation->config;
    Fedlora__V1__RunConfig *c = &m->config;
    static char method[] = "fedit", refuse[] = "refuse", weights[] = "examples";
    *c = (Fedlora__V1__RunConfig)FEDLORA__V1__RUN_CONFIG__INIT;
    m->training = *from->training;
    if (m->o->lr > 0) m->training.lr = m->o->lr;
    c->name = from->name;
    c->method = method;
    c->late = refuse;
    c->weights = weights;
    c->rounds = from->rounds;
    c->rank = from->rank ? from->rank : largest_rank(m->fleet);
    c->alpha = from->alpha;
    c->rslora = from->rslora;
    c->n_targets = from->n_targets;
    c->targets = from->targets;
    c->seed = from->seed;
    c->report_every = LIMIT_ROUNDS;
    c->training = &m->training;
}

/* A fleet of this member alone; it borrows everything. */
static struct fleet alone(const struct making *m, struct fleet_member *member)
{
    struct fleet one = *m->fleet;
    member->device = 0;
    member->rank = 0;
    member->held_out = (struct dataset){0};
    one.members = 1;
    one.member = member;
    one.devices = m->devices;
    one.frozen = NULL;
    one.histogram = "";
    return one;
}

static err simulate_member(struct simulate_result *out, struct making *m,
                           struct fleet_member *member, const char *dir)
{
    const struct simulate_options *from = m->o->simulation;
    const struct fleet one = alone(m, member);
    const struct simulate_options o = {.dir = dir,
                                       .config = &m->config,
                                       .settings = "{}",
                                       .pool = from->pool,
                                       .checkpoint = from->checkpoint,
                                       .evaluate_every = m->config.rounds,
                                       .seed = from->seed};
    return simulate_run(out, &one, &o);
}

/* ---- the references ---- */

/* The state before the first round adds nothing to the base. */
static err measure_base(struct making *m, const char *dir)
{
    char store[LIMIT_PATH_BYTES];
    struct fleet_member member = m->fleet->member[0];
    const struct fleet one = alone(m, &member);
    struct federation f = {0};
    struct federation_paths paths;
    struct member_round round;
    struct member_evaluation value = {0};
    struct pool *pool = NULL;
    err e;
    log_init(LOG_ERROR, false);
    TRY(file_join(store, sizeof store, dir, "base"));
    TRY_OUT(e, federation_open(&f, &one, store, &m->config, 1));
    TRY_OUT(e, federation_start(&f, store, 0));
    federation_newest(&paths, &round, &f);
    TRY_OUT(e, pool_open(&pool, &one, &m->o->simulation->pool));
    TRY_OUT(e, pool_evaluate(&value, pool, &round, &m->fleet->test, 0));
    m->found.loss[REFERENCE_BASE] = value.loss;
    if (value.accuracy >= 0) m->found.accuracy[REFERENCE_BASE] = value.accuracy;
out:
    pool_close(pool);
    federation_close(&f);
    return err_is(e) ? e : folder_remove(store);
}

static err pool_rows(struct dataset *out, const struct fleet *f)
{
    struct dataset all = {0};
    for (size_t i = 0; i < f->members; i++)
        all.count += f->member[i].data.count;
    if (!(all.row = malloc((all.count + 1) * sizeof *all.row))) return err_sys(ENOMEM, "pooled");
    all.count = 0;
    for (size_t i = 0; i < f->members; i++) {
        const struct dataset *d = &f->member[i].data;
        memcpy(all.row + all.count, d->row, d->count * sizeof *d->row);
        all.count += d->count;
        all.tokens += d->tokens;
        all.learned += d->learned;
        all.unlearned.rows += d->unlearned.rows;
    }
    *out = all;
    return ERR_NONE;
}

/* Members that train in a round. */
static uint32_t trained(const struct making *m)
{
    uint32_t cohort = m->o->simulation->config->cohort, all = (uint32_t)m->fleet->members;
    return cohort && cohort < all ? cohort : all;
}

/* With a number of steps, one member needs the steps of all members for the same tokens. */
static err train_pooled(struct making *m, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    struct fleet_member member = {.id = "pooled"};
    struct simulate_result result;
    uint32_t steps = m->training.steps;
    TRY(file_join(path, sizeof path, dir, "pooled"));
    TRY(pool_rows(&member.data, m->fleet));
    m->training.steps = steps * trained(m);
    err e = simulate_member(&result, m, &member, path);
    m->training.steps = steps;
    free(member.data.row);
    if (err_is(e)) return err_in(e, "pooled data");
    m->found.loss[REFERENCE_POOLED] = result.last.loss;
    if (result.last.accuracy >= 0) m->found.accuracy[REFERENCE_POOLED] = result.last.accuracy;
    return ERR_NONE;
}

/* The worst loss and the worst accuracy may be those of two members. */
static void add_alone(struct reference_values *v, const struct simulate_round *r, double part)
{
    double *loss = v->loss, *accuracy = v->accuracy;
    if (isnan(loss[REFERENCE_ALONE])) loss[REFERENCE_ALONE] = 0;
    loss[REFERENCE_ALONE] += part * r->loss;
    loss[REFERENCE_WORST] = fmax(loss[REFERENCE_WORST], r->loss);
    if (r->accuracy < 0) return;
    if (isnan(accuracy[REFERENCE_ALONE])) accuracy[REFERENCE_ALONE] = 0;
    accuracy[REFERENCE_ALONE] += part * r->accuracy;
    accuracy[REFERENCE_WORST] = fmin(accuracy[REFERENCE_WORST], r->accuracy);
}

static err train_alone(struct making *m, const char *dir)
{
    char all[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    TRY(file_join(all, sizeof all, dir, "alone"));
    for (size_t i = 0; i < m->fleet->members; i++) {
        struct fleet_member member = m->fleet->member[i];
        struct simulate_result result;
        TRY(file_join(path, sizeof path, all, member.id));
        err e = simulate_member(&result, m, &member, path);
        if (err_is(e)) return err_in(e, "%s alone", member.id);
        add_alone(&m->found, &result.last, 1.0 / (double)m->fleet->members);
    }
    return ERR_NONE;
}

/* ---- the file ---- */

/* Without a learning rate of its own the file has none, as in earlier versions. */
static err write_values(const struct reference_values *v, double lr, const char *path)
{
    struct bytes text = {.max = FILE_BYTES_MAX};
    json_t *all = json_object();
    if (all && lr > 0) json_object_set_new(all, "lr", json_real(lr));
    for (size_t i = 0; i < REFERENCE_KINDS; i++)
        if (isfinite(v->loss[i]))
            json_object_set_new(
                all, keys[i],
                json_pack("{s:f,s:o}", "loss", v->loss[i], "accuracy",
                          isfinite(v->accuracy[i]) ? json_real(v->accuracy[i]) : json_null()));
    err e = all ? json_write(&text, all) : err_sys(ENOMEM, "references");
    if (!err_is(e)) e = bytes_printf(&text, "\n");
    if (!err_is(e)) e = file_write(path, text.data, text.size, true);
    json_decref(all);
    bytes_close(&text);
    return e;
}

static void set_unknown(struct reference_values *v)
{
    for (size_t i = 0; i < REFERENCE_KINDS; i++)
        v->loss[i] = v->accuracy[i] = NAN;
}

err reference_read(struct reference_values *out, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    json_t *all = NULL;
    set_unknown(out);
    TRY(file_join(path, sizeof path, dir, "reference.json"));
    if (!file_exists(path)) return ERR_NONE;
    TRY(json_open(&all, path, FILE_BYTES_MAX));
    err e = ERR_NONE;
    for (size_t i = 0; i < REFERENCE_KINDS && !err_is(e); i++) {
        const json_t *one = json_object_get(all, keys[i]);
        if (!one) continue;
        e = json_opt_num(&out->loss[i], one, "loss", path);
        if (!err_is(e)) e = json_opt_num(&out->accuracy[i], one, "accuracy", path);
    }
    json_decref(all);
    return e;
}

static err check_lr(const char *path, double lr)
{
    json_t *all = NULL;
    double made = 0;
    TRY(json_open(&all, path, FILE_BYTES_MAX));
    err e = json_opt_num(&made, all, "lr", path);
    json_decref(all);
    if (err_is(e) || fabs(made - lr) <= 1e-9 * lr) return e;
    return err_make(ERR_INPUT,
                    "%s: made with another learning rate of reference lines; choose another folder "
                    "with -o, or begin anew with --force",
                    path);
}

/* The simulations of all members have large stores, which nothing needs when the values are known.
 */
static err remove_stores(const char *dir)
{
    static const char *const names[] = {"pooled", "alone"};
    char path[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        TRY(file_join(path, sizeof path, dir, names[i]));
        TRY(folder_remove(path));
    }
    return ERR_NONE;
}

err reference_run(const struct fleet *fleet, const struct reference_options *o)
{
    char path[LIMIT_PATH_BYTES];
    struct making m = {.fleet = fleet, .o = o};
    const struct option_list none = {0};
    TRY(file_join(path, sizeof path, o->dir, "reference.json"));
    if (file_exists(path)) return check_lr(path, o->lr);
    if (!fleet->test.count)
        return err_make(ERR_INPUT, "reference lines are measured on --test, which is missing");
    set_unknown(&m.found);
    set_config(&m);
    TRY(devices_parse(&m.devices, &none));
    TRY(file_make_dirs(o->dir));
    if (o->base) TRY(measure_base(&m, o->dir));
    if (o->pooled) TRY(train_pooled(&m, o->dir));
    if (o->alone) TRY(train_alone(&m, o->dir));
    TRY(write_values(&m.found, o->lr, path));
    return remove_stores(o->dir);
}
