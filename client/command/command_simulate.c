/* fedlora simulate: a whole federation in this process, in virtual time (sim/simulate.h). */
#include "base/file.h"
#include "base/text.h"
#include "client/command/method_help.h"
#include "client/command/remote_json.h"
#include "client/command/run_options.h"
#include "client/output/progress.h"
#include "client/output/table.h"
#include "kernels/backend.h"
#include "proto/message.h"
#include "sim/simulate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct simulate_command {
    struct run_options run;
    const char *train, *test, *by, *ranks, *output, *name, *write;
    int split;
    double split_alpha, size_sigma, jitter, crash;
    int64_t shards, clients, every, check_rows, workers;
    struct option_list classes;
    bool checkpoint;
};

#define AT(member) offsetof(struct simulate_command, member)
/* Both commands read the same configuration file, so they have one table. */
static const struct option_row rows[] = {
    {.flag = "data",
     .key = "data.train",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(train),
     .value = "FILE|DIR",
     .help = "training data, JSON Lines: one file whose rows are dealt to the clients, or a "
             "folder with a file ID.jsonl for each client"},
    {.flag = "split",
     .key = "data.split",
     .kind = OPTION_CHOICE,
     .at = AT(split),
     .fallback = "iid",
     .choices = deal_kinds,
     .help = "how the rows of one file are dealt: at random, by the value of a field, by "
             "shares of the labels drawn from a Dirichlet distribution, or by shards of "
             "sorted labels"},
    {.flag = "by",
     .key = "data.by",
     .kind = OPTION_TEXT,
     .at = AT(by),
     .value = "FIELD",
     .help = "field of a row with its label, for --split field, dirichlet and shards"},
    {.flag = "split-alpha",
     .key = "data.alpha",
     .kind = OPTION_NUM,
     .at = AT(split_alpha),
     .fallback = "0.5",
     .least = 1e-3,
     .most = 1e6,
     .help = "parameter of --split dirichlet; the smaller, the more the clients differ"},
    {.flag = "shards",
     .key = "data.shards",
     .kind = OPTION_INT,
     .at = AT(shards),
     .fallback = "2",
     .least = 1,
     .most = 1000,
     .help = "shards of each client with --split shards"},
    {.flag = "size-sigma",
     .key = "data.size_sigma",
     .kind = OPTION_NUM,
     .at = AT(size_sigma),
     .fallback = "0",
     .least = 0,
     .most = 5,
     .help = "spread of the clients' numbers of rows, which are log-normal; 0: equal"},
    {.flag = "clients",
     .key = "fleet.members",
     .kind = OPTION_INT,
     .at = AT(clients),
     .fallback = "10",
     .least = 1,
     .most = LIMIT_MEMBERS,
     .help = "number of simulated clients; with --split field and with a folder it follows "
             "from the data"},
    {.flag = "test",
     .key = "data.test",
     .kind = OPTION_TEXT,
     .at = AT(test),
     .value = "FILE",
     .help = "held-out rows, JSON Lines, on which the states are measured; default: none"},
    {.flag = "ranks",
     .key = "fleet.ranks",
     .kind = OPTION_TEXT,
     .at = AT(ranks),
     .value = "R,R,...",
     .help = "ranks of the clients, in turn, where they are not equal; a --class may have its own"},
    {.flag = "class",
     .key = "devices.class",
     .kind = OPTION_LIST,
     .at = AT(classes),
     .value = "NAME:...",
     .help = "machines of a share of the clients, as "
             "NAME:share=30%:speed=200:up=20Mbit:down=50Mbit:rank=16:drop=10% with the speed in "
             "tokens a second; may be repeated; default: all train 1000 tokens a second"},
    {.flag = "jitter",
     .key = "devices.jitter",
     .kind = OPTION_NUM,
     .at = AT(jitter),
     .fallback = "0",
     .least = 0,
     .most = 5,
     .help = "spread of the time of a task, which is log-normal"},
    {.flag = "crash",
     .key = "faults.coordinator",
     .kind = OPTION_NUM,
     .at = AT(crash),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "probability that the coordinator crashes after an update and starts again"},
    {.flag = "check-every",
     .key = "evaluate.every",
     .kind = OPTION_INT,
     .at = AT(every),
     .fallback = "1",
     .least = 0,
     .most = LIMIT_ROUNDS,
     .help = "measure every N-th round's state, and the last one, on --test; 0: never"},
    {.flag = "check-rows",
     .key = "evaluate.check_rows",
     .kind = OPTION_INT,
     .at = AT(check_rows),
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX,
     .help = "rows of --test before the last round; 0: all"},
    {.flag = "workers",
     .kind = OPTION_INT,
     .at = AT(workers),
     .fallback = "0",
     .least = 0,
     .most = 1024,
     .help = "clients that train at the same time, on one processor core each; 0: as many as "
             "there are cores, or one on a GPU, which needs --device cuda"},
    {.flag = "checkpoint",
     .kind = OPTION_FLAG,
     .at = AT(checkpoint),
     .help = "recompute activations in the backward pass: less memory, slower"},
    {.flag = "run",
     .kind = OPTION_TEXT,
     .at = AT(name),
     .value = "NAME",
     .help = "name of the run; default: the name of FILE.ini, or \"simulated\""},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = AT(output),
     .value = "DIR",
     .help = "folder for the results, which is created; default: the name of the run"},
    {.flag = "write",
     .kind = OPTION_TEXT,
     .at = AT(write),
     .value = "DIR",
     .help = "simulate split: folder for a file ID.jsonl for each client, for fedlora join"},
};

/* ---- options to the structs of sim/ ---- */

static err take_ranks(struct fleet_options *f, const char *text, struct arena *arena)
{
    uint32_t *rank = NULL;
    if (!text) return ERR_NONE;
    TRY(arena_take(&rank, arena, strlen(text) + 1, sizeof *rank));
    for (const char *at = text;;) {
        char one[16];
        int64_t value = 0;
        size_t n = strcspn(at, ",");
        snprintf(one, sizeof one, "%.*s", (int)(n < 15 ? n : 15), at);
        err e = text_parse_int(&value, one, 1, LIMIT_RANK);
        if (err_is(e)) return err_in(e, "--ranks");
        rank[f->ranks++] = (uint32_t)value;
        if (!at[n]) break;
        at += n + 1;
    }
    f->rank = rank;
    return ERR_NONE;
}

static err check_split(const struct simulate_command *o)
{
    bool needs = o->split != DEAL_IID && !file_is_dir(o->train);
    if (needs && (!o->by || !*o->by))
        return err_make(ERR_INPUT, "--split %s needs --by FIELD, the field with a row's label",
                        deal_kinds[o->split]);
    if (o->run.base == NULL) return err_make(ERR_INPUT, "--base is missing: expected a base model");
    return ERR_NONE;
}

static err fleet_options(struct fleet_options *out, const struct simulate_command *o,
                         struct arena *arena)
{
    struct fleet_options f = {
        .base = o->run.base,
        .train = o->train,
        .test = o->test,
        .by = o->by && *o->by ? o->by : NULL,
        .split = {.kind = (enum deal_kind)o->split,
                  .members = (size_t)o->clients,
                  .alpha = o->split_alpha,
                  .shards = (size_t)o->shards,
                  .size_sigma = o->size_sigma,
                  .seed = (uint64_t)o->run.common.seed},
        .devices = {.jitter = o->jitter, .seed = (uint64_t)o->run.common.seed},
        .seq = (uint32_t)o->run.training.seq,
        .eos = o->run.training.eos};
    TRY(check_split(o));
    err e = devices_parse(&f.devices, &o->classes);
    if (err_is(e)) return err_in(e, "--class");
    TRY(take_ranks(&f, o->ranks, arena));
    *out = f;
    return ERR_NONE;
}

/* Several workers have one core each; a single one has the threads that the user allows. Only the
 * CPU can be shared, so a GPU is used by one worker, if it is asked for. */
static struct pool_options pool_options(const struct simulate_command *o)
{
    int threads = backend_threads((int)o->run.common.threads);
    const char *device = o->run.common.device;
    bool cpu = !strcmp(device, "auto") || !strcmp(device, "cpu");
    return (struct pool_options){
        .workers = o->workers ? (size_t)o->workers
                   : cpu      ? (size_t)threads
                              : 1,
        .engine = {.device = cpu ? "cpu" : device,
                   .precision = training_dtype(o->run.common.precision),
                   .threads = threads,
                   .tokens = (size_t)(o->run.training.batch * o->run.training.seq),
                   .checkpoint = o->checkpoint}};
}

/* A run without a rank of its own takes those that its members offer. */
static err check_ranks(const struct fleet_options *f, const struct simulate_command *o)
{
    bool ranked = o->run.rank > 0 || f->ranks > 0;
    for (size_t i = 0; i < f->devices.classes && !ranked; i++)
        ranked = f->devices.class[i].rank > 0;
    return ranked ? ERR_NONE
                  : err_make(ERR_INPUT, "--rank or --ranks is missing: expected LoRA ranks");
}

static err name_run(char out[LIMIT_NAME_BYTES], const struct simulate_command *o,
                    const struct option_list *arguments)
{
    const char *name = o->name ? o->name : "simulated";
    int n = (int)strlen(name);
    if (!o->name && arguments->count) {
        const char *slash = strrchr(arguments->item[0], '/');
        name = slash ? slash + 1 : arguments->item[0];
        const char *dot = strrchr(name, '.');
        n = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    }
    snprintf(out, LIMIT_NAME_BYTES, "%.*s", n < LIMIT_NAME_BYTES ? n : 0, name);
    if (text_is_name(out, LIMIT_NAME_BYTES - 1)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "\"%.60s\" is not a run name: expected letters, digits, '.', '_' and '-'; "
                    "--run NAME gives another one",
                    name);
}

/* ---- what the user sees ---- */

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
    return table_cell(&v->table, "%s", down);
}

static void on_round(void *user, const struct simulate_round *r)
{
    struct view *v = user;
    if (!err_is(v->error)) v->error = add_row(v, r);
}

static err begin_table(struct view *v)
{
    static const char *const head[] = {"round",      "virtual", "updates",  "late",    "lost",
                                       "train loss", "loss",    "accuracy", "sent up", "sent down"};
    table_begin(&v->table, "rrrrrrrrrr");
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
    printf("report: %s/report.html\n", dir);
    return ERR_NONE;
}

/* The settings of the run, as the coordinator got them, and those of the simulation. */
static err make_settings(char **out, const struct simulate_command *o,
                         const Fedlora__V1__RunConfig *config)
{
    json_t *all = NULL;
    TRY(remote_json(&all, &config->base));
    json_object_del(all, "base_digest");
    json_object_del(all, "members");
    json_t *own = json_pack("{s:s,s:s,s:s,s:s*,s:f,s:f,s:f}", "base", o->run.base, "data", o->train,
                            "split", deal_kinds[o->split], "by", o->by, "split_alpha",
                            o->split_alpha, "size_sigma", o->size_sigma, "jitter", o->jitter);
    bool good = own && json_object_update(all, own) == 0;
    json_t *classes = json_array();
    for (size_t i = 0; i < o->classes.count; i++)
        good = json_array_append_new(classes, json_string(o->classes.item[i])) == 0 && good;
    good = json_object_set_new(all, "device_classes", classes) == 0 && good;
    if (good) *out = json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(10));
    json_decref(own);
    json_decref(all);
    return *out ? ERR_NONE : err_sys(ENOMEM, "simulate");
}

static err simulate(const struct fleet *fleet, const struct simulate_command *o,
                    const Fedlora__V1__RunConfig *config, const char *dir)
{
    struct view v = {.o = o};
    struct simulate_result result = {0};
    char *settings = NULL;
    TRY(make_settings(&settings, o, config));
    const struct simulate_options options = {.dir = dir,
                                             .config = config,
                                             .settings = settings,
                                             .pool = pool_options(o),
                                             .checkpoint = o->checkpoint,
                                             .evaluate_every = o->every,
                                             .check_rows = o->check_rows,
                                             .crash = o->crash,
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

static err simulate_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct simulate_command *o = options;
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    struct fleet_options how;
    struct fleet fleet = {0};
    char name[LIMIT_NAME_BYTES];
    const struct command_given split[] = {{"write", o->write != NULL}};
    TRY(command_check_unused(split, 1, "simulate split"));
    if (o->run.privacy)
        return err_make(ERR_INPUT, "--privacy: simulations with privacy are not supported yet");
    if (o->run.frozen)
        return err_make(ERR_INPUT,
                        "--frozen: simulations with given factors are not supported yet");
    TRY(name_run(name, o, arguments));
    TRY(fleet_options(&how, o, arena));
    TRY(check_ranks(&how, o));
    TRY(run_options_config(&config, &o->run, arena));
    config.name = name;
    config.evaluate_every = 0; /* members hold no rows back; the test set is measured here */
    err e = fleet_open(&fleet, &how);
    if (!err_is(e)) e = simulate(&fleet, o, &config, o->output ? o->output : name);
    fleet_close(&fleet);
    message_free(config.training);
    return e;
}

static err split_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct simulate_command *o = options;
    struct fleet_options how;
    struct fleet fleet = {0};
    (void)arguments;
    TRY(fleet_options(&how, o, arena));
    TRY(fleet_open(&fleet, &how));
    printf("%s", fleet.histogram);
    if (!fleet.histogram[0])
        for (size_t i = 0; i < fleet.members; i++)
            printf("%-20s %7zu\n", fleet.member[i].id, fleet.member[i].data.count);
    err e = o->write ? fleet_write(&fleet, &how, o->write) : ERR_NONE;
    fleet_close(&fleet);
    return e;
}

const struct command command_simulate = {
    .name = "simulate",
    .purpose = "simulate a federation with many clients in this process",
    .usage = "[FILE.ini] --base B --data F --method M --rounds N [options] [-o DIR]",
    .example = "fedlora simulate --base SmolLM2 --data rows.jsonl --clients 100 --method flora "
               "--rounds 10 --steps 4",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .describes_run = true,
    .reads_file = true,
    .skipped = run_options_deployed,
    .options_size = sizeof(struct simulate_command),
    .most = 1,
    .run = simulate_main,
    .details = method_help,
};

const struct command command_simulate_split = {
    .name = "simulate split",
    .purpose = "show how rows are dealt to simulated clients",
    .usage = "[FILE.ini] --base B --data F [options] [--write DIR]",
    .example = "fedlora simulate split --base SmolLM2 --data rows.jsonl --clients 100 --split "
               "dirichlet --by label --split-alpha 0.1",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .describes_run = true,
    .reads_file = true,
    .skipped = run_options_deployed,
    .options_size = sizeof(struct simulate_command),
    .most = 1,
    .run = split_main,
    .details = method_help,
};
