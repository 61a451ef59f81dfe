#include "sim/page.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "client/output/chart.h"
#include "sim/page_many.h"
#include "sim/results.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_BYTES_MAX = 64 << 20, JSON_BYTES_MAX = 16 << 20, GANTT_ROWS = 40, SETTING_BYTES = 512 };

struct page {
    const char *dir;
    struct outcomes self; /* this simulation */
    struct bytes out;
    struct arena arena;
    struct simulate_round *round;
    size_t rounds;
    double *x[3]; /* (rounds) number, MB sent, virtual time in `unit` */
    const char *unit;
    double *train, *loss, *accuracy, *error, *cut; /* the last two in percent */
};

static err cell(struct page *p, const char *tag, const char *text)
{
    return page_cell(&p->out, tag, text);
}

/* A file of the folder; *text stays NULL if there is none. */
static err read_file(char **text, const struct page *p, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    size_t size = 0;
    TRY(file_join(path, sizeof path, p->dir, name));
    return file_exists(path) ? file_read_all(text, &size, path, JSON_BYTES_MAX) : ERR_NONE;
}

/* ---- tables ---- */

/* Texts are shown without quotes, lists and objects as JSON. */
static err setting(struct page *p, const char *key, const json_t *value)
{
    char *json = NULL;
    const char *text = json_string_value(value);
    if (!text)
        text = json = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
    if (!text) return ERR_NONE;
    char shown[SETTING_BYTES];
    snprintf(shown, sizeof shown, "%s", text);
    if (strlen(text) >= sizeof shown) memcpy(shown + sizeof shown - 4, "...", 4);
    free(json);
    TRY(bytes_printf(&p->out, "<tr>"));
    TRY(cell(p, "td", key));
    TRY(bytes_printf(&p->out, "<td class=\"text\"><code>"));
    TRY(chart_text(&p->out, shown));
    return bytes_printf(&p->out, "</code></td></tr>\n");
}

static err object_rows(struct page *p, const char *name)
{
    char *text = NULL;
    json_t *object = NULL;
    TRY(read_file(&text, p, name));
    if (!text) return ERR_NONE;
    err e = json_parse(&object, text, strlen(text), name);
    free(text);
    if (err_is(e)) return e;
    for (void *at = json_object_iter(object); at && !err_is(e);
         at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        if (strcmp(key, "last") != 0) e = setting(p, key, json_object_iter_value(at));
    }
    json_decref(object);
    return e;
}

static err write_repeat(struct page *p)
{
    const char *command = p->self.one[0].repeat;
    if (!*command) return ERR_NONE;
    TRY(bytes_printf(&p->out, "<h2>How to repeat it</h2>\n<p><code>"));
    TRY(chart_text(&p->out, command));
    return bytes_printf(&p->out,
                        "</code></p>\n<p>With the same base and data, and on the same kind "
                        "of processor, it ends with the same digest.</p>\n");
}

static err write_settings(struct page *p)
{
    TRY(bytes_printf(&p->out, "<h2>Settings</h2>\n<div class=\"wide\"><table>\n"));
    TRY(object_rows(p, "settings.json"));
    TRY(object_rows(p, "result.json"));
    return bytes_printf(&p->out, "</table></div>\n");
}

static err number_cell(struct page *p, double x, const char *unit)
{
    char text[40] = "";
    if (isfinite(x)) snprintf(text, sizeof text, "%.4g%s", x, unit);
    return cell(p, "td", text);
}

static err round_row(struct page *p, const struct simulate_round *r)
{
    char text[64];
    TRY(bytes_printf(&p->out, "<tr><td>%u</td>", r->round));
    text_duration(text, sizeof text, r->virtual_ms);
    TRY(cell(p, "td", text));
    TRY(bytes_printf(&p->out, "<td>%zu</td><td>%zu</td><td>%zu</td><td>%zu</td>", r->updates,
                     r->late, r->lost, r->dropped));
    TRY(number_cell(p, r->train_loss, ""));
    TRY(number_cell(p, r->loss, ""));
    TRY(number_cell(p, r->accuracy < 0 ? NAN : 100 * r->accuracy, " %"));
    text_size(text, sizeof text, r->bytes_up);
    TRY(cell(p, "td", text));
    text_size(text, sizeof text, r->bytes_down);
    TRY(cell(p, "td", text));
    TRY(number_cell(p, r->epsilon, ""));
    return bytes_printf(&p->out, "</tr>\n");
}

static err write_rounds(struct page *p)
{
    TRY(bytes_printf(&p->out,
                     "<h2>Rounds</h2>\n<div class=\"wide\"><table>\n<tr><th>round</th>"
                     "<th>virtual time</th><th>updates</th><th>late</th><th>lost</th>"
                     "<th>dropped</th><th>training loss</th><th>test loss</th><th>accuracy</th>"
                     "<th>sent up</th><th>sent down</th><th>epsilon</th></tr>\n"));
    for (size_t i = 0; i < p->rounds; i++)
        TRY(round_row(p, &p->round[i]));
    return bytes_printf(&p->out, "</table></div>\n");
}

/* ---- charts ---- */

static err take_values(struct page *p)
{
    double **all[] = {&p->x[0], &p->x[1],     &p->x[2],  &p->train,
                      &p->loss, &p->accuracy, &p->error, &p->cut};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        TRY(arena_take(all[i], &p->arena, p->rounds + 1, sizeof(double)));
    double unit;
    p->unit = page_time_unit(&unit, (double)p->round[p->rounds - 1].virtual_ms);
    for (size_t i = 0; i < p->rounds; i++) {
        const struct simulate_round *r = &p->round[i];
        p->x[0][i] = r->round;
        p->x[1][i] = (double)(r->bytes_up + r->bytes_down) * 1e-6;
        p->x[2][i] = (double)r->virtual_ms / unit;
        p->train[i] = r->train_loss;
        p->loss[i] = r->loss;
        p->accuracy[i] = r->accuracy < 0 ? NAN : 100 * r->accuracy;
        p->error[i] = 100 * r->error;
        p->cut[i] = 100 * r->cut;
        if (p->error[i] < PAGE_ERROR_LEAST) p->error[i] = PAGE_ERROR_LEAST;
        if (p->cut[i] < PAGE_ERROR_LEAST) p->cut[i] = PAGE_ERROR_LEAST;
    }
    return ERR_NONE;
}

static bool has_values(const struct page *p, const double *value)
{
    for (size_t i = 0; i < p->rounds; i++)
        if (isfinite(value[i])) return true;
    return false;
}

static err draw(struct page *p, const struct chart *c)
{
    TRY(bytes_printf(&p->out, "<div class=\"wide\">"));
    TRY(chart_lines(&p->out, c));
    return bytes_printf(&p->out, "</div>\n");
}

static err write_error(struct page *p)
{
    const struct chart_line line[] = {
        {.name = "all", .x = p->x[0], .y = p->error, .count = p->rounds},
        {.name = "cut off by recompression", .x = p->x[0], .y = p->cut, .count = p->rounds}};
    const struct chart c = {.title = "Error of a round's published change",
                            .x_label = "rounds",
                            .y_label = "% of the exact change, at least 0.001",
                            .line = line,
                            .lines = 2,
                            .log = true};
    return has_values(p, p->error) ? draw(p, &c) : ERR_NONE;
}

static err write_charts(struct page *p)
{
    struct chart_level level[REFERENCE_KINDS];
    size_t levels = page_levels(level, &p->self, false);
    TRY(take_values(p));
    const char *const over[] = {"rounds", "MB sent, in both directions", p->unit};
    TRY(bytes_printf(&p->out, "<h2>Loss and accuracy</h2>\n"));
    for (size_t i = 0; i < 3; i++) {
        char title[64];
        const struct chart_line line[] = {
            {.name = "test set", .x = p->x[i], .y = p->loss, .count = p->rounds},
            {.name = "members, while training", .x = p->x[i], .y = p->train, .count = p->rounds}};
        snprintf(title, sizeof title, "Loss over %s", over[i]);
        const struct chart c = {.title = title,
                                .x_label = over[i],
                                .y_label = "loss",
                                .line = line,
                                .lines = 2,
                                .level = level,
                                .levels = levels};
        TRY(draw(p, &c));
    }
    const struct chart_line accuracy = {.x = p->x[0], .y = p->accuracy, .count = p->rounds};
    const struct chart c = {.title = "Accuracy of greedy completions",
                            .x_label = "rounds",
                            .y_label = "accuracy, %",
                            .line = &accuracy,
                            .lines = 1,
                            .from_zero = true};
    TRY(has_values(p, p->accuracy) ? draw(p, &c) : ERR_NONE);
    TRY(write_error(p));
    return page_spectrum(&p->out, &p->self);
}

/* ---- who took part in the last round ---- */

/* One line of updates.csv. False for the head line. */
struct update_line {
    uint32_t round;
    char member[LIMIT_NAME_BYTES], fate[16];
    double from, to;
};
static bool parse_update(struct update_line *u, const char *line)
{
    unsigned rank;
    size_t rows;
    return sscanf(line, "%" SCNu32 ",%127[^,],%u,%zu,%lf,%lf,%15[^,]", &u->round, u->member, &rank,
                  &rows, &u->from, &u->to, u->fate) == 7;
}

struct gantt {
    const char *name[GANTT_ROWS];
    struct chart_bar bar[GANTT_ROWS];
    size_t rows, all;
    double begin; /* of the round */
};

static err gantt_add(struct gantt *g, struct page *p, const struct update_line *u)
{
    size_t fate = 0;
    while (fate + 1 < RESULTS_FATES && strcmp(results_fates[fate], u->fate) != 0)
        fate++;
    if (!g->all || u->from < g->begin) g->begin = u->from;
    if (g->all++ >= GANTT_ROWS) return ERR_NONE;
    g->bar[g->rows] = (struct chart_bar){g->rows, u->from, u->to, fate};
    return arena_text(&g->name[g->rows++], &p->arena, u->member, strlen(u->member));
}

static err write_gantt(struct page *p)
{
    struct gantt g = {.rows = 0};
    char *text = NULL, *next, subtitle[120];
    TRY(read_file(&text, p, "updates.csv"));
    err e = ERR_NONE;
    for (char *line = text; line && (next = strchr(line, '\n')) && !err_is(e); line = next + 1) {
        struct update_line u;
        *next = 0;
        if (parse_update(&u, line) && u.round == p->round[p->rounds - 1].round)
            e = gantt_add(&g, p, &u);
    }
    free(text);
    if (err_is(e) || !g.rows) return e;
    for (size_t i = 0; i < g.rows; i++) {
        g.bar[i].from -= g.begin;
        g.bar[i].to -= g.begin;
    }
    snprintf(subtitle, sizeof subtitle, "%zu of %zu tasks, in the order of their ends", g.rows,
             g.all);
    const struct chart_rows c = {.title = "Tasks of the last round",
                                 .subtitle = subtitle,
                                 .x_label = "virtual seconds after the round opened",
                                 .row = g.name,
                                 .rows = g.rows,
                                 .bar = g.bar,
                                 .bars = g.rows,
                                 .color_name = results_fates,
                                 .colors = RESULTS_FATES};
    TRY(bytes_printf(&p->out, "<h2>Who took part</h2>\n<div class=\"wide\">"));
    TRY(chart_bars(&p->out, &c));
    return bytes_printf(&p->out, "</div>\n");
}

static err write_split(struct page *p)
{
    char *text = NULL;
    TRY(read_file(&text, p, "split.txt"));
    if (!text || !*text) {
        free(text);
        return ERR_NONE;
    }
    err e =
        bytes_printf(&p->out, "<h2>Split of the data</h2>\n<p>Each row is a member: its rows, the "
                              "shares of its labels by letter, and the names of the most "
                              "frequent ones.</p>\n<pre>");
    if (!err_is(e)) e = chart_text(&p->out, text);
    if (!err_is(e)) e = bytes_printf(&p->out, "</pre>\n");
    free(text);
    return e;
}

static err write_all(struct page *p)
{
    char state[DIGEST_TEXT_BYTES], when[32];
    const struct simulate_round *last = &p->round[p->rounds - 1];
    digest_text(state, &last->state);
    text_duration(when, sizeof when, last->virtual_ms);
    TRY(page_begin(&p->out, "Simulated federation"));
    TRY(bytes_printf(&p->out,
                     "<p>%zu rounds in %s of virtual time. Times of devices are assumptions, not "
                     "measurements. The newest state has the digest <code>%s</code>.</p>\n",
                     p->rounds, when, state));
    TRY(write_charts(p));
    TRY(write_rounds(p));
    TRY(page_members(&p->out, p->dir));
    TRY(write_gantt(p));
    TRY(write_split(p));
    TRY(write_settings(p));
    TRY(write_repeat(p));
    return bytes_printf(&p->out, "</body></html>\n");
}

static err write_one(struct page *p)
{
    TRY(outcomes_open(&p->self, &p->dir, 1));
    p->round = p->self.one[0].round;
    p->rounds = p->self.one[0].rounds;
    if (!p->rounds) return err_make(ERR_INPUT, "%s: no round has been published yet", p->dir);
    return write_all(p);
}

static err write_many(struct page *p, const char *const *dir, size_t dirs)
{
    struct outcomes all = {0};
    TRY(outcomes_open(&all, dir, dirs));
    err e = page_many(&p->out, &all);
    outcomes_close(&all);
    return e;
}

err page_write_file(const char *path, const char *const *dir, size_t dirs)
{
    struct page p = {.dir = dir[0], .out = {.max = PAGE_BYTES_MAX}};
    char sweep[LIMIT_PATH_BYTES];
    err e = file_join(sweep, sizeof sweep, dir[0], "sweep.json");
    if (!err_is(e)) e = dirs > 1 || file_exists(sweep) ? write_many(&p, dir, dirs) : write_one(&p);
    if (!err_is(e)) e = file_write(path, p.out.data, p.out.size, true);
    bytes_close(&p.out);
    outcomes_close(&p.self);
    arena_close(&p.arena);
    return e;
}

err page_write(const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, "report.html"));
    return page_write_file(path, &dir, 1);
}
