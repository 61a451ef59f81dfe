/* The page for browsers. */
#include "coordinator/http/overview.h"

#include "base/text.h"
#include "base/version.h"
#include "coordinator/http/escape.h"
#include "coordinator/http/spark.h"

#include <inttypes.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* The largest parts of the page; the rest is for its head. Their sum is under OVERVIEW_BYTES_MAX.
 * A row that does not fit any more is counted instead. */
enum {
    TROUBLES_BYTES = 5000,
    RUNS_BYTES = 19000,
    MEMBERS_BYTES = 9000,
    EVENTS_BYTES = 7500,
    OVER_BYTES = 4000,
    ROW_BYTES_MAX = 8192,
    TEXT_SHOWN = 160, /* bytes of an event's text */
};

/* Colours have a contrast of at least 6 to 1 on their background, light and dark. On narrow screens
 * the rows of a table become blocks, and each cell is labelled. */
static const char style[] =
    ":root{color-scheme:light dark;--t:#1b1f24;--m:#57606a;--b:#fff;--l:#d0d7de;--g:#116329;"
    "--r:#a40e26;--a:#0550ae}"
    "@media(prefers-color-scheme:dark){:root{--t:#e6edf3;--m:#9198a1;--b:#0d1117;--l:#3d444d;"
    "--g:#3fb950;--r:#ff7b72;--a:#79c0ff}}"
    "body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--b);color:var(--t);"
    "font:1rem/1.45 system-ui,sans-serif;overflow-wrap:anywhere}"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:1.6rem 0 .5rem}"
    "h3{font-size:1rem;margin:0}p{margin:.25rem 0}small,dt,th{color:var(--m)}"
    ".g{color:var(--g)}.r{color:var(--r)}"
    "dl{display:flex;flex-wrap:wrap;gap:.4rem 2rem;margin:.8rem 0}dd{margin:0}"
    "article{border:1px solid var(--l);border-radius:6px;padding:.6rem .8rem;margin:0 0 .6rem;"
    "break-inside:avoid}"
    "progress{width:12rem;max-width:100%;accent-color:var(--a)}"
    "svg{vertical-align:middle;margin-right:.6rem}polyline{fill:none;stroke-width:1.5}"
    ".t{stroke:var(--a)}.e{stroke:var(--r);stroke-dasharray:3 2}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;"
    "border-bottom:1px solid var(--l);vertical-align:top}th{font-weight:600;white-space:nowrap}"
    "code{font-size:.85rem}"
    "@media(max-width:44rem){thead{display:none}tr{display:block;padding:.4rem 0;"
    "border-bottom:1px solid var(--l)}td{display:block;border:0;padding:0}"
    "td[data-l]::before{content:attr(data-l)\": \";color:var(--m)}}"
    "@media print{body{max-width:none;font-size:10pt}}";

void overview_policy(char *out, size_t bytes)
{
    uint8_t hash[crypto_hash_sha256_BYTES];
    char text[64];
    crypto_hash_sha256(hash, (const uint8_t *)style, sizeof style - 1);
    sodium_bin2base64(text, sizeof text, hash, sizeof hash, sodium_base64_VARIANT_ORIGINAL);
    snprintf(out, bytes,
             "default-src 'none'; style-src 'sha256-%s'; base-uri 'none'; form-action 'none'; "
             "frame-ancestors 'none'",
             text);
}

/* ---- small parts */

/* "3 min ago" */
static void ago(char out[48], uint64_t then_ms, uint64_t now_ms)
{
    char text[32];
    uint64_t ms = now_ms > then_ms ? now_ms - then_ms : 0;
    if (!then_ms) {
        snprintf(out, 48, "never");
    } else if (ms < 2000) {
        snprintf(out, 48, "now");
    } else {
        text_duration(text, sizeof text, ms);
        snprintf(out, 48, "%s ago", text);
    }
}

/* Days until a certificate ends, red if they are few. */
static err ends(struct bytes *out, int64_t ends_s, uint64_t wall_ms)
{
    int64_t days = (ends_s - (int64_t)(wall_ms / 1000)) / 86400;
    if (!ends_s) return bytes_printf(out, "<small>not known</small>");
    return bytes_printf(out, "<span%s>in %" PRId64 " days</span>",
                        days < RPC_CERTIFICATE_DAYS ? " class=r" : "", days);
}

static err day_time(struct bytes *out, uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    char text[32];
    gmtime_r(&seconds, &tm);
    strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm);
    return bytes_printf(out, "<time>%s</time>", text);
}

/* The first bytes of a long text, cut between characters. */
/* Before escaping, so that the cut never falls into "&lt;". */
static err cut(struct bytes *out, const char *text, size_t most)
{
    char part[512];
    size_t size = strnlen(text, most);
    while (text[size] && size && ((uint8_t)text[size] & 0xc0) == 0x80)
        size--;
    snprintf(part, sizeof part, "%.*s%s", (int)size, text, text[size] ? "..." : "");
    return escape_html(out, part);
}

/* A part of the page with a limit. `row` is filled and then added, if it fits. */
struct part {
    struct bytes *out;
    struct bytes row;
    size_t until, shown, left;
};

/* `most`: bytes that the rows may take, from the present end of the page on. */
static struct part part_open(struct bytes *out, size_t most)
{
    return (struct part){.out = out, .row = {.max = ROW_BYTES_MAX}, .until = out->size + most};
}

/* A row too long for the limit of rows is counted as well, so a hostile text cannot break the
 * page. */
static err part_add(struct part *p, err made)
{
    if (err_is(made) && made.kind != ERR_LIMIT) return made;
    bool fits = !err_is(made) && !p->left && p->out->size + p->row.size <= p->until;
    err e = fits ? bytes_append(p->out, p->row.data, p->row.size) : ERR_NONE;
    p->shown += fits;
    p->left += !fits;
    bytes_clear(&p->row);
    return e;
}

/* `all`: rows that there are, also those that were not gathered. */
static err part_close(struct part *p, size_t all, const char *how)
{
    bytes_close(&p->row);
    if (all <= p->shown) return ERR_NONE;
    return bytes_printf(p->out, "<p>%zu more are not shown%s</p>", all - p->shown, how);
}

/* ---- head */

/* Every reason, because an operator who mends the first one would otherwise wait for the next. */
static err write_ready(struct bytes *out, const struct facts *f)
{
    if (f->ready) return bytes_printf(out, "<p class=g>Ready</p>");
    for (int i = 0; i < FACTS_CHECKS; i++) {
        if (f->passes[i]) continue;
        TRY(bytes_printf(out, "<p class=r>Not ready: "));
        TRY(escape_html(out, f->why[i]));
        TRY(bytes_printf(out, "</p>"));
    }
    return ERR_NONE;
}

/* The refresh is in the page and not in a header, so that a saved copy and a proxy keep it. End
 * tags that HTML does not need are left out, because they would be a tenth of the page. */
static err write_head(struct bytes *out, const struct overview *o)
{
    const struct facts *f = o->facts;
    char up[32], left[32], full[48] = "", backup[48];
    text_duration(up, sizeof up, f->wall_ms > f->started_ms ? f->wall_ms - f->started_ms : 0);
    text_size(left, sizeof left, f->free_bytes);
    if (f->disk_days >= 0) snprintf(full, sizeof full, ", full in %.1f days", f->disk_days);
    const char *name = f->serve->config->federation;
    TRY(bytes_printf(out, "<!doctype html><html lang=en><meta charset=utf-8>"
                          "<meta name=viewport content=\"width=device-width,initial-scale=1\">"
                          "<meta http-equiv=refresh content=10><title>"));
    TRY(escape_html(out, name));
    TRY(bytes_printf(out, "%s</title><style>%s</style><body><header><h1>",
                     f->ready ? "" : ": not ready", style));
    TRY(escape_html(out, name));
    TRY(bytes_printf(out, "</h1>"));
    TRY(write_ready(out, f));
    TRY(bytes_printf(out,
                     "<dl><div><dt>Version<dd>%s</div><div><dt>Up for<dd>%s</div>"
                     "<div><dt>Free disk<dd>%s%s</div><div><dt>Certificate ends<dd>",
                     version_text(), up, left, full));
    TRY(ends(out, f->server_ends_s, f->wall_ms));
    ago(backup, f->backup_ms, f->wall_ms);
    TRY(bytes_printf(out, "</div><div><dt>Last backup<dd>%s</div><div><dt>Page of<dd>", backup));
    TRY(day_time(out, f->wall_ms));
    return bytes_printf(out, " UTC</div></dl></header><main>");
}

/* The same lines as in `fedlora run status`, the coordinator's own first. */
static err write_troubles(struct bytes *out, const struct overview *o)
{
    if (!o->troubles) return ERR_NONE;
    TRY(bytes_printf(out, "<h2>Needs attention</h2><ul>"));
    struct part p = part_open(out, TROUBLES_BYTES);
    err e = ERR_NONE;
    for (size_t i = 0; i < o->troubles && !err_is(e); i++) {
        e = bytes_printf(&p.row, "<li>");
        if (!err_is(e)) e = cut(&p.row, o->trouble[i], 2 * TEXT_SHOWN);
        e = part_add(&p, e);
    }
    if (!err_is(e)) e = bytes_printf(out, "</ul>");
    err closed = part_close(&p, o->troubles, "");
    return err_is(e) ? e : closed;
}

/* ---- runs */

/* Losses, the error of the newest reported round, and what a private run has spent. */
static err write_figures(struct bytes *out, const struct overview_run *r)
{
    double train[OVERVIEW_ROUNDS], eval[OVERVIEW_ROUNDS], error = NAN;
    for (size_t i = 0; i < r->rounds; i++) {
        train[i] = r->round[i].train_loss;
        eval[i] = r->round[i].eval_loss;
        if (!isnan(r->round[i].error)) error = r->round[i].error;
    }
    TRY(bytes_printf(out, "<p>"));
    if (r->hides_losses)
        TRY(bytes_printf(out, "losses are private"));
    else if (r->rounds)
        TRY(spark_write(out, &(struct spark){train, eval, r->rounds}));
    if (!isnan(error)) TRY(bytes_printf(out, ", error %.3g", error));
    if (r->budget > 0)
        TRY(bytes_printf(out, ", epsilon %.4g of %.4g spent", r->epsilon, r->budget));
    return bytes_printf(out, "</p>");
}

/* `progress` is an element that screen readers announce and printers print; it counts rounds that
 * are closed, and the text names the one under way. */
static err write_run(struct bytes *out, const struct overview_run *r, uint64_t wall_ms)
{
    const struct run *run = r->run;
    enum round_phase phase = round_phase(&run->round);
    unsigned round = round_under_way(&run->round), rounds = run->round.rules.rounds;
    char moved[48];
    ago(moved, run->progress_ms, wall_ms);
    TRY(bytes_printf(out, "<article><h3>"));
    TRY(escape_html(out, run->config->name));
    TRY(bytes_printf(out,
                     " <small>%s, %s</small></h3><p><progress max=%u value=%u></progress> round %u"
                     " of %u, moved %s</p><p%s>",
                     run->method->name, round_phase_name(phase), rounds, run->round.published,
                     round, rounds, moved, phase == ROUND_FAILED ? " class=r" : ""));
    TRY(bytes_printf(out, "Waits for "));
    TRY(escape_html(out, r->waits));
    TRY(bytes_printf(out, "</p>"));
    TRY(write_figures(out, r));
    return bytes_printf(out, "</article>");
}

/* In order of creation, so that a run that has waited for long is not pushed out of the page by new
 * ones. */
static err write_runs(struct bytes *out, const struct overview *o)
{
    TRY(bytes_printf(out, "<h2>Open runs (%zu)</h2>", o->opens_all));
    struct part p = part_open(out, RUNS_BYTES);
    err e = ERR_NONE;
    for (size_t i = 0; i < o->opens && !err_is(e); i++)
        e = part_add(&p, write_run(&p.row, &o->open[i], o->facts->wall_ms));
    err closed = part_close(&p, o->opens_all, "; <code>fedlora run list --open</code> has all");
    return err_is(e) ? e : closed;
}

/* ---- members */

/* Bytes are those since the start, without runs with a secret draw (coordinator/run/tally.h). */
static err write_member(struct bytes *out, const struct overview_member *m, uint64_t wall_ms)
{
    char seen[48], up[32] = "0 B", down[32] = "0 B";
    ago(seen, m->seen_ms, wall_ms);
    if (m->bytes) text_size(up, sizeof up, m->bytes->received);
    if (m->bytes) text_size(down, sizeof down, m->bytes->sent);
    TRY(bytes_printf(out, "<tr><td><b>"));
    TRY(escape_html(out, m->id));
    TRY(bytes_printf(out,
                     "</b><td data-l=State class=%s>%s<td data-l=Seen>%s<td data-l=Certificate>",
                     m->connected ? "g" : "r", m->connected ? "connected" : "away", seen));
    TRY(ends(out, m->ends_s, wall_ms));
    TRY(bytes_printf(out, "<td data-l=\"Up, down\">%s, %s<td data-l=Does>", up, down));
    TRY(escape_html(out, m->doing));
    if (!m->run) return ERR_NONE;
    TRY(bytes_printf(out, " <small>in "));
    TRY(escape_html(out, m->run));
    return bytes_printf(out, "</small>");
}

/* Members that are away come first, so that the limit of rows never leaves one of them out. */
static err write_members(struct bytes *out, const struct overview *o)
{
    TRY(bytes_printf(out,
                     "<h2>Members (%zu)</h2><table><thead><tr><th>Member<th>State<th>Seen"
                     "<th>Certificate<th>Up, down<th>Does</thead>",
                     o->members_all));
    struct part p = part_open(out, MEMBERS_BYTES);
    err e = ERR_NONE;
    for (size_t i = 0; i < o->members && !err_is(e); i++)
        e = part_add(&p, write_member(&p.row, &o->member[i], o->facts->wall_ms));
    if (!err_is(e)) e = bytes_printf(out, "</table>");
    err closed = part_close(&p, o->members_all, "; those that are away come first");
    return err_is(e) ? e : closed;
}

/* ---- events, finished runs */

/* Texts of events may be long, for example those of errors; `fedlora run watch` has all of them. */
static err write_event(struct bytes *out, const struct store_recent_event *v)
{
    TRY(bytes_printf(out, "<tr><td>"));
    TRY(day_time(out, v->wall_ms));
    TRY(bytes_printf(out, "<td data-l=Run>"));
    TRY(escape_html(out, v->run));
    TRY(bytes_printf(out, "<td data-l=Event>"));
    TRY(escape_html(out, v->event));
    if (v->round) TRY(bytes_printf(out, " %u", v->round));
    TRY(bytes_printf(out, "<td>"));
    TRY(escape_html(out, v->member));
    TRY(bytes_printf(out, *v->member && *v->text ? ": " : ""));
    return cut(out, v->text, TEXT_SHOWN);
}

/* The number left out is not written, because older events are always left out. */
static err write_events(struct bytes *out, const struct overview *o)
{
    TRY(bytes_printf(out, "<h2>Newest events</h2><table><thead><tr><th>Time (UTC)<th>Run<th>Event"
                          "<th>Text</thead>"));
    struct part p = part_open(out, EVENTS_BYTES);
    err e = ERR_NONE;
    for (size_t i = 0; i < o->events && !err_is(e); i++)
        e = part_add(&p, write_event(&p.row, &o->event[i]));
    if (!err_is(e)) e = bytes_printf(out, "</table>");
    err closed = part_close(&p, p.shown, "");
    return err_is(e) ? e : closed;
}

/* The digest is that of the last state, by which `fedlora run export` can be checked. */
static err write_ended(struct bytes *out, const struct run *run)
{
    char hex[DIGEST_TEXT_BYTES] = "-";
    if (run->newest.state.size) digest_text(hex, &run->newest.state.digest);
    TRY(bytes_printf(out, "<tr><td>"));
    TRY(escape_html(out, run->config->name));
    return bytes_printf(out, "<td>%s after %u rounds<td data-l=State><code>%s</code>",
                        run_phase_name(run), run->round.published, hex);
}

/* Nothing at all while no run is over, so that a new federation's page is short. */
static err write_over(struct bytes *out, const struct overview *o)
{
    if (!o->overs_all) return ERR_NONE;
    TRY(bytes_printf(out,
                     "<h2>Finished runs (%zu)</h2><table><thead><tr><th>Run<th>End"
                     "<th>Digest of the state</thead>",
                     o->overs_all));
    struct part p = part_open(out, OVER_BYTES);
    err e = ERR_NONE;
    for (size_t i = 0; i < o->overs && !err_is(e); i++)
        e = part_add(&p, write_ended(&p.row, o->over[i]));
    if (!err_is(e)) e = bytes_printf(out, "</table>");
    err closed = part_close(&p, o->overs_all, "");
    return err_is(e) ? e : closed;
}

/* In the order in which an operator asks: is it well, is there anything to do, how far are the
 * runs, which members are there, and what has happened. */
err overview_html(struct bytes *out, const struct facts *facts)
{
    struct arena arena = {0};
    struct overview o;
    err e = ERR_NONE;
    TRY_OUT(e, overview_gather(&o, facts, OVERVIEW_MEMBERS_PAGE, &arena));
    TRY_OUT(e, write_head(out, &o));
    TRY_OUT(e, write_troubles(out, &o));
    TRY_OUT(e, write_runs(out, &o));
    TRY_OUT(e, write_members(out, &o));
    TRY_OUT(e, write_over(out, &o));
    TRY_OUT(e, write_events(out, &o));
    e = bytes_printf(out, "</main></body></html>\n");
out:
    arena_close(&arena);
    return e;
}
