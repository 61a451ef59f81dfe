#include "coordinator/run/trouble.h"

#include "base/log.h"
#include "base/text.h"
#include "proto/rpc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LINE_MS = 60 * 1000,
    SHORT_MS = 10 * 60 * 1000,
    HOUR_MS = 60 * 60 * 1000,
    DAY_MS = 24 * 60 * 60 * 1000
};

/* The rule of each kind. `over` NULL: its end is not logged. `lasts_ms`: it ends by itself this
 * long after it was raised last; 0: only trouble_end() ends it. `repeats`: each time counts, and is
 * logged again after a minute. `shown`: in a status. */
static const struct rule {
    const char *event, *over;
    enum log_level level;
    uint64_t lasts_ms;
    bool repeats, shown;
} rules[TROUBLE_KINDS] = {
    [TROUBLE_DISK_FULL] = {"store.full", "store.space_again", LOG_ERROR, 0, false, true},
    [TROUBLE_LOG_LOST] = {"log.lost", "log.back", LOG_ERROR, 0, false, true},
    [TROUBLE_AUDIT] = {"audit.waits", "audit.back", LOG_ERROR, 0, false, true},
    [TROUBLE_OLD_COPY] = {"store.old_copy", NULL, LOG_ERROR, HOUR_MS, true, true},
    [TROUBLE_BLOB_MISSING] = {"blob.missing", NULL, LOG_ERROR, HOUR_MS, true, true},
    [TROUBLE_WORK_WAITS] = {"run.trouble", "run.trouble_over", LOG_WARN, SHORT_MS, true, true},
    [TROUBLE_CALL_FAILED] = {"call.failed", NULL, LOG_ERROR, SHORT_MS, true, true},
    [TROUBLE_CERTIFICATE_ENDS] = {"certificate.ends", "certificate.renewed", LOG_WARN, DAY_MS,
                                  false, true},
    [TROUBLE_ROUND_OVERDUE] = {"round.overdue", NULL, LOG_WARN, 0, false, true},
    [TROUBLE_MEMBER_ABSENT] = {"member.absent", "member.back", LOG_WARN, HOUR_MS, false, true},
    [TROUBLE_MEMBER_CANNOT_TRAIN] = {"member.cannot_train", "member.can_train", LOG_WARN, DAY_MS,
                                     false, true},
    [TROUBLE_RUN_AMBIGUOUS] = {"run.ambiguous", NULL, LOG_WARN, HOUR_MS, false, true},
    [TROUBLE_MEMBER_TWICE] = {"member.twice", NULL, LOG_WARN, SHORT_MS, true, true},
    [TROUBLE_UPDATE_REFUSED] = {"update.refused", NULL, LOG_WARN, SHORT_MS, true, true},
    [TROUBLE_CALL_REFUSED] = {"call.refused", NULL, LOG_WARN, SHORT_MS, true, true},
    [TROUBLE_CALL_LATER] = {"call.later", NULL, LOG_INFO, SHORT_MS, true, false},
    [TROUBLE_MIGRATED] = {"store.migrated", NULL, LOG_WARN, DAY_MS, false, true},
};

struct row {
    bool used;
    char run[LIMIT_NAME_BYTES], peer[TROUBLE_PEER_BYTES], address[RPC_ADDRESS_BYTES], call[64];
    char text[TROUBLE_TEXT_BYTES];
    uint64_t since_wall_ms, count;
    uint64_t last_ms, logged_ms;
    uint64_t left_out; /* raised since the last line */
};

struct group { /* one kind */
    struct row row[TROUBLE_ROWS];
    size_t used;
    uint64_t minute_ms; /* start of the minute that `lines` counts */
    unsigned lines;
    uint64_t others; /* not logged in this minute */
};

struct troubles {
    struct group group[TROUBLE_KINDS];
    uint64_t disk_errors;
    char says[TROUBLE_SHOWN][TROUBLE_TEXT_BYTES + 640]; /* the last answer of trouble_list() */
};

const char *trouble_member(char out[TROUBLE_PEER_BYTES], const char *id)
{
    snprintf(out, TROUBLE_PEER_BYTES, "%s/%s", rpc_role_name(RPC_CLIENT), id);
    return out;
}

err troubles_open(struct troubles **out)
{
    struct troubles *t = calloc(1, sizeof *t);
    if (!t) return err_sys(ENOMEM, "the table of troubles");
    *out = t;
    return ERR_NONE;
}

void troubles_close(struct troubles *t)
{
    free(t);
}

static const char *or_empty(const char *text)
{
    return text ? text : "";
}

static struct row *find(struct group *g, const char *run, const char *peer)
{
    for (size_t i = 0; i < TROUBLE_ROWS; i++)
        if (g->row[i].used && !strcmp(g->row[i].run, run) && !strcmp(g->row[i].peer, peer))
            return &g->row[i];
    return NULL;
}

/* A free row or, for kinds that repeat, the one that was raised longest ago. NULL: the
 * table has no place for one more. */
static struct row *place(struct group *g, const struct rule *rule)
{
    struct row *oldest = NULL;
    for (size_t i = 0; i < TROUBLE_ROWS; i++) {
        struct row *r = &g->row[i];
        if (!r->used) return r;
        if (!oldest || r->last_ms < oldest->last_ms) oldest = r;
    }
    return rule->repeats ? oldest : NULL;
}

/* Empty fields are left out of the line. */
static void write_line(const struct rule *rule, const char *event, const struct row *r)
{
    struct log_field field[7];
    size_t n = 0;
    if (*r->run) field[n++] = LOG_STR("run", r->run);
    if (*r->peer) field[n++] = LOG_STR("peer", r->peer);
    if (*r->address) field[n++] = LOG_STR("address", r->address);
    if (*r->call) field[n++] = LOG_STR("call", r->call);
    if (r->left_out) field[n++] = LOG_INT("left_out", r->left_out);
    if (*r->text) field[n++] = LOG_STR("says", r->text);
    log_event(event == rule->event ? rule->level : LOG_INFO, event, field, n);
}

/* A new minute begins: the number of lines that the last one had no place for is logged. */
static void next_minute(struct group *g, const struct rule *rule, uint64_t now_ms)
{
    if (g->minute_ms && now_ms - g->minute_ms < LINE_MS) return;
    if (g->others) LOG(rule->level, rule->event, LOG_INT("others", g->others));
    g->minute_ms = now_ms;
    g->lines = 0;
    g->others = 0;
}

static bool takes_line(struct group *g, const struct rule *rule, uint64_t now_ms)
{
    next_minute(g, rule, now_ms);
    if (g->lines < TROUBLE_LINES) {
        g->lines++;
        return true;
    }
    g->others++;
    return false;
}

/* A peer has one line of a kind in a minute, in whatever runs it is refused. */
static uint64_t last_line_of(const struct group *g, const char *peer)
{
    uint64_t last = 0;
    for (size_t i = 0; i < TROUBLE_ROWS; i++)
        if (g->row[i].used && !strcmp(g->row[i].peer, peer) && g->row[i].logged_ms > last)
            last = g->row[i].logged_ms;
    return last;
}

static void log_row(struct group *g, const struct rule *rule, struct row *r, uint64_t now_ms)
{
    uint64_t last = *r->peer && rule->repeats ? last_line_of(g, r->peer) : r->logged_ms;
    bool may = !last || (rule->repeats && now_ms - last >= LINE_MS);
    if (may && takes_line(g, rule, now_ms)) {
        write_line(rule, rule->event, r);
        r->logged_ms = now_ms;
        r->left_out = 0;
    } else if (rule->repeats) {
        r->left_out++;
    }
}

static void keep(char *out, size_t bytes, const char *text)
{
    snprintf(out, bytes, "%s", or_empty(text));
    text_tame(out);
}

void trouble_raise(struct troubles *t, const struct trouble_case *c, uint64_t now_ms)
{
    if (!t) return;
    const struct rule *rule = &rules[c->kind];
    struct group *g = &t->group[c->kind];
    struct row *r = find(g, or_empty(c->run), or_empty(c->peer));
    if (!r) {
        r = place(g, rule);
        if (!r) {
            next_minute(g, rule, now_ms);
            g->others++;
            return;
        }
        if (!r->used) g->used++;
        *r = (struct row){.used = true, .since_wall_ms = text_wall_ms()};
        keep(r->run, sizeof r->run, c->run);
        keep(r->peer, sizeof r->peer, c->peer);
    }
    keep(r->address, sizeof r->address, c->address);
    keep(r->call, sizeof r->call, c->call);
    keep(r->text, sizeof r->text, c->text);
    r->last_ms = now_ms;
    r->count++;
    log_row(g, rule, r, now_ms);
}

void trouble_lasts(struct troubles *t, enum trouble_kind kind, const char *run, const char *peer,
                   uint64_t now_ms)
{
    if (!t || !t->group[kind].used) return;
    struct row *r = find(&t->group[kind], or_empty(run), or_empty(peer));
    if (r) r->last_ms = now_ms;
}

static void drop(struct group *g, struct row *r)
{
    r->used = false;
    g->used--;
}

void trouble_end(struct troubles *t, enum trouble_kind kind, const char *run, const char *peer,
                 uint64_t now_ms)
{
    if (!t || !t->group[kind].used) return;
    struct row *r = find(&t->group[kind], or_empty(run), or_empty(peer));
    if (!r) return;
    const struct rule *rule = &rules[kind];
    if (rule->over && takes_line(&t->group[kind], rule, now_ms)) write_line(rule, rule->over, r);
    drop(&t->group[kind], r);
}

/* Kinds that repeat stay, because their rows bound the lines of a peer. */
void trouble_drop_run(struct troubles *t, const char *run)
{
    for (size_t kind = 0; t && kind < TROUBLE_KINDS; kind++)
        for (size_t i = 0; !rules[kind].repeats && t->group[kind].used && i < TROUBLE_ROWS; i++) {
            struct row *r = &t->group[kind].row[i];
            if (!r->used || strcmp(r->run, run) != 0) continue;
            drop(&t->group[kind], r);
        }
}

/* A last line says how often it was repeated after the one before. */
static void expire(struct group *g, const struct rule *rule, struct row *r, uint64_t now_ms)
{
    if (r->left_out && takes_line(g, rule, now_ms)) write_line(rule, rule->event, r);
    drop(g, r);
}

void trouble_tick(struct troubles *t, uint64_t now_ms)
{
    for (size_t kind = 0; t && kind < TROUBLE_KINDS; kind++) {
        struct group *g = &t->group[kind];
        const struct rule *rule = &rules[kind];
        if (g->minute_ms) next_minute(g, rule, now_ms);
        for (size_t i = 0; g->used && rule->lasts_ms && i < TROUBLE_ROWS; i++)
            if (g->row[i].used && now_ms - g->row[i].last_ms > rule->lasts_ms)
                expire(g, rule, &g->row[i], now_ms);
    }
}

bool trouble_is_full_disk(err e)
{
    return err_is(e) && (e.sys == ENOSPC || e.sys == EDQUOT);
}

void trouble_of_disk(struct troubles *t, err e, uint64_t now_ms)
{
    if (!trouble_is_full_disk(e)) return;
    if (t) t->disk_errors++;
    trouble_raise(t, &(struct trouble_case){.kind = TROUBLE_DISK_FULL, .text = e.text}, now_ms);
}

const char *trouble_name(enum trouble_kind kind)
{
    return rules[kind].event;
}

bool trouble_is_shown(enum trouble_kind kind)
{
    return rules[kind].shown;
}

uint64_t trouble_disk_errors(const struct troubles *t)
{
    return t ? t->disk_errors : 0;
}

size_t trouble_count(const struct troubles *t, enum trouble_kind kind)
{
    return t ? t->group[kind].used : 0;
}

uint64_t trouble_last_ms(const struct troubles *t, enum trouble_kind kind)
{
    uint64_t last = 0;
    for (size_t i = 0; t && i < TROUBLE_ROWS; i++) {
        const struct row *r = &t->group[kind].row[i];
        if (r->used && r->last_ms > last) last = r->last_ms;
    }
    return last;
}

/* "store.full since 2026-11-30 12:03:45 UTC (3 times): run r: client/north at 10.0.0.7: TEXT" */
static void say(char *out, size_t bytes, const struct row *r, const struct rule *rule)
{
    char since[32] = "", times[40] = "", whose[640] = "";
    time_t seconds = (time_t)(r->since_wall_ms / 1000);
    struct tm tm;
    if (gmtime_r(&seconds, &tm)) strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &tm);
    if (rule->repeats && r->count > 1)
        snprintf(times, sizeof times, " (%llu times)", (unsigned long long)r->count);
    if (*r->peer)
        snprintf(whose, sizeof whose, "%s%s%s: ", r->peer, *r->address ? " at " : "", r->address);
    snprintf(out, bytes, "%s since %s%s: %s%s%s%s%s", rule->event, since, times,
             *r->run ? "run " : "", r->run, *r->run ? ": " : "", whose, r->text);
}

/* The coordinator's own rows, which are about no run and no peer, or the others. */
static size_t list_rows(const char **out, size_t n, size_t most, struct troubles *t,
                        const char *run, bool own)
{
    for (size_t kind = 0; kind < TROUBLE_KINDS; kind++) {
        struct group *g = &t->group[kind];
        if (!rules[kind].shown || !g->used) continue;
        for (size_t i = 0; i < TROUBLE_ROWS && n < most; i++) {
            const struct row *r = &g->row[i];
            if (!r->used || own != (!*r->run && !*r->peer)) continue;
            if (run && *r->run && strcmp(r->run, run) != 0) continue;
            say(t->says[n], sizeof t->says[n], r, &rules[kind]);
            out[n] = t->says[n];
            n++;
        }
    }
    return n;
}

size_t trouble_list(const char **out, size_t most, struct troubles *t, const char *run)
{
    size_t n = 0;
    if (most > TROUBLE_SHOWN) most = TROUBLE_SHOWN;
    for (int others = 0; t && others < 2; others++)
        n = list_rows(out, n, most, t, run, !others);
    return n;
}
