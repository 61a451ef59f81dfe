#include "client/command/simulate_sweep.h"

#include "base/file.h"
#include "base/json.h"
#include "base/lock.h"
#include "client/command/simulate_view.h"
#include "sim/federation.h"
#include "sim/folder.h"
#include "sim/page.h"
#include "sim/tensorboard.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A call for one sweep. Its cells have options of their own, in `arena`, so that all of them can be
 * checked before the first one runs, and so that one call can name every mistake of a file at its
 * start instead of after hours. */
struct sweep_run {
    const struct simulate_command *o;
    const struct option_list *arguments;
    struct arena *arena;
    struct sweep sweep;
    struct sweep_cell *cell;
    struct simulate_command **options; /* (cells) */
    struct option_list fixed;          /* --set of keys that have no list */
    bool held[SWEEP_WHENS];            /* sections that apply to a cell */
    const char *dir;
    char run[LIMIT_NAME_BYTES];
    size_t failed, busy;
    struct fleet source; /* the base and the rows of the last cell, for the next one */
    struct fleet_options source_options;
};

/* ---- the plan ---- */

static err add_items(struct option_list *list, const struct option_list *more, struct arena *arena)
{
    for (size_t i = 0; i < more->count; i++)
        TRY(option_list_add(list, more->item[i], strlen(more->item[i]), arena));
    return ERR_NONE;
}

/* Values for the key of a list replace the list; the others hold for all cells. */
static err take_sets(struct sweep_run *s)
{
    for (size_t i = 0; i < s->o->sets.count; i++) {
        const char *item = s->o->sets.item[i], *equals = strchr(item, '=');
        char key[128] = "";
        if (equals) snprintf(key, sizeof key, "%.*s", (int)(equals - item), item);
        if (!sweep_has(&s->sweep, key)) {
            TRY(option_list_add(&s->fixed, item, strlen(item), s->arena));
            continue;
        }
        err e = sweep_set(&s->sweep, key, equals + 1, s->arena);
        if (err_is(e)) return err_in(e, "--set");
    }
    return ERR_NONE;
}

static err no_cell(const struct sweep_run *s)
{
    return err_make(ERR_INPUT, "--cell %lld: the sweep has %zu cells", (long long)s->o->cell,
                    s->sweep.cells);
}

/* An option on the command line would have no effect if a list replaces its value. A value that the
 * file gives for the key is only the default of the list, so it is compared with that. */
static err check_unused(const struct sweep_run *s)
{
    struct simulate_command *file = NULL;
    const struct command_source *source = s->o->run.common.source;
    char given[512], before[512];
    TRY(command_again((void **)&file,
                      &(struct command_again){.source = source, .no_arguments = true}, s->arena));
    for (size_t i = 0; i < s->sweep.axes; i++) {
        const char *key = s->sweep.axis[i].key;
        bool has = command_text(given, sizeof given, s->o, key);
        bool had = command_text(before, sizeof before, file, key);
        if (has == had && (!has || !strcmp(given, before))) continue;
        return err_make(ERR_INPUT,
                        "--%s has no effect, because the sweep has a list of %s; --set %s=... "
                        "gives another list",
                        s->sweep.axis[i].flag, key, key);
    }
    return ERR_NONE;
}

/* True if all conditions of the section hold for these options. */
static err when_holds(bool *out, const struct sweep_when *w, const struct simulate_command *o,
                      struct arena *arena)
{
    *out = true;
    for (size_t i = 0; i < w->condition.count && *out; i++) {
        err e = command_has_value(out, o, w->condition.item[i], arena);
        if (err_is(e)) return err_in(e, "[%s]", w->section);
    }
    return ERR_NONE;
}

/* The conditions are about the options with the cell's own values. */
static err cell_options(struct simulate_command **out, struct sweep_run *s, size_t n)
{
    struct option_list own = {0}, when = {0};
    struct command_again again = {.source = s->o->run.common.source, .last = &own};
    TRY(add_items(&own, &s->fixed, s->arena));
    TRY(add_items(&own, &s->cell[n].values, s->arena));
    TRY(command_again((void **)out, &again, s->arena));
    for (size_t i = 0; i < s->sweep.whens; i++) {
        bool holds = false;
        TRY(when_holds(&holds, &s->sweep.when[i], *out, s->arena));
        if (holds) TRY(add_items(&when, &s->sweep.when[i].assignment, s->arena));
        s->held[i] |= holds;
    }
    again.file = &when;
    return when.count ? command_again((void **)out, &again, s->arena) : ERR_NONE;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && !strcmp(a, b));
}

/* Reading and tokenising takes longer than dealing, so cells with the same files share them. */
static err open_fleet(struct fleet *out, struct sweep_run *s, const struct fleet_options *o)
{
    const struct fleet_options *had = &s->source_options;
    struct fleet_options how = *o;
    bool same = had->base && same_text(had->base, o->base) && same_text(had->train, o->train) &&
                same_text(had->test, o->test) && had->seq == o->seq && had->eos == o->eos &&
                had->bos == o->bos && had->split_rows == o->split_rows && same_text(had->by, o->by);
    if (!same) {
        fleet_close(&s->source);
        s->source_options = (struct fleet_options){0};
        TRY(fleet_open(&s->source, o));
        s->source_options = *o;
        if (!s->o->run.common.quiet) simulate_view_data(&s->source, o);
    }
    how.from = &s->source;
    return fleet_open(out, &how);
}

/* The coordinator's own checks need the members but not their rows, unless the number of members
 * follows from the rows. A cell whose files cannot be read is no refusal: it fails when it runs,
 * and the next call tries it again. */
static err check_run(struct sweep_run *s, const struct simulate_setup *setup)
{
    struct fleet fleet = {0};
    struct fleet_options how = setup->fleet;
    bool by_rows = how.split.kind == DEAL_FIELD || file_is_dir(how.train);
    how.shapes = !by_rows;
    if (!by_rows) how.train = how.test = NULL;
    err opened = by_rows ? open_fleet(&fleet, s, &how) : fleet_open(&fleet, &how);
    err e = err_is(opened) ? ERR_NONE : federation_check(&fleet, &setup->config);
    fleet_close(&fleet);
    return e;
}

/* A single simulation makes these checks itself before it makes its folder. */
static err check_cell(struct sweep_run *s, size_t n)
{
    struct simulate_setup setup = {0};
    err e = simulate_setup(&setup, s->options[n], s->arguments, s->arena);
    if (!err_is(e) && s->sweep.axes) e = check_run(s, &setup);
    simulate_setup_close(&setup);
    return e;
}

/* Prints each reason once, with the first cell that has it, because a mistake in a list is usually
 * repeated for every seed. A single reason is the error itself, so that it is not printed twice. */
static err list_refusals(const struct sweep_run *s, const err *refusal, size_t refused)
{
    char first[2 * ERR_TEXT_BYTES] = "";
    size_t reasons = 0, all = s->sweep.cells;
    for (size_t i = 0; i < all; i++) {
        size_t same = 0, before = 0;
        for (size_t k = 0; k < all && err_is(refusal[i]); k++) {
            bool equal = err_is(refusal[k]) && !strcmp(refusal[k].text, refusal[i].text);
            same += equal && k > i;
            before += equal && k < i;
        }
        if (!err_is(refusal[i]) || before) continue;
        char more[48] = "";
        if (same) snprintf(more, sizeof more, " and %zu more", same);
        if (reasons++ == 1) fprintf(stderr, "%s\n", first);
        snprintf(first, sizeof first, "cell %zu (%s)%s: %s", i + 1, s->cell[i].label, more,
                 refusal[i].text);
        if (reasons > 1) fprintf(stderr, "%s\n", first);
    }
    if (reasons == 1) return err_make(ERR_INPUT, "%s", first);
    return err_make(ERR_INPUT, "%zu of %zu cells are refused, and none was run", refused, all);
}

/* All cells are checked before the first one runs, so that one call names all that is wrong. With
 * --cell the other cells' options are only read, because they decide whether the folder fits. A
 * section that applies to no cell may have a misspelt value, or --set has shortened a list. */
static err plan(struct sweep_run *s)
{
    err *refusal = NULL;
    size_t refused = 0;
    TRY(arena_take(&s->options, s->arena, s->sweep.cells, sizeof(struct simulate_command *)));
    TRY(arena_take(&refusal, s->arena, s->sweep.cells, sizeof *refusal));
    for (size_t i = 0; i < s->sweep.cells; i++) {
        err e = cell_options(&s->options[i], s, i);
        if (!err_is(e) && (!s->o->cell || i + 1 == (size_t)s->o->cell)) e = check_cell(s, i);
        if (err_is(e) && (!s->sweep.axes || e.kind != ERR_INPUT)) return e;
        refusal[i] = e;
        refused += err_is(e);
    }
    for (size_t i = 0; i < s->sweep.whens; i++)
        if (!s->held[i])
            command_note(&s->o->run.common, "[%s] applies to no cell", s->sweep.when[i].section);
    return refused ? list_refusals(s, refusal, refused) : ERR_NONE;
}

/* ---- files of the sweep ---- */

/* The settings of all cells decide whether a folder may be continued; comments in the file do not.
 */
static err settings_digest(struct digest *out, const struct sweep_run *s)
{
    struct digest_stream stream;
    struct bytes text = {.max = 16 << 20};
    err e = ERR_NONE;
    digest_begin(&stream);
    for (size_t i = 0; i < s->sweep.cells && !err_is(e); i++) {
        bytes_clear(&text);
        e = command_write_options(&text, s->options[i], s->arena);
        digest_add(&stream, s->cell[i].name, strlen(s->cell[i].name) + 1);
        if (!err_is(e)) digest_add(&stream, text.data, text.size);
    }
    *out = digest_end(&stream);
    bytes_close(&text);
    return e;
}

static err check_same(const char *path, const struct digest *digest, const char *dir)
{
    json_t *found = NULL;
    char text[DIGEST_TEXT_BYTES];
    const char *before = "";
    digest_text(text, digest);
    TRY(json_open(&found, path, 64 << 20));
    err e = json_get_str(&before, found, "digest", path);
    if (!err_is(e) && strcmp(before, text) != 0)
        e = err_make(ERR_INPUT,
                     "%s: holds a sweep with other settings; choose another folder with -o, or "
                     "begin anew with --force",
                     dir);
    json_decref(found);
    return e;
}

/* Only a folder that a sweep has made is emptied. */
static err begin_anew(const struct sweep_run *s, const char *path)
{
    char cells[LIMIT_PATH_BYTES];
    if (s->o->cell) return err_make(ERR_INPUT, "--force begins all cells anew: without --cell");
    if (!file_exists(path)) return ERR_NONE;
    TRY(file_join(cells, sizeof cells, s->dir, "cells"));
    TRY(folder_remove(cells));
    TRY(file_join(cells, sizeof cells, s->dir, "tb"));
    TRY(folder_remove(cells));
    TRY(file_join(cells, sizeof cells, s->dir, "reference"));
    TRY(folder_remove(cells));
    return unlink(path) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
}

/* sweep.json is what makes a folder that of a sweep: `simulate report` and later calls read the
 * cells from it and not from the configuration file, which may have changed. */
static err write_plan(const struct sweep_run *s, const char *path, const struct digest *digest)
{
    struct bytes text = {.max = 64 << 20};
    const char *file = s->arguments->count ? s->arguments->item[0] : "";
    const struct outcome_plan plan = {
        .run = s->run, .file = file, .sweep = &s->sweep, .cell = s->cell, .digest = *digest};
    err e = outcome_plan_json(&text, &plan);
    if (!err_is(e)) e = bytes_printf(&text, "\n");
    if (!err_is(e)) e = file_write(path, text.data, text.size, true);
    bytes_close(&text);
    return e;
}

/* Processes that start at the same time must not write the plan at the same time, and the second
 * one must find the first one's. */
static err open_folder(const struct sweep_run *s)
{
    char path[LIMIT_PATH_BYTES];
    struct digest digest;
    struct lock lock = {0};
    TRY(settings_digest(&digest, s));
    TRY(file_join(path, sizeof path, s->dir, "sweep.json"));
    if (s->o->force) TRY(begin_anew(s, path));
    TRY(folder_check_none(s->dir));
    TRY(file_make_dirs(s->dir));
    TRY(lock_try(&lock, s->dir, true));
    err e = file_exists(path) ? check_same(path, &digest, s->dir) : write_plan(s, path, &digest);
    lock_close(&lock);
    return e;
}

/* Both are made from the files of the cells, so the last process of several writes all of them. */
static err write_results(const struct sweep_run *s, bool print)
{
    char path[LIMIT_PATH_BYTES];
    struct outcomes all = {0};
    struct bytes csv = {.max = 64 << 20};
    struct lock lock = {0};
    TRY(lock_try(&lock, s->dir, true));
    err e = outcomes_open(&all, &s->dir, 1);
    if (!err_is(e)) e = outcomes_csv(&csv, &all);
    if (!err_is(e)) e = file_join(path, sizeof path, s->dir, "results.csv");
    if (!err_is(e)) e = file_write(path, csv.data, csv.size, true);
    if (!err_is(e)) e = page_write(s->dir);
    lock_close(&lock);
    if (!err_is(e) && print) e = simulate_outcomes_print(&all, s->o->run.common.json);
    bytes_close(&csv);
    outcomes_close(&all);
    return e;
}

/* ---- one cell ---- */

/* Reference lines are about the settings of the first cell, with each seed; the first cell with a
 * seed makes them. */
static err make_references(const struct sweep_run *s, size_t n, const struct simulate_show *show)
{
    char all[LIMIT_PATH_BYTES], dir[LIMIT_PATH_BYTES];
    if (strcmp(s->cell[n].group, s->cell[0].group) != 0) return ERR_NONE;
    TRY(file_join(all, sizeof all, s->dir, "reference"));
    if (!s->sweep.axes) return simulate_reference(show, all);
    TRY(file_join(dir, sizeof dir, all, s->cell[n].name));
    return simulate_reference(show, dir);
}

static err simulate_one(struct sweep_run *s, size_t n, const char *dir)
{
    struct simulate_setup setup = {0};
    struct fleet fleet = {0};
    char cell[64];
    const struct simulate_command *o = s->options[n];
    err e = simulate_setup(&setup, o, s->arguments, s->arena);
    if (!err_is(e)) e = open_fleet(&fleet, s, &setup.fleet);
    struct simulate_show show = {.fleet = &fleet, .o = o, .setup = &setup, .dir = dir};
    snprintf(cell, sizeof cell, "cell %zu of %zu", n + 1, s->sweep.cells);
    if (s->sweep.axes) {
        show.cell = cell;
        show.label = s->cell[n].label;
    }
    if (!err_is(e)) e = make_references(s, n, &show);
    if (!err_is(e)) e = simulate_show(&show);
    fleet_close(&fleet);
    simulate_setup_close(&setup);
    return e;
}

/* name: of the cell; NULL: a single simulation. */
static err write_events(const struct sweep_run *s, const char *name, const char *dir)
{
    char all[LIMIT_PATH_BYTES], own[LIMIT_PATH_BYTES];
    TRY(file_join(all, sizeof all, s->dir, "tb"));
    if (!name) return tensorboard_write(all, dir);
    TRY(file_join(own, sizeof own, all, name));
    return tensorboard_write(own, dir);
}

/* An error is recorded, and the other cells still run. */
static err run_unlocked(struct sweep_run *s, size_t n, const char *dir)
{
    char result[LIMIT_PATH_BYTES], failure[LIMIT_PATH_BYTES];
    TRY(file_join(result, sizeof result, dir, "result.json"));
    TRY(file_join(failure, sizeof failure, dir, "error.txt"));
    if (file_exists(result)) return ERR_NONE;
    err e = simulate_one(s, n, dir);
    if (e.kind == ERR_STOPPED) return e;
    if (!err_is(e)) {
        unlink(failure);
        return write_events(s, s->cell[n].name, dir);
    }
    s->failed++;
    command_note(&s->o->run.common, "cell %zu failed: %s", n + 1, e.text);
    return file_write(failure, e.text, strlen(e.text), true);
}

/* The lock of its folder keeps other processes away, such as jobs of an array. */
static err run_cell(struct sweep_run *s, size_t n)
{
    char cells[LIMIT_PATH_BYTES], dir[LIMIT_PATH_BYTES];
    struct lock lock = {0};
    TRY(file_join(cells, sizeof cells, s->dir, "cells"));
    TRY(file_join(dir, sizeof dir, cells, s->cell[n].name));
    TRY(file_make_dirs(dir));
    TRY(lock_try(&lock, dir, false));
    if (!lock.fd) {
        s->busy++;
        command_note(&s->o->run.common, "cell %zu is run by another process", n + 1);
        return ERR_NONE;
    }
    err e = run_unlocked(s, n, dir);
    lock_close(&lock);
    return e;
}

/* The tables are written after every cell, so that a long sweep can be looked at while it runs. */
static err run_cells(struct sweep_run *s)
{
    size_t from = s->o->cell ? (size_t)s->o->cell - 1 : 0;
    size_t end = s->o->cell ? from + 1 : s->sweep.cells;
    if (end > s->sweep.cells) return no_cell(s);
    TRY(check_unused(s));
    TRY(open_folder(s));
    for (size_t i = from; i < end; i++) {
        TRY(run_cell(s, i));
        TRY(write_results(s, i + 1 == end));
    }
    command_note(&s->o->run.common, "report: %s/report.html", s->dir);
    if (!s->failed) return ERR_NONE;
    return err_make(ERR_STATE, "%zu of %zu cells failed; %s/report.html names them", s->failed,
                    end - from, s->dir);
}

/* A single simulation begins anew too. */
static err run_single(struct sweep_run *s)
{
    if (s->o->cell) return err_make(ERR_INPUT, "--cell has no effect without a sweep");
    if (s->o->force) TRY(folder_clear(s->dir));
    TRY(simulate_one(s, 0, s->dir));
    return write_events(s, NULL, s->dir);
}

/* The lists of the file and of the command line, and the cells that follow from them. */
static err open_sweep(struct sweep_run *s)
{
    const struct option_list *files = s->arguments;
    TRY(simulate_run_name(s->run, s->o, files));
    TRY(sweep_read(&s->sweep, files->count ? files->item[0] : NULL, s->arena));
    if (s->o->seeds) TRY(sweep_set(&s->sweep, SWEEP_SEED, s->o->seeds, s->arena));
    TRY(take_sets(s));
    s->dir = s->o->output ? s->o->output : s->run;
    return sweep_cells(&s->cell, &s->sweep, s->arena);
}

err simulate_cell(const struct simulate_command **out, const struct simulate_command *o,
                  const struct option_list *arguments, struct arena *arena)
{
    struct sweep_run s = {.o = o, .arguments = arguments, .arena = arena};
    struct simulate_command *cell = NULL;
    size_t n = o->cell ? (size_t)o->cell - 1 : 0;
    TRY(open_sweep(&s));
    if (n >= s.sweep.cells) return no_cell(&s);
    TRY(cell_options(&cell, &s, n));
    *out = cell;
    return ERR_NONE;
}

err simulate_sweep(const struct simulate_command *o, const struct option_list *arguments,
                   struct arena *arena)
{
    struct sweep_run s = {.o = o, .arguments = arguments, .arena = arena};
    TRY(open_sweep(&s));
    TRY(plan(&s));
    err e = s.sweep.axes ? run_cells(&s) : run_single(&s);
    fleet_close(&s.source);
    return e;
}
