#include "sim/outcome.h"

#include "base/file.h"
#include "base/json.h"
#include "sim/results.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES = 64 << 20, NOTE_BYTES = 1 << 16, LINE_BYTES = 8192 };
const char *const outcome_statuses[] = {"missing", "done", "stopped early", "failed"};

/* ---- reading ---- */

static err keep(const char **out, struct outcomes *o, const char *text)
{
    return arena_text(out, &o->arena, text, strlen(text));
}

static bool has_file(const char *dir, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    return !err_is(file_join(path, sizeof path, dir, name)) && file_exists(path);
}

static err open_json(json_t **out, const char *dir, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    return json_open(out, path, FILE_BYTES);
}

static err read_note(const char **out, struct outcomes *o, const char *dir)
{
    char path[LIMIT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    TRY(file_join(path, sizeof path, dir, "error.txt"));
    TRY(file_read_all(&text, &size, path, NOTE_BYTES));
    text[strcspn(text, "\n")] = 0;
    err e = keep(out, o, text);
    free(text);
    return e;
}

static err repeat_command(struct outcome *c, struct outcomes *o, const char *run)
{
    char line[LINE_BYTES];
    c->repeat = "";
    if (!has_file(c->dir, "run.ini")) return ERR_NONE;
    snprintf(line, sizeof line, "fedlora simulate %s/run.ini --run %s -o repeated", c->dir, run);
    return keep(&c->repeat, o, line);
}

static err read_members(struct outcome *c, const json_t *members)
{
    const json_t *loss = json_object_get(members, "loss");
    TRY(json_opt_num(&c->members_loss, loss, "mean", "result.json"));
    return json_opt_num(&c->worst_loss, loss, "worst_tenth", "result.json");
}

static err read_spectrum(struct outcome *c, struct outcomes *o, const json_t *list)
{
    size_t n = json_array_size(list);
    TRY(arena_take(&c->spectrum, &o->arena, n + 1, sizeof *c->spectrum));
    for (size_t i = 0; i < n; i++)
        c->spectrum[i] = json_number_value(json_array_get(list, i));
    c->spectrum_values = n;
    return ERR_NONE;
}

static err read_machine(struct outcome *c, struct outcomes *o, const json_t *result)
{
    const char *processor = "", *libraries = "";
    char text[LINE_BYTES];
    TRY(json_opt_str(&processor, result, "processor", "result.json"));
    TRY(json_opt_str(&libraries, result, "libraries", "result.json"));
    snprintf(text, sizeof text, "%s, %s", processor, libraries);
    return keep(&c->machine, o, text);
}

static err read_result(struct outcome *c, struct outcomes *o)
{
    json_t *result = NULL;
    const char *stopped = "", *method = "", *run = "simulated";
    TRY(open_json(&result, c->dir, "result.json"));
    err e = json_opt_str(&stopped, result, "stopped", "result.json");
    if (!err_is(e)) e = read_members(c, json_object_get(result, "members"));
    if (!err_is(e)) e = read_spectrum(c, o, json_object_get(result, "spectrum"));
    if (!err_is(e)) e = read_machine(c, o, result);
    if (!err_is(e)) e = json_opt_str(&method, result, "method", "result.json");
    if (!err_is(e)) e = json_opt_str(&run, result, "run", "result.json");
    if (!err_is(e)) e = repeat_command(c, o, run);
    if (!err_is(e)) e = keep(&c->note, o, stopped);
    if (!err_is(e) && !*c->label) e = keep(&c->label, o, method);
    c->status = *stopped ? OUTCOME_STOPPED : OUTCOME_DONE;
    json_decref(result);
    return e;
}

/* A failed cell shows the rounds that it had. */
static err read_cell(struct outcome *c, struct outcomes *o)
{
    c->note = c->repeat = c->machine = "";
    c->members_loss = c->worst_loss = NAN;
    if (has_file(c->dir, "rounds.jsonl"))
        TRY(results_read(&c->round, &c->rounds, c->dir, &o->arena));
    if (has_file(c->dir, "result.json")) return read_result(c, o);
    if (!has_file(c->dir, "error.txt")) return ERR_NONE;
    c->status = OUTCOME_FAILED;
    return read_note(&c->note, o, c->dir);
}

static err add_outcome(struct outcome **out, struct outcomes *o)
{
    struct outcome *more = NULL;
    if ((o->count & (o->count - 1)) == 0) { /* 0, 1, 2, 4, ...: full */
        TRY(arena_take(&more, &o->arena, o->count ? 2 * o->count : 1, sizeof *more));
        if (o->count) memcpy(more, o->one, o->count * sizeof *more);
        o->one = more;
    }
    *out = &o->one[o->count++];
    return ERR_NONE;
}

static err find_group(size_t *out, struct outcomes *o, const char *label)
{
    const char **more = NULL;
    for (*out = 0; *out < o->groups; ++*out)
        if (!strcmp(o->group[*out], label)) return ERR_NONE;
    TRY(arena_take(&more, &o->arena, o->groups + 1, sizeof *more));
    if (o->groups) memcpy(more, o->group, o->groups * sizeof *more);
    o->group = more;
    return keep(&o->group[o->groups++], o, label);
}

/* The part of a path after the last slash that has text behind it. */
static void base_name(char out[LIMIT_NAME_BYTES], const char *dir)
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/')
        end--;
    size_t from = end;
    while (from && dir[from - 1] != '/')
        from--;
    snprintf(out, LIMIT_NAME_BYTES, "%.*s", (int)(end - from), dir + from);
}

/* `name`: of a cell; NULL: a single simulation. */
static err read_reference(struct outcome *c, const char *dir, const char *name)
{
    char all[LIMIT_PATH_BYTES], own[LIMIT_PATH_BYTES];
    TRY(file_join(all, sizeof all, dir, "reference"));
    if (!name) return reference_read(&c->reference, all);
    TRY(file_join(own, sizeof own, all, name));
    return reference_read(&c->reference, own);
}

/* prefix: put in front of labels, where several folders are shown together. */
static err open_single(struct outcomes *o, const char *dir, const char *prefix)
{
    struct outcome *c = NULL;
    TRY(add_outcome(&c, o));
    TRY(keep(&c->dir, o, dir));
    c->seed = "";
    c->label = prefix;
    TRY(read_cell(c, o));
    TRY(read_reference(c, dir, NULL));
    return find_group(&c->group, o, c->label);
}

static err take_values(struct outcome *c, struct outcomes *o, const json_t *values)
{
    if (!o->keys) return ERR_NONE;
    TRY(arena_take(&c->value, &o->arena, o->keys, sizeof *c->value));
    for (size_t i = 0; i < o->keys; i++) {
        const char *text = "";
        TRY(json_get_str(&text, values, o->key[i], "sweep.json"));
        TRY(keep(&c->value[i], o, text));
    }
    return ERR_NONE;
}

struct sweep_folder {
    const char *dir, *prefix;
};

static err open_cell(struct outcomes *o, const struct sweep_folder *f, const json_t *cell)
{
    static const char where[] = "sweep.json";
    const char *name = "", *label = "", *group = "", *seed = "";
    char cells[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES], text[LINE_BYTES];
    struct outcome *c = NULL;
    const char *apart = *f->prefix ? " " : "";
    TRY(json_get_str(&name, cell, "name", where));
    TRY(json_get_str(&label, cell, "label", where));
    TRY(json_get_str(&group, cell, "group", where));
    TRY(json_get_str(&seed, cell, "seed", where));
    TRY(file_join(cells, sizeof cells, f->dir, "cells"));
    TRY(file_join(path, sizeof path, cells, name));
    TRY(add_outcome(&c, o));
    TRY(keep(&c->dir, o, path));
    TRY(keep(&c->seed, o, seed));
    snprintf(text, sizeof text, "%s%s%s", f->prefix, apart, label);
    TRY(keep(&c->label, o, text));
    TRY(take_values(c, o, json_object_get(cell, "values")));
    TRY(read_cell(c, o));
    TRY(read_reference(c, f->dir, name));
    snprintf(text, sizeof text, "%s%s%s", f->prefix, apart, group);
    return find_group(&c->group, o, *text ? text : "all");
}

static err take_keys(struct outcomes *o, const json_t *keys)
{
    size_t i;
    const json_t *key;
    TRY(arena_take(&o->key, &o->arena, json_array_size(keys) + 1, sizeof *o->key));
    json_array_foreach((json_t *)(uintptr_t)keys, i, key)
        TRY(keep(&o->key[o->keys++], o, json_string_value(key) ? json_string_value(key) : ""));
    return ERR_NONE;
}

static err sweep_command(struct outcomes *o, const json_t *plan, const char *dir)
{
    char line[LINE_BYTES];
    const char *file = "", *run = "";
    TRY(json_get_str(&file, plan, "file", "sweep.json"));
    TRY(json_get_str(&run, plan, "run", "sweep.json"));
    snprintf(line, sizeof line, "fedlora simulate %s --run %s -o %s", file, run, dir);
    return keep(&o->command, o, line);
}

static err open_sweep(struct outcomes *o, const char *dir, const char *prefix)
{
    json_t *plan = NULL, *cell;
    size_t i;
    struct sweep_folder f = {dir, prefix};
    TRY(open_json(&plan, dir, "sweep.json"));
    err e = *prefix ? ERR_NONE : take_keys(o, json_object_get(plan, "keys"));
    if (!err_is(e) && !*prefix) e = sweep_command(o, plan, dir);
    json_array_foreach(json_object_get(plan, "cells"), i, cell) if (!err_is(e)) e =
        open_cell(o, &f, cell);
    json_decref(plan);
    return e;
}

static err open_folder(struct outcomes *o, const char *dir, bool alone)
{
    char name[LIMIT_NAME_BYTES] = "";
    if (!alone) base_name(name, dir);
    if (has_file(dir, "sweep.json")) return open_sweep(o, dir, name);
    if (has_file(dir, "rounds.jsonl")) return open_single(o, dir, name);
    return err_make(ERR_INPUT, "%s: holds no simulation and no sweep", dir);
}

err outcomes_open(struct outcomes *out, const char *const *dir, size_t dirs)
{
    struct outcomes o = {.command = ""};
    err e = ERR_NONE;
    for (size_t i = 0; i < dirs && !err_is(e); i++)
        e = open_folder(&o, dir[i], dirs == 1);
    if (err_is(e))
        outcomes_close(&o);
    else
        *out = o;
    return e;
}

void outcomes_close(struct outcomes *o)
{
    arena_close(&o->arena);
    *o = (struct outcomes){0};
}

/* ---- figures ---- */

double outcome_figure(const struct outcome *o, enum outcome_figure figure)
{
    double value = NAN;
    if (figure == OUTCOME_MEMBERS_LOSS) return o->members_loss;
    if (figure == OUTCOME_WORST_LOSS) return o->worst_loss;
    for (size_t i = 0; i < o->rounds; i++) {
        const struct simulate_round *r = &o->round[i];
        double now = figure == OUTCOME_LOSS         ? r->loss
                     : figure == OUTCOME_ACCURACY   ? (r->accuracy < 0 ? NAN : 100 * r->accuracy)
                     : figure == OUTCOME_TRAIN_LOSS ? r->train_loss
                     : figure == OUTCOME_ERROR      ? 100 * r->error
                     : figure == OUTCOME_UP         ? (double)r->bytes_up
                     : figure == OUTCOME_DOWN       ? (double)r->bytes_down
                     : figure == OUTCOME_EPSILON    ? r->epsilon
                                                    : (double)r->virtual_ms;
        if (isfinite(now)) value = now;
    }
    return value;
}

struct outcome_mean outcome_mean(const double *value, size_t count)
{
    struct outcome_mean m = {0, NAN, 0};
    double squares = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(value[i])) continue;
        m.mean += value[i];
        m.count++;
    }
    m.mean = m.count ? m.mean / (double)m.count : NAN;
    for (size_t i = 0; i < count; i++)
        if (isfinite(value[i])) squares += (value[i] - m.mean) * (value[i] - m.mean);
    if (m.count > 1) m.sd = sqrt(squares / (double)(m.count - 1));
    return m;
}

bool outcome_finished(const struct outcome *o)
{
    return o->status == OUTCOME_DONE || o->status == OUTCOME_STOPPED;
}

struct outcome_mean outcomes_mean(const struct outcomes *o, size_t group,
                                  enum outcome_figure figure)
{
    double value[SWEEP_CELLS];
    size_t n = 0;
    for (size_t i = 0; i < o->count && n < SWEEP_CELLS; i++)
        if (o->one[i].group == group && outcome_finished(&o->one[i]))
            value[n++] = outcome_figure(&o->one[i], figure);
    return outcome_mean(value, n);
}

struct outcome_mean outcomes_reference(const struct outcomes *o, enum reference_kind kind,
                                       bool accuracy)
{
    double value[SWEEP_CELLS];
    size_t n = 0;
    for (; n < o->count && n < SWEEP_CELLS; n++)
        value[n] =
            accuracy ? 100 * o->one[n].reference.accuracy[kind] : o->one[n].reference.loss[kind];
    return outcome_mean(value, n);
}

size_t outcomes_with(const struct outcomes *o, enum outcome_status status)
{
    size_t n = 0;
    for (size_t i = 0; i < o->count; i++)
        n += o->one[i].status == status;
    return n;
}

/* ---- writing ---- */

/* In quotes, because values may have commas. */
static err csv_text(struct bytes *out, const char *text)
{
    TRY(bytes_append(out, "\"", 1));
    for (; *text; text++)
        TRY(bytes_printf(out, *text == '"' ? "\"%c" : "%c", *text));
    return bytes_append(out, "\",", 2);
}

static err csv_number(struct bytes *out, double x)
{
    return isfinite(x) ? bytes_printf(out, "%.10g,", x) : bytes_append(out, ",", 1);
}

static err csv_row(struct bytes *out, const struct outcomes *o, size_t n)
{
    const struct outcome *c = &o->one[n];
    char state[DIGEST_TEXT_BYTES] = "";
    if (c->rounds) digest_text(state, &c->round[c->rounds - 1].state);
    TRY(bytes_printf(out, "%zu,", n + 1));
    for (size_t i = 0; i < o->keys; i++)
        TRY(csv_text(out, c->value[i]));
    TRY(bytes_printf(out, "%s,%zu,", outcome_statuses[c->status], c->rounds));
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) /* the virtual time in seconds */
        TRY(csv_number(out, outcome_figure(c, f) / (f == OUTCOME_VIRTUAL ? 1000 : 1)));
    TRY(csv_text(out, state));
    TRY(csv_text(out, c->note));
    out->data[out->size - 1] = '\n'; /* in place of the last comma */
    return ERR_NONE;
}

err outcomes_csv(struct bytes *out, const struct outcomes *o)
{
    TRY(bytes_printf(out, "cell,"));
    for (size_t i = 0; i < o->keys; i++)
        TRY(csv_text(out, o->key[i]));
    TRY(bytes_printf(out,
                     "status,rounds,loss,accuracy_percent,train_loss,error_percent,bytes_up,"
                     "bytes_down,virtual_s,members_loss,worst_tenth_loss,epsilon,state,note\n"));
    for (size_t i = 0; i < o->count; i++)
        TRY(csv_row(out, o, i));
    return ERR_NONE;
}

static json_t *cell_json(const struct sweep_cell *c)
{
    json_t *values = json_object();
    for (size_t i = 0; values && i < c->values.count; i++) {
        const char *item = c->values.item[i], *equals = strchr(item, '=');
        json_object_setn_new(values, item, (size_t)(equals - item), json_string(equals + 1));
    }
    return json_pack("{s:s,s:s,s:s,s:s,s:o}", "name", c->name, "label", c->label, "group", c->group,
                     "seed", c->seed, "values", values);
}

err outcome_plan_json(struct bytes *out, const struct outcome_plan *plan)
{
    char digest[DIGEST_TEXT_BYTES];
    json_t *keys = json_array(), *cells = json_array();
    bool good = keys && cells;
    digest_text(digest, &plan->digest);
    for (size_t i = 0; good && i < plan->sweep->axes; i++)
        good = json_array_append_new(keys, json_string(plan->sweep->axis[i].key)) == 0;
    for (size_t i = 0; good && i < plan->sweep->cells; i++)
        good = json_array_append_new(cells, cell_json(&plan->cell[i])) == 0;
    json_t *all = json_pack("{s:s,s:s,s:s,s:o,s:o}", "run", plan->run, "file", plan->file, "digest",
                            digest, "keys", keys, "cells", cells);
    err e = good && all ? json_write(out, all) : err_sys(ENOMEM, "sweep");
    json_decref(all);
    return e;
}
