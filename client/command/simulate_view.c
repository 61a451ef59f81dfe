#include "client/command/simulate_view.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "client/output/progress.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "client/session/data_report.h"
#include "sim/reference.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* One for each simulation, also for each cell of a sweep. */
struct view {
    const struct simulate_command *o;
    const struct simulate_show *show;
    double loss; /* the last one on the test set; NaN: none */
    struct progress progress;
    struct table table;
    uint64_t updates; /* since the start of this process */
    err error;        /* of the table */
};

/* "-" for a value that is not known; percentages have one place, losses four. */
static void number(char *out, size_t bytes, double x, const char *unit)
{
    snprintf(out, bytes, "-");
    if (isfinite(x)) snprintf(out, bytes, "%.*f%s", *unit ? 1 : 4, x, unit);
}

/* A folder that a call before this one left unfinished. */
static void on_start(void *user, uint64_t virtual_ms, uint32_t published)
{
    struct view *v = user;
    char at[32];
    text_duration(at, sizeof at, virtual_ms);
    if (published)
        command_note(&v->o->run.common, "continuing after round %u, virtual time %s", published,
                     at);
}

/* The bar counts updates of the whole run as if every round had as many tasks as this one. Late
 * updates of earlier rounds arrive in addition to those of the round's own tasks. */
static void on_update(void *user, size_t done, size_t tasks, const struct simulate_round *now)
{
    struct view *v = user;
    char detail[300], loss[32] = "";
    const char *label = v->show->label;
    v->updates++;
    if (done > tasks) tasks = done;
    if (isfinite(v->loss)) snprintf(loss, sizeof loss, "  loss %.4f", v->loss);
    snprintf(detail, sizeof detail, "%.120s%sround %u of %" PRId64 ", update %zu of %zu%s",
             label ? label : "", label ? "  " : "", now->round + 1, v->o->run.rounds, done, tasks,
             loss);
    progress_update(&v->progress, (uint64_t)now->round * tasks + done,
                    (uint64_t)v->o->run.rounds * tasks, v->updates, detail);
}

static err add_row(struct view *v, const struct simulate_round *r)
{
    char loss[24], accuracy[24], train[24], when[32], up[32], down[32];
    number(train, sizeof train, r->train_loss, "");
    number(loss, sizeof loss, r->loss, "");
    number(accuracy, sizeof accuracy, r->accuracy < 0 ? NAN : 100 * r->accuracy, " %");
    text_duration(when, sizeof when, r->virtual_ms);
    text_size(up, sizeof up, r->bytes_up);
    text_size(down, sizeof down, r->bytes_down);
    TRY(table_cell(&v->table, "%u", r->round));
    TRY(table_cell(&v->table, "%s", when));
    TRY(table_cell(&v->table, "%zu", r->updates));
    TRY(table_cell(&v->table, "%zu", r->late));
    TRY(table_cell(&v->table, "%zu", r->lost + r->dropped));
    TRY(table_cell(&v->table, "%s", train));
    TRY(table_cell(&v->table, "%s", loss));
    TRY(table_cell(&v->table, "%s", accuracy));
    TRY(table_cell(&v->table, "%s", up));
    TRY(table_cell(&v->table, "%s", down));
    return v->o->run.privacy ? table_cell(&v->table, "%.4g", r->epsilon) : ERR_NONE;
}

/* An error of the table is kept until the simulation has ended, which must not stop for it. */
static void on_round(void *user, const struct simulate_round *r)
{
    struct view *v = user;
    if (isfinite(r->loss)) v->loss = r->loss;
    if (!err_is(v->error)) v->error = add_row(v, r);
}

/* The last column is there only in runs with privacy. */
static err begin_table(struct view *v)
{
    static const char *const head[] = {"round",   "virtual",    "updates", "late",
                                       "lost",    "train loss", "loss",    "accuracy",
                                       "sent up", "sent down",  "epsilon"};
    table_begin(&v->table, v->o->run.privacy ? "rrrrrrrrrrr" : "rrrrrrrrrr");
    return table_row(&v->table, head);
}

/* The rows of all clients, as one member would report them. */
static struct dataset sum_of(const struct fleet *fleet)
{
    struct dataset sum = {0};
    for (size_t i = 0; i < fleet->files; i++)
        data_report_add(&sum, &fleet->file[i]);
    return sum;
}

/* The file of the simulation's result, with the numbers of the data unless they are protected. */
static err print_json(const struct view *v, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    json_t *result = NULL;
    TRY(file_join(path, sizeof path, dir, "result.json"));
    TRY(json_open(&result, path, 1 << 20));
    const struct dataset sum = sum_of(v->show->fleet);
    if (!v->o->run.privacy) json_object_set_new(result, "data", data_report_json(&sum));
    err e = report_json(result);
    json_decref(result);
    return e;
}

/* The table is left out if this call had nothing left to do. */
static err print_result(const struct view *v, const struct simulate_result *r, const char *dir)
{
    char digest[DIGEST_TEXT_BYTES];
    digest_text(digest, &r->state);
    if (v->o->run.common.json) return print_json(v, dir);
    if (v->updates) TRY(table_print(&v->table));
    printf("state %.16s in %s\n", digest, r->state_path);
    if (r->crashes)
        printf("the coordinator crashed %" PRIu64 " times and started again\n", r->crashes);
    if (r->stopped[0]) printf("stopped before the last round: %s\n", r->stopped);
    if (v->o->run.privacy == RUN_PRIVACY_EXAMPLE)
        printf("simulated ledgers of the members: %s/ledgers\n", dir);
    else if (v->o->run.privacy)
        printf("simulated ledger: %s/store/ledgers\n", dir);
    printf("report: %s/report.html\n", dir);
    return ERR_NONE;
}

/* A cell has one line: its label says what differs from the others. */
static void introduce(const struct simulate_show *show, size_t workers)
{
    const struct simulate_command *o = show->o;
    if (show->cell) {
        command_note(&o->run.common, "%s  %s", show->cell, show->label);
        return;
    }
    command_note(&o->run.common, "%zu clients, %s, %" PRId64 " rounds, %zu workers",
                 show->fleet->members, o->run.method, o->run.rounds, workers);
    if (!o->run.common.quiet) fputs(show->fleet->histogram, stderr);
}

void simulate_view_data(const struct fleet *fleet, const struct fleet_options *o)
{
    struct dataset sum = sum_of(fleet);
    struct data_report report = {.data = fleet->files == 1 ? &fleet->file[0] : &sum,
                                 .path = o->train,
                                 .seq = o->seq,
                                 .without_lines = fleet->files != 1};
    if (fleet->files) data_report_print(&report);
    report.data = &fleet->test;
    report.path = o->test;
    report.without_lines = false;
    if (fleet->test.count) data_report_print(&report);
}

err simulate_show(const struct simulate_show *show)
{
    const struct simulate_command *o = show->o;
    struct view v = {.o = o, .show = show, .loss = NAN};
    struct simulate_result result = {0};
    struct bytes ini = {.max = 16 << 20};
    struct arena arena = {0};
    char *settings = NULL;
    struct attack attack;
    TRY(simulate_attack(&attack, o));
    err e = command_write_options(&ini, o, &arena);
    if (!err_is(e)) e = simulate_settings(&settings, o, &show->setup->config);
    const struct simulate_options options = {.dir = show->dir,
                                             .config = &show->setup->config,
                                             .settings = settings,
                                             .ini = (const char *)ini.data,
                                             .pool = simulate_pool_options(o),
                                             .checkpoint = o->checkpoint,
                                             .evaluate_every = o->every,
                                             .check_rows = o->check_rows,
                                             .crash = o->crash,
                                             .attack = attack,
                                             .seed = (uint64_t)o->run.common.seed,
                                             .early = show->setup->early,
                                             .on_start = on_start,
                                             .on_update = on_update,
                                             .on_round = on_round,
                                             .user = &v};
    introduce(show, options.pool.workers);
    progress_begin(&v.progress, o->run.common.quiet, show->cell ? show->cell : "simulating",
                   "clients");
    if (!err_is(e)) e = begin_table(&v);
    if (!err_is(e)) e = simulate_run(&result, show->fleet, &options);
    free(settings);
    bytes_close(&ini);
    arena_close(&arena);
    progress_end(&v.progress, err_is(e) ? "stopped early" : "done");
    if (!err_is(e)) e = v.error;
    if (!err_is(e) && !show->cell) e = print_result(&v, &result, show->dir);
    table_close(&v.table);
    return e;
}

err simulate_reference(const struct simulate_show *show, const char *dir)
{
    const struct simulate_command *o = show->o;
    const struct simulate_options options = {.config = &show->setup->config,
                                             .pool = simulate_pool_options(o),
                                             .checkpoint = o->checkpoint,
                                             .seed = (uint64_t)o->run.common.seed};
    const struct reference_options how = {.dir = dir,
                                          .simulation = &options,
                                          .base = o->base_line,
                                          .pooled = o->pooled_line,
                                          .alone = o->alone_line,
                                          .lr = o->reference_lr};
    if (!how.base && !how.pooled && !how.alone) return ERR_NONE;
    command_note(&o->run.common, "reference lines%s%s", show->label ? "  " : "",
                 show->label ? show->label : "");
    err e = reference_run(show->fleet, &how);
    return err_is(e) ? err_in(e, "reference lines") : e;
}
