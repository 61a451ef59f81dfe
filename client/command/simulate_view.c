#include "client/command/simulate_view.h"

#include "base/file.h"
#include "base/text.h"
#include "client/output/progress.h"
#include "client/output/table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct view {
    const struct simulate_command *o;
    struct progress progress;
    struct table table;
    uint64_t updates; /* since the start of this process */
    err error;        /* of the table */
};

static void number(char *out, size_t bytes, double x, const char *unit)
{
    snprintf(out, bytes, "-");
    if (isfinite(x)) snprintf(out, bytes, "%.*f%s", *unit ? 1 : 4, x, unit);
}

static void on_start(void *user, uint64_t virtual_ms, uint32_t published)
{
    struct view *v = user;
    char at[32];
    text_duration(at, sizeof at, virtual_ms);
    if (published)
        command_note(&v->o->run.common, "continuing after round %u, virtual time %s", published,
                     at);
}

static void on_update(void *user, size_t done, size_t tasks, const struct simulate_round *now)
{
    struct view *v = user;
    char detail[120];
    v->updates++;
    snprintf(detail, sizeof detail, "round %u of %" PRId64 ", update %zu of %zu", now->round + 1,
             v->o->run.rounds, done, tasks);
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

static void on_round(void *user, const struct simulate_round *r)
{
    struct view *v = user;
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

static err print_result(const struct view *v, const struct simulate_result *r, const char *dir)
{
    char digest[DIGEST_TEXT_BYTES], path[LIMIT_PATH_BYTES];
    digest_text(digest, &r->state);
    if (v->o->run.common.json) {
        char *text = NULL;
        size_t size = 0;
        TRY(file_join(path, sizeof path, dir, "result.json"));
        TRY(file_read_all(&text, &size, path, 1 << 20));
        fwrite(text, 1, size, stdout);
        free(text);
        return ERR_NONE;
    }
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

err simulate_show(const struct fleet *fleet, const struct simulate_command *o,
                  const Fedlora__V1__RunConfig *config, const char *dir)
{
    struct view v = {.o = o};
    struct simulate_result result = {0};
    char *settings = NULL;
    struct attack attack;
    TRY(simulate_attack(&attack, o));
    TRY(simulate_settings(&settings, o, config));
    const struct simulate_options options = {.dir = dir,
                                             .config = config,
                                             .settings = settings,
                                             .pool = simulate_pool_options(o),
                                             .checkpoint = o->checkpoint,
                                             .evaluate_every = o->every,
                                             .check_rows = o->check_rows,
                                             .crash = o->crash,
                                             .attack = attack,
                                             .seed = (uint64_t)o->run.common.seed,
                                             .on_start = on_start,
                                             .on_update = on_update,
                                             .on_round = on_round,
                                             .user = &v};
    command_note(&o->run.common, "%zu clients, %s, %" PRId64 " rounds, %zu workers", fleet->members,
                 o->run.method, o->run.rounds, options.pool.workers);
    if (!o->run.common.quiet) fputs(fleet->histogram, stderr);
    progress_begin(&v.progress, o->run.common.quiet, "simulating", "clients");
    err e = begin_table(&v);
    if (!err_is(e)) e = simulate_run(&result, fleet, &options);
    free(settings);
    progress_end(&v.progress, err_is(e) ? "stopped early" : "done");
    if (!err_is(e)) e = v.error;
    if (!err_is(e)) e = print_result(&v, &result, dir);
    table_close(&v.table);
    return e;
}
