#include "client/command/simulate_plan.h"

#include "base/text.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "proto/message.h"
#include "sim/cost.h"

#include <stdio.h>
#include <string.h>

enum { METHODS_MAX = 64, CELL_BYTES = 48 };

struct row {
    char method[LIMIT_NAME_BYTES];
    struct cost cost;
    err refused; /* the run could not be created or could not end */
};
struct table_of_costs {
    const struct simulate_command *o;
    const struct fleet *fleet;
    struct row row[METHODS_MAX];
    size_t count;
    bool several; /* a method that is refused does not end the command */
};

/* ---- the methods ---- */

/* An unknown name in a list is an error, because a missing row would not be noticed. A single
 * method is checked by the coordinator's own rules. */
static err list_methods(struct table_of_costs *t)
{
    const char *list = t->o->methods ? t->o->methods : t->o->run.method;
    const char *const *all = method_names();
    char near[TEXT_SUGGESTION_BYTES];
    if (!list)
        return err_make(ERR_INPUT, "--method is missing: expected the name of a method, or "
                                   "--methods all");
    t->several = t->o->methods != NULL;
    if (t->several && !strcmp(list, "all")) {
        for (; all[t->count] && t->count < METHODS_MAX; t->count++)
            snprintf(t->row[t->count].method, LIMIT_NAME_BYTES, "%s", all[t->count]);
        return ERR_NONE;
    }
    for (const char *at = list;; at++) {
        size_t n = strcspn(at, ",");
        if (t->count == METHODS_MAX)
            return err_make(ERR_INPUT, "--methods: more than %d methods", METHODS_MAX);
        snprintf(t->row[t->count].method, LIMIT_NAME_BYTES, "%.*s",
                 (int)(n < LIMIT_NAME_BYTES ? n : LIMIT_NAME_BYTES - 1), at);
        if (t->several && !method_find(t->row[t->count].method))
            return err_make(ERR_INPUT, "--methods: \"%s\" is not a method%s",
                            t->row[t->count].method,
                            method_suggestion(near, t->row[t->count].method));
        t->count++;
        at += n;
        if (!*at) return ERR_NONE;
    }
}

/* A refusal is part of the answer if there are several methods: each has conditions of its own. */
static err make_rows(struct table_of_costs *t, const Fedlora__V1__RunConfig *config)
{
    struct attack attack;
    TRY(simulate_attack(&attack, t->o));
    for (size_t i = 0; i < t->count; i++) {
        struct row *row = &t->row[i];
        const struct cost_options options = {.fleet = t->fleet,
                                             .config = config,
                                             .method = row->method,
                                             .precision = simulate_precision(t->o),
                                             .checkpoint = t->o->checkpoint,
                                             .attack = &attack};
        TRY(stop_check());
        row->refused = cost_make(&row->cost, &options);
        if (!t->several && err_is(row->refused)) return row->refused;
        if (row->refused.kind == ERR_MACHINE) return row->refused;
    }
    return ERR_NONE;
}

/* ---- for people ---- */

/* "83.89 M" and "2097.15 M": millions, as in published tables. */
static void count_text(char out[CELL_BYTES], uint64_t n)
{
    if (n < 100000)
        snprintf(out, CELL_BYTES, "%llu", (unsigned long long)n);
    else
        snprintf(out, CELL_BYTES, "%.2f M", (double)n / 1e6);
}

static void bytes_text(char out[CELL_BYTES], uint64_t n)
{
    text_size(out, CELL_BYTES, n);
}

/* Clients of different ranks have different sizes: "1.2 kB - 4.8 kB". */
static err range_cell(struct table *t, const struct cost_range *r,
                      void (*text)(char out[CELL_BYTES], uint64_t n))
{
    char least[CELL_BYTES], most[CELL_BYTES];
    text(least, r->least);
    text(most, r->most);
    if (r->least == r->most) return table_cell(t, "%s", most);
    return table_cell(t, "%s - %s", least, most);
}

/* "-" for 0: no frozen factors, for example. */
static err text_cell(struct table *t, uint64_t n, const char *before,
                     void (*text)(char out[CELL_BYTES], uint64_t n))
{
    char value[CELL_BYTES];
    if (!n) return table_cell(t, "-");
    text(value, n);
    return table_cell(t, "%s%s", before, value);
}

/* Virtual time, so that it is the same on every machine. */
static err time_cell(struct table *t, uint64_t ms)
{
    char text[CELL_BYTES];
    text_duration(text, sizeof text, ms);
    return table_cell(t, "%s", text);
}

/* A bound is marked, because the values decide how far a carry is recompressed. */
static err add_row(struct table *t, const struct cost *c)
{
    const char *most = c->bound ? "<= " : "";
    TRY(table_cell(t, "%s", c->method));
    TRY(range_cell(t, &c->trained, count_text));
    TRY(range_cell(t, &c->up, bytes_text));
    TRY(text_cell(t, c->first.bytes, "", bytes_text));
    TRY(text_cell(t, c->last.bytes, most, bytes_text));
    TRY(text_cell(t, c->frozen.bytes, "", bytes_text));
    TRY(text_cell(t, c->up_total + c->down_total, most, bytes_text));
    TRY(text_cell(t, c->tokens, "", count_text));
    TRY(time_cell(t, c->p50_ms));
    TRY(time_cell(t, c->p95_ms));
    TRY(time_cell(t, c->virtual_ms));
    TRY(text_cell(t, c->spool_bytes, "", bytes_text));
    TRY(text_cell(t, c->store_bytes, most, bytes_text));
    TRY(text_cell(t, c->memory_bytes, "", bytes_text));
    if (!c->budget) return table_cell(t, "-");
    return table_cell(t, "%.4g", c->epsilon);
}

/* Refused methods have no row; print_text() names the reasons below the table. */
static err print_table(const struct table_of_costs *t)
{
    static const char *const head[] = {"method", "trained", "up",     "down, first", "last",
                                       "frozen", "total",   "tokens", "task p50",    "p95",
                                       "run",    "spool",   "states", "memory",      "epsilon"};
    struct table table;
    err e;
    table_begin(&table, "lrrrrrrrrrrrrrr");
    TRY_OUT(e, table_row(&table, head));
    for (size_t i = 0; i < t->count; i++)
        if (!err_is(t->row[i].refused)) TRY_OUT(e, add_row(&table, &t->row[i].cost));
    e = table_print(&table);
out:
    table_close(&table);
    return e;
}

static err add_class(struct table *t, const struct cost *c, const struct devices *d, size_t n)
{
    const struct cost_class *class = &c->class[n];
    TRY(table_cell(t, "%s", c->method));
    TRY(table_cell(t, "%s", d->class[n].name));
    TRY(table_cell(t, "%zu", class->members));
    TRY(text_cell(t, class->need, "", bytes_text));
    TRY(text_cell(t, d->class[n].memory, "", bytes_text));
    return table_cell(t, "%zu", class->over);
}

/* The memory of each class. A simulation refuses clients that cannot train. */
static err print_classes(const struct table_of_costs *t)
{
    static const char *const head[] = {"method",        "class",     "clients",
                                       "memory needed", "available", "cannot train"};
    const struct devices *d = &t->fleet->devices;
    struct table table;
    err e;
    if (!devices_state_memory(d)) return ERR_NONE;
    table_begin(&table, "llrrrr");
    TRY_OUT(e, table_row(&table, head));
    for (size_t i = 0; i < t->count; i++)
        for (size_t n = 0; n < d->classes && !err_is(t->row[i].refused); n++)
            TRY_OUT(e, add_class(&table, &t->row[i].cost, d, n));
    printf("\n");
    e = table_print(&table);
out:
    table_close(&table);
    return e;
}

/* The part of the cost that tables of published work leave out. */
static void print_notes(const struct cost *c)
{
    char sent[CELL_BYTES], result[CELL_BYTES], frozen[CELL_BYTES];
    count_text(sent, c->sent);
    count_text(result, c->result.values);
    printf("%s: all clients together send %s values in a round; the last state has %s%s", c->method,
           sent, c->bound ? "at most " : "", result);
    count_text(frozen, c->frozen.values);
    if (c->frozen.values)
        printf("; frozen factors, fetched once, have %s, which published tables leave out", frozen);
    printf("\n");
    if (!c->budget) return;
    printf("%s: epsilon %.4g of %g at delta %g after %u rounds, noise multiplier ", c->method,
           c->epsilon, c->budget, c->delta, c->rounds);
    if (c->noise.least < c->noise.most)
        printf("%.5g to %.5g by the members' rows", c->noise.least, c->noise.most);
    else
        printf("%.5g", c->noise.most);
    if (c->private_client) printf(", noise in the mean %.3g times the clip norm", c->ratio);
    printf("\n");
}

/* The columns are explained below the table, because their heads must be short. */
static err print_text(const struct table_of_costs *t)
{
    bool any = false;
    for (size_t i = 0; i < t->count; i++)
        any = any || !err_is(t->row[i].refused);
    if (any) TRY(print_table(t));
    if (any) TRY(print_classes(t));
    printf("\ntrained: values that a client trains and sends in a round. up, down: bytes of a "
           "client in a\nround. frozen: fetched once. total: both ways, all clients and rounds. "
           "task, run: virtual time\nby the device classes. spool, states: disk of the "
           "coordinator. memory: of a client on a CPU.\n");
    if (t->o->attack)
        printf(
            "Updates of the attack \"%s\" count as those of other clients, also if the coordinator "
            "refuses\nthem.\n",
            t->o->attack);
    if (t->o->crash > 0) printf("Crashes of the coordinator change none of these figures.\n");
    for (size_t i = 0; i < t->count; i++) {
        if (err_is(t->row[i].refused))
            printf("%s: refused: %s\n", t->row[i].method, t->row[i].refused.text);
        else
            print_notes(&t->row[i].cost);
    }
    return ERR_NONE;
}

/* ---- for programs ---- */

/* Bytes are those of files, the header included; values are what published tables count. */
static json_t *size_json(const struct cost_size *s)
{
    return json_pack("{s:I,s:I}", "values", (json_int_t)s->values, "bytes", (json_int_t)s->bytes);
}

/* Members of different ranks send different sizes: the least and the most. */
static json_t *range_json(const struct cost_range *r)
{
    return json_pack("{s:I,s:I}", "least", (json_int_t)r->least, "most", (json_int_t)r->most);
}

/* The noise is a range with unit example, because each member chooses its own. */
static json_t *privacy_json(const struct cost *c)
{
    if (!c->budget) return json_null();
    json_t *o =
        json_pack("{s:s,s:f,s:f,s:f,s:f,s:f}", "unit", c->private_client ? "client" : "example",
                  "epsilon", c->epsilon, "budget", c->budget, "delta", c->delta, "noise_least",
                  c->noise.least, "noise_most", c->noise.most);
    if (o && c->private_client) json_object_set_new(o, "ratio", json_real(c->ratio));
    return o;
}

/* All classes, also those without a stated memory, whose available bytes are 0. */
static json_t *classes_json(const struct cost *c, const struct devices *d)
{
    json_t *all = json_array();
    for (size_t i = 0; all && i < d->classes; i++) {
        json_t *class =
            json_pack("{s:s,s:I,s:I,s:I,s:I}", "name", d->class[i].name, "clients",
                      (json_int_t)c->class[i].members, "memory_bytes", (json_int_t)c->class[i].need,
                      "available_bytes", (json_int_t)d->class[i].memory, "cannot_train",
                      (json_int_t)c->class[i].over);
        if (json_array_append_new(all, class) != 0) break;
    }
    return all;
}

/* Totals of a refused method are not known, so its object has only the reason. */
static json_t *row_json(const struct row *row, const struct devices *devices)
{
    const struct cost *c = &row->cost;
    if (err_is(row->refused))
        return json_pack("{s:s,s:s}", "method", row->method, "refused", row->refused.text);
    return json_pack(
        "{s:s,s:o,s:o,s:I,s:o,s:o,s:o,s:o,s:b,s:I,s:f,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:I,s:I,s:I,s:I,"
        "s:o,s:o}",
        "method", c->method, "trained", range_json(&c->trained), "up_bytes", range_json(&c->up),
        "sent_values", (json_int_t)c->sent, "first_state", size_json(&c->first), "last_state",
        size_json(&c->last), "result_state", size_json(&c->result), "frozen", size_json(&c->frozen),
        "at_most", c->bound, "rounds", (json_int_t)c->rounds, "clients_per_round", c->clients,
        "bytes_up", (json_int_t)c->up_total, "bytes_down", (json_int_t)c->down_total, "tokens",
        (json_int_t)c->tokens, "lost_tasks", (json_int_t)c->lost, "task_p50_s",
        (double)c->p50_ms / 1000, "task_p95_s", (double)c->p95_ms / 1000, "virtual_s",
        (double)c->virtual_ms / 1000, "spool_bytes", (json_int_t)c->spool_bytes, "states_bytes",
        (json_int_t)c->store_bytes, "weights_bytes", (json_int_t)c->weights_bytes, "memory_bytes",
        (json_int_t)c->memory_bytes, "classes", classes_json(c, devices), "privacy",
        privacy_json(c));
}

/* All methods are in one document, so that a script needs one call for a table. */
static err print_json(const struct table_of_costs *t)
{
    json_t *rows = json_array(), *all = NULL;
    for (size_t i = 0; rows && i < t->count; i++)
        if (json_array_append_new(rows, row_json(&t->row[i], &t->fleet->devices)) != 0) break;
    if (rows && json_array_size(rows) == t->count)
        all = json_pack("{s:s,s:I,s:O}", "base", t->o->run.base, "clients",
                        (json_int_t)t->fleet->members, "methods", rows);
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    json_decref(rows);
    return e;
}

/* ---- the command ---- */

/* The assumptions behind the figures. */
static void print_head(const struct table_of_costs *t)
{
    const struct fleet *f = t->fleet;
    const struct command_common *common = &t->o->run.common;
    if (err_is(f->untrainable))
        command_note(common, "this program cannot train the base: %s", f->untrainable.text);
    if (!f->files)
        command_note(common, "without --data every row counts as %lld tokens (--seq)",
                     (long long)t->o->run.training.seq);
    command_note(common, "%zu clients, %lld rounds", f->members, (long long)t->o->run.rounds);
}

/* Test rows cost nothing of what is counted here. */
static err plan_fleet(struct fleet *out, const struct simulate_command *o, struct arena *arena)
{
    struct fleet_options how;
    TRY(simulate_fleet_options(&how, o, arena));
    TRY(simulate_check_ranks(&how, o));
    how.shapes = true;
    how.test = NULL;
    return fleet_open(out, &how);
}

err simulate_plan(const struct simulate_command *o, const struct option_list *arguments,
                  struct arena *arena)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    struct run_options run = o->run;
    struct table_of_costs *t = NULL;
    struct fleet fleet = {0};
    char name[LIMIT_NAME_BYTES];
    TRY(simulate_check_verb(o, SIMULATE_PLAN));
    TRY(arena_take(&t, arena, 1, sizeof *t));
    t->o = o;
    t->fleet = &fleet;
    TRY(list_methods(t));
    TRY(simulate_run_name(name, o, arguments));
    if (!run.method) run.method = t->row[0].method;
    TRY(run_options_config(&config, &run, arena));
    config.name = name;
    config.evaluate_every = 0; /* as in a simulation */
    err e = plan_fleet(&fleet, o, arena);
    if (!err_is(e)) print_head(t);
    if (!err_is(e)) e = make_rows(t, &config);
    if (!err_is(e)) e = o->run.common.json ? print_json(t) : print_text(t);
    fleet_close(&fleet);
    message_free(config.training);
    return e;
}
