/* /status.json */
#include "coordinator/http/overview.h"

#include "base/json.h"
#include "base/text.h"
#include "base/version.h"

#include <errno.h>
#include <math.h>
#include <string.h>

/* Texts of other machines are tamed, because jansson refuses bytes that are not UTF-8. */
static json_t *text(const char *value)
{
    char tame[1024];
    snprintf(tame, sizeof tame, "%s", value);
    text_tame(tame);
    return json_string(tame);
}

/* JSON has no NaN; a figure that is not known is null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* A run without its first state has none. */
static json_t *digest(const struct store_blob *blob)
{
    char hex[DIGEST_TEXT_BYTES];
    if (!blob->size) return json_null();
    digest_text(hex, &blob->digest);
    return json_string(hex);
}

/* A figure that is not there is null or absent, because 0 would look like a result. */
static json_t *round_json(const struct overview_run *r, size_t i)
{
    const struct store_recent_round *round = &r->round[i];
    json_t *o = json_pack("{s:i, s:i, s:o}", "round", (int)round->round, "updates",
                          (int)round->updates, "error", number(round->error));
    if (r->hides_losses) return o;
    json_object_set_new(o, "train_loss", number(round->train_loss));
    json_object_set_new(o, "eval_loss", number(round->eval_loss));
    return o;
}

/* A phase or a sentence has the same text as in `fedlora run status`. */
static json_t *run_json(const struct overview_run *r)
{
    const struct run *run = r->run;
    json_t *o = json_pack("{s:o, s:s, s:s, s:i, s:i, s:o, s:o, s:I}", "name",
                          text(run->config->name), "method", run->method->name, "phase",
                          run_phase_name(run), "round", (int)round_under_way(&run->round), "rounds",
                          (int)run->round.rules.rounds, "waiting_for", text(r->waits), "state",
                          digest(&run->newest.state), "progress_ms", (json_int_t)run->progress_ms);
    json_t *rounds = json_array();
    /* The number of updates is that of the members drawn. */
    for (size_t i = 0; i < r->rounds; i++) {
        json_t *one = round_json(r, i);
        if (run->round.rules.secret) json_object_del(one, "updates");
        json_array_append_new(rounds, one);
    }
    json_object_set_new(o, "history", rounds);
    if (r->budget > 0) {
        json_object_set_new(o, "epsilon", number(r->epsilon));
        json_object_set_new(o, "epsilon_budget", number(r->budget));
    }
    return o;
}

static json_t *over_json(const struct run *run)
{
    return json_pack("{s:o, s:s, s:s, s:i, s:o}", "name", text(run->config->name), "method",
                     run->method->name, "phase", run_phase_name(run), "rounds",
                     (int)run->round.published, "state", digest(&run->newest.state));
}

static json_t *member_json(const struct overview_member *m)
{
    json_int_t received = m->bytes ? (json_int_t)m->bytes->received : 0;
    json_int_t sent = m->bytes ? (json_int_t)m->bytes->sent : 0;
    json_t *o = json_pack("{s:o, s:b, s:I, s:o, s:I, s:I, s:I}", "id", text(m->id), "connected",
                          (int)m->connected, "seen_ms", (json_int_t)m->seen_ms, "doing",
                          text(m->doing), "received_bytes", received, "sent_bytes", sent,
                          "certificate_ends_s", (json_int_t)m->ends_s);
    if (m->run) json_object_set_new(o, "run", text(m->run));
    return o;
}

/* Empty texts stay, so that every event has the same members. */
static json_t *event_json(const struct store_recent_event *v)
{
    return json_pack("{s:I, s:i, s:o, s:o, s:o, s:o}", "time_ms", (json_int_t)v->wall_ms, "round",
                     (int)v->round, "run", text(v->run), "event", text(v->event), "member",
                     text(v->member), "text", text(v->text));
}

/* The coordinator itself; the lists follow. */
static json_t *head_json(const struct overview *o)
{
    const struct facts *f = o->facts;
    json_t *failed = json_object();
    for (int i = 0; i < FACTS_CHECKS; i++)
        if (!f->passes[i])
            json_object_set_new(failed, facts_check_name((enum facts_check)i), text(f->why[i]));
    json_t *all =
        json_pack("{s:o, s:s, s:I, s:I, s:b, s:o, s:I, s:I, s:o, s:I, s:I, s:I}", "federation",
                  text(f->serve->config->federation), "version", version_text(), "time_ms",
                  (json_int_t)f->wall_ms, "started_ms", (json_int_t)f->started_ms, "ready",
                  (int)f->ready, "failed", failed, "certificate_ends_s",
                  (json_int_t)f->server_ends_s, "disk_free_bytes", (json_int_t)f->free_bytes,
                  "disk_days", f->disk_days >= 0 ? number(f->disk_days) : json_null(), "open_runs",
                  (json_int_t)o->opens_all, "finished_runs", (json_int_t)o->overs_all, "enrolled",
                  (json_int_t)o->members_all);
    json_t *troubles = json_array();
    for (size_t i = 0; i < o->troubles; i++)
        json_array_append_new(troubles, text(o->trouble[i]));
    json_object_set_new(all, "troubles", troubles);
    json_object_set_new(all, "backup_ms", json_integer((json_int_t)f->backup_ms));
    return all;
}

/* The loop thread packs the document at once, so it may hold as many rows as the page for browsers
 * has no room for. */
static json_t *all_json(const struct overview *o)
{
    json_t *all = head_json(o), *open = json_array(), *over = json_array();
    json_t *members = json_array(), *events = json_array();
    for (size_t i = 0; i < o->opens; i++)
        json_array_append_new(open, run_json(&o->open[i]));
    for (size_t i = 0; i < o->overs; i++)
        json_array_append_new(over, over_json(o->over[i]));
    for (size_t i = 0; i < o->members; i++)
        json_array_append_new(members, member_json(&o->member[i]));
    for (size_t i = 0; i < o->events; i++)
        json_array_append_new(events, event_json(&o->event[i]));
    json_object_set_new(all, "open", open);
    json_object_set_new(all, "finished", over);
    json_object_set_new(all, "members", members);
    json_object_set_new(all, "events", events);
    return all;
}

/* Packed from a copy of everything, so an error leaves no half document. */
err overview_json(struct bytes *out, const struct facts *facts)
{
    struct arena arena = {0};
    struct overview o;
    json_t *all = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, overview_gather(&o, facts, OVERVIEW_MEMBERS, &arena));
    all = all_json(&o);
    if (!all) TRY_OUT(e, err_sys(ENOMEM, "/status.json"));
    TRY_OUT(e, json_write(out, all));
    e = bytes_printf(out, "\n");
out:
    json_decref(all);
    arena_close(&arena);
    return e;
}
