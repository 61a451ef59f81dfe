/* Gathers the data of the page for browsers. */
#include "coordinator/http/overview.h"

#include "base/text.h"
#include "coordinator/run/run_shapes.h"

#include <stdlib.h>
#include <string.h>

enum {
    WAITS_BYTES = 512,
    DOING_BYTES = 64,
    DOING_RUNS = 16,
    EVENTS_READ = 4 * OVERVIEW_EVENTS,
    MINUTE_MS = 60000
};

/* ---- runs */

/* With a secret draw the usual sentence names the members that were drawn. */
static void say_secret(char *out, const struct run *run, uint64_t now)
{
    char time[32];
    const struct round *r = &run->round;
    if (!r->deadline_at_ms || now >= r->deadline_at_ms) {
        snprintf(out, WAITS_BYTES, "the end of the round");
        return;
    }
    text_duration(time, sizeof time, r->deadline_at_ms - now);
    snprintf(out, WAITS_BYTES, "the end of the round, in %s", time);
}

/* Members spend differently by their own ledgers; the largest sum ends the run. */
static err privacy_of(struct overview_run *out, const struct run *run, struct arena *arena)
{
    struct store *store = run->shop->store;
    const char *member = NULL;
    if (!run->config->privacy) return ERR_NONE;
    out->budget = run->config->privacy->epsilon;
    if (!run_privacy_local(run->config)) return store_ledger_spent(&out->epsilon, store, run->id);
    return store_copies_spent(&out->epsilon, &member, store, run->id, arena);
}

/* A few rows of the store by their index, so dozens of runs take the loop a few milliseconds. */
static err gather_run(struct overview_run *out, struct run *run, uint64_t now, struct arena *arena)
{
    char *waits = NULL;
    TRY(arena_take(&waits, arena, WAITS_BYTES, 1));
    out->run = run;
    out->hides_losses = run->config->privacy != NULL;
    if (run->round.rules.secret && round_phase(&run->round) == ROUND_TRAINING)
        say_secret(waits, run, now);
    else
        run_waiting_for(waits, WAITS_BYTES, run);
    out->waits = waits;
    TRY(privacy_of(out, run, arena));
    return store_recent_rounds(out->round, &out->rounds, run->shop->store, run->id,
                               OVERVIEW_ROUNDS);
}

static err gather_runs(struct overview *o, struct arena *arena)
{
    const struct serve *s = o->facts->serve;
    TRY(arena_take(&o->open, arena, OVERVIEW_RUNS, sizeof *o->open));
    TRY(arena_take(&o->over, arena, OVERVIEW_OVER, sizeof *o->over));
    for (struct run *run = s->runs; run; run = run->next) {
        if (serve_is_over(run)) {
            o->overs_all++;
        } else if (o->opens_all++ < OVERVIEW_RUNS) {
            TRY(gather_run(&o->open[o->opens], run, o->facts->now_ms, arena));
            o->opens++;
        }
    }
    /* The list is in order of creation, so the last ones are the newest. */
    size_t skip = o->overs_all > OVERVIEW_OVER ? o->overs_all - OVERVIEW_OVER : 0;
    size_t kept = o->overs = o->overs_all - skip;
    for (const struct run *run = s->runs; run; run = run->next)
        if (serve_is_over(run) && skip == 0)
            o->over[--kept] = run;
        else if (serve_is_over(run))
            skip--;
    return ERR_NONE;
}

/* ---- members */

/* The first run that it trains for, or else the first open one that it belongs to. Only some runs
 * are looked at, so this stays quick with thousands of runs and members. */
static err say_doing(struct overview_member *out, const struct overview *o, struct arena *arena)
{
    char *text = NULL;
    TRY(arena_take(&text, arena, DOING_BYTES, 1));
    for (size_t i = 0; i < o->opens && i < DOING_RUNS; i++) {
        const struct run *run = o->open[i].run;
        size_t m;
        if (run->round.rules.secret || !round_find(&m, &run->round, out->id)) continue;
        const struct round_member *r = &run->round.member[m];
        const char *doing = round_activity(&run->round, m, o->facts->now_ms);
        bool trains = !strcmp(doing, "training");
        if (!trains && out->run) continue;
        if (!r->joined)
            snprintf(text, DOING_BYTES, "has not joined");
        else if (trains && r->steps)
            snprintf(text, DOING_BYTES, "training, step %u of %u", r->step, r->steps);
        else
            snprintf(text, DOING_BYTES, "%s", doing);
        out->run = run->config->name;
        if (trains) break;
    }
    out->doing = text;
    return ERR_NONE;
}

/* Absent ones first, because somebody may have to act; then by name. */
static int member_order(const void *a, const void *b)
{
    const struct overview_member *x = a, *y = b;
    if (x->connected != y->connected) return x->connected ? 1 : -1;
    return strcmp(x->id, y->id);
}

/* Looks at every member's last call, but at the runs of those that are shown only. */
static err gather_members(struct overview *o, size_t most, struct arena *arena)
{
    const struct serve *s = o->facts->serve;
    size_t all = s->config->allowed.count;
    TRY(arena_take(&o->member, arena, all, sizeof *o->member));
    o->members_all = all;
    for (size_t i = 0; i < all; i++) {
        struct overview_member *m = &o->member[i];
        m->id = s->config->allowed.item[i];
        const struct serve_identity *is = serve_identity_find(s, RPC_CLIENT, m->id);
        m->bytes = tally_find(&s->tally, m->id);
        m->seen_ms = is ? is->seen_ms : 0;
        m->ends_s = is ? is->ends_s : 0;
        m->connected = m->seen_ms && o->facts->wall_ms - m->seen_ms <= s->config->absent_ms;
        if (s->tally.hides_calls) m->seen_ms = m->seen_ms / MINUTE_MS * MINUTE_MS;
    }
    qsort(o->member, all, sizeof *o->member, member_order);
    o->members = all < most ? all : most;
    for (size_t i = 0; i < o->members; i++)
        TRY(say_doing(&o->member[i], o, arena));
    return ERR_NONE;
}

/* ---- events */

static bool begins(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

/* With a secret draw, events about members show who was drawn. An evaluation is a figure of one
 * member. */
static bool may_show(const struct serve *s, const struct store_recent_event *v)
{
    const struct run *run = serve_find_run(s, v->run);
    if (begins(v->event, "evaluation.")) return false;
    return !run || !run->round.rules.secret || begins(v->event, "run.") ||
           begins(v->event, "round.") || begins(v->event, "store.") || begins(v->event, "privacy.");
}

/* More are read than shown, because some may not be shown. */
static err gather_events(struct overview *o, struct arena *arena)
{
    const struct serve *s = o->facts->serve;
    size_t read = 0;
    TRY(store_recent_events(&o->event, &read, s->shop.store, EVENTS_READ, arena));
    for (size_t i = 0; i < read && o->events < OVERVIEW_EVENTS; i++)
        if (may_show(s, &o->event[i])) o->event[o->events++] = o->event[i];
    return ERR_NONE;
}

/* A refused update names its member too. */
static err gather_troubles(struct overview *o, struct arena *arena)
{
    const struct serve *s = o->facts->serve;
    size_t count = 0;
    TRY(serve_troubles(&o->trouble, &count, s->shop.troubles, NULL, arena));
    for (size_t i = 0; i < count; i++)
        if (!s->tally.hides_calls || !begins(o->trouble[i], "update."))
            o->trouble[o->troubles++] = o->trouble[i];
    return ERR_NONE;
}

/* Members come after runs, because a member's activity is that in one of the runs shown. */
err overview_gather(struct overview *out, const struct facts *facts, size_t members_max,
                    struct arena *arena)
{
    struct overview o = {.facts = facts};
    TRY(gather_runs(&o, arena));
    TRY(gather_members(&o, members_max, arena));
    TRY(gather_events(&o, arena));
    TRY(gather_troubles(&o, arena));
    *out = o;
    return ERR_NONE;
}
