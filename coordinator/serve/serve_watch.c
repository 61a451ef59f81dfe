/* The periodic look at everything that can go wrong without a call: the disk, the log, the
 * certificate of this coordinator, members that are absent, rounds past their deadline, and uploads
 * that nobody continues. */
#include "coordinator/serve/serve.h"

#include "base/text.h"
#include "coordinator/serve/serve_expiry.h"
#include "coordinator/store/room.h"
#include "coordinator/store/spool.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    WATCH_MS = 1000,
    WATCH_MEMBERS = 20000, /* looked at in one turn, some milliseconds of work */
    WATCH_SWEEP_MS = 60 * 60 * 1000,
    WATCH_SWEEP_FULL_MS = 60 * 1000,
    WATCH_FULL_AGE_MS = 10 * 60 * 1000, /* uploads on a full disk: a member that is alive retries */
    WATCH_CERTIFICATE_MS = 6 * 60 * 60 * 1000,
    WATCH_BLOBS_MS = 10 * 60 * 1000,
    WATCH_LOG_MS = 60 * 1000, /* without a lost line: the log works again */
};

/* ---- disk ---- */

/* `run watch` shows these events. On a full disk they may not be stored; the log has them. */
static void tell_runs(struct serve *s, bool full)
{
    static int64_t id[LIMIT_RUNS];
    size_t runs = 0;
    const char *text[TROUBLE_SHOWN] = {""};
    struct store_event event = {.event = full ? "store.full" : "store.space_again"};
    if (full) trouble_list(text, TROUBLE_SHOWN, s->shop.troubles, NULL); /* the disk is first */
    event.text = text[0];
    for (struct run *run = s->runs; run && runs < LIMIT_RUNS; run = run->next)
        if (!serve_is_over(run)) id[runs++] = run->id;
    err e = store_event_add_all(s->shop.store, id, runs, &event);
    for (struct run *run = s->runs; run && !err_is(e); run = run->next)
        run->shop->changed(run, run->shop->context);
    s->watch.disk_full = full;
}

/* The trouble ends when the reserve and a quarter more are free, so that a disk at its reserve does
 * not come and go, and when nothing has failed for two of the pauses after which work is tried
 * again. */
static void watch_disk(struct serve *s, uint64_t now)
{
    const char *dir = s->config->path;
    uint64_t left = 0, reserve = s->config->reserve_bytes;
    char text[TROUBLE_TEXT_BYTES], has[32], keeps[32];
    struct trouble_case full = {.kind = TROUBLE_DISK_FULL, .text = text};
    err e = room_left(&left, dir);
    bool low = !err_is(e) && (left < reserve || left == 0);
    if (low) {
        text_size(has, sizeof has, left);
        text_size(keeps, sizeof keeps, reserve);
        snprintf(text, sizeof text,
                 "%.300s: %s left, %s are kept free (store.reserve); uploads wait for room", dir,
                 has, keeps);
        trouble_raise(s->shop.troubles, &full, now);
    } else if (left - reserve >= reserve / 4 &&
               now - trouble_last_ms(s->shop.troubles, TROUBLE_DISK_FULL) >
                   2 * s->config->retry_ms) {
        trouble_end(s->shop.troubles, TROUBLE_DISK_FULL, NULL, NULL, now);
    }
    bool is_full = trouble_count(s->shop.troubles, TROUBLE_DISK_FULL) > 0;
    if (is_full != s->watch.disk_full) {
        tell_runs(s, is_full);
        s->watch.next_sweep_ms = now;
    }
}

/* An upload that nobody continues goes at its age, and earlier if the disk is full. */
static void watch_uploads(struct serve *s, uint64_t now)
{
    size_t removed = 0;
    bool full = s->watch.disk_full;
    uint64_t age = s->config->upload_age_ms;
    if (full && age > WATCH_FULL_AGE_MS) age = WATCH_FULL_AGE_MS;
    if (full) db_give_room(&s->shop.store->db);
    if (now < s->watch.next_sweep_ms) return;
    s->watch.next_sweep_ms = now + (full ? WATCH_SWEEP_FULL_MS : WATCH_SWEEP_MS);
    err e = spool_expire(&removed, s->config->path, age);
    if (err_is(e))
        LOG(LOG_WARN, "uploads.not_removed", LOG_STR("error", e.text));
    else if (removed)
        LOG(LOG_INFO, "uploads.removed", LOG_INT("files", removed), LOG_INT("older_than_ms", age));
}

/* ---- log, certificate ---- */

static void watch_log(struct serve *s, uint64_t now)
{
    char text[128];
    int why = 0;
    uint64_t lost = log_lost(&why);
    struct troubles *t = s->shop.troubles;
    if (lost > s->watch.log_lost) {
        snprintf(text, sizeof text, "%" PRIu64 " log lines could not be written: %s", lost,
                 strerror(why));
        trouble_raise(t, &(struct trouble_case){.kind = TROUBLE_LOG_LOST, .text = text}, now);
    } else if (now - trouble_last_ms(t, TROUBLE_LOG_LOST) > WATCH_LOG_MS) {
        trouble_end(t, TROUBLE_LOG_LOST, NULL, NULL, now);
    }
    s->watch.log_lost = lost;
}

static void watch_certificate(struct serve *s, uint64_t now)
{
    const struct config *c = s->config;
    char text[TROUBLE_TEXT_BYTES];
    int64_t days = 0;
    if (now < s->watch.next_certificate_ms) return;
    s->watch.next_certificate_ms = now + WATCH_CERTIFICATE_MS;
    err e = rpc_tls_check(c->ca, c->cert, c->key, true, &days);
    serve_expiry_look(s);
    if (!err_is(e) && days >= RPC_CERTIFICATE_DAYS) {
        trouble_end(s->shop.troubles, TROUBLE_CERTIFICATE_ENDS, NULL, NULL, now);
        return;
    }
    if (err_is(e))
        snprintf(text, sizeof text, "%s", e.text);
    else
        snprintf(text, sizeof text,
                 "%.300s, the certificate of this coordinator, ends in %" PRId64
                 " days: replace it and send SIGHUP",
                 c->cert, days);
    trouble_raise(s->shop.troubles,
                  &(struct trouble_case){.kind = TROUBLE_CERTIFICATE_ENDS, .text = text}, now);
}

/* ---- runs ---- */

static void check_blob(struct serve *s, const struct run *run, const struct store_blob *blob)
{
    uint64_t size = 0;
    if (blob->size && blob_size(&size, s->config->path, &blob->digest).kind == ERR_STATE)
        serve_report_missing(s, run, &blob->digest);
}

/* A run that lacks a file it needs would otherwise hand out rounds that no member can train. */
static void fail_without_files(struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    if (serve_is_over(run) || phase == ROUND_FAILED || phase == ROUND_AGGREGATING) return;
    err e = run_check_files(run);
    if (e.kind == ERR_INPUT) run_work_failed(run, e);
}

/* The files without which a run cannot continue or be exported. A missing update is found when its
 * round closes, and asked for again. */
void serve_check_blobs(struct serve *s)
{
    for (struct run *run = s->runs; run; run = run->next) {
        check_blob(s, run, &run->newest.state);
        check_blob(s, run, &run->newest.frozen);
        check_blob(s, run, &run->newest.memory);
        fail_without_files(run);
    }
}

/* Without work under way for the run, which replaces these files. */
static void watch_states(struct serve *s, uint64_t now)
{
    if (now < s->watch.next_blobs_ms) return;
    s->watch.next_blobs_ms = now + WATCH_BLOBS_MS;
    for (struct run *run = s->runs; run; run = run->next) {
        check_blob(s, run, &run->newest.state);
        fail_without_files(run);
    }
}

/* `run watch` shows it. The log has it too, so one that cannot be stored is not lost. */
static void add_event(struct run *run, const char *event, const char *member, const char *text)
{
    struct store_event row = {
        .event = event, .member = member, .text = text, .round = round_under_way(&run->round)};
    err e = store_event_add(run->shop->store, run->id, &row);
    if (!err_is(e)) run->shop->changed(run, run->shop->context);
}

static void watch_round(struct run *run, uint64_t now)
{
    const struct round *r = &run->round;
    struct troubles *t = run->shop->troubles;
    const char *name = run->config->name;
    char text[128], past[32];
    size_t quorum = round_quorum(r);
    bool late = round_phase(r) == ROUND_TRAINING && r->deadline_at_ms && now > r->deadline_at_ms &&
                round_updates(r) < quorum && !r->rules.secret;
    if (!late) {
        trouble_end(t, TROUBLE_ROUND_OVERDUE, name, NULL, now);
        return;
    }
    text_duration(past, sizeof past, now - r->deadline_at_ms);
    snprintf(text, sizeof text,
             "round %u: the deadline passed %s ago with %zu updates of the quorum of %zu",
             round_under_way(r), past, round_updates(r), quorum);
    trouble_raise(
        t, &(struct trouble_case){.kind = TROUBLE_ROUND_OVERDUE, .run = name, .text = text}, now);
    if (run->overdue_round == round_under_way(r)) return;
    run->overdue_round = round_under_way(r);
    add_event(run, "round.overdue", NULL, text);
}

/* Members that were found absent, or back, in one look at a run. They share an event, because a
 * network that fails takes thousands of members with it. */
struct found {
    size_t members;
    const char *first;
    char text[160]; /* the ids, as far as there is room */
};

static void note(struct found *f, const char *id)
{
    size_t used = strlen(f->text);
    if (!f->members++) f->first = id;
    if (used + strlen(id) + 16 < sizeof f->text)
        snprintf(f->text + used, sizeof f->text - used, "%s%s", used ? ", " : "", id);
}

static void tell_found(struct run *run, const char *event, const struct found *f)
{
    char text[sizeof f->text + 32];
    if (f->members == 1) add_event(run, event, f->first, "");
    if (f->members < 2) return;
    snprintf(text, sizeof text, "%zu members: %s", f->members, f->text);
    add_event(run, event, NULL, text);
}

/* Only members that have called since the start: after it, all others are on their way. */
static void watch_member(struct run *run, size_t m, uint64_t now, struct found *found /* (2) */)
{
    struct run_member *member = &run->member[m];
    const struct round_member *r = &run->round.member[m];
    char peer[TROUBLE_PEER_BYTES], text[64], since[32];
    bool absent = r->joined && r->seen_ms && !strcmp(round_activity(&run->round, m, now), "absent");
    if (!absent && !member->absent) return;
    trouble_member(peer, r->id);
    /* Without this it ends by itself, as for a member that was dropped from the run. */
    if (absent && member->absent)
        trouble_lasts(run->shop->troubles, TROUBLE_MEMBER_ABSENT, run->config->name, peer, now);
    if (absent == member->absent) return;
    member->absent = absent;
    note(&found[absent], r->id);
    if (!absent) {
        trouble_end(run->shop->troubles, TROUBLE_MEMBER_ABSENT, run->config->name, peer, now);
        return;
    }
    text_duration(since, sizeof since, now - r->seen_ms);
    snprintf(text, sizeof text, "not seen for %s", since);
    const struct trouble_case c = {.kind = TROUBLE_MEMBER_ABSENT,
                                   .run = run->config->name,
                                   .peer = peer,
                                   .address = member->address,
                                   .text = text};
    trouble_raise(run->shop->troubles, &c, now);
}

/* As many runs as one turn has time for; the next turn continues. By name, because a list changes
 * between two turns. */
static void watch_runs(struct serve *s, uint64_t now)
{
    size_t looked = 0;
    struct run *run = *s->watch.at ? serve_find_run(s, s->watch.at) : NULL;
    if (!run) run = s->runs;
    for (; run && looked < WATCH_MEMBERS; run = run->next) {
        looked += 1;
        if (serve_is_over(run)) {
            trouble_drop_run(s->shop.troubles, run->config->name);
            continue;
        }
        struct found found[2] = {0};
        watch_round(run, now);
        for (size_t m = 0; m < run->round.members; m++)
            watch_member(run, m, now, found);
        tell_found(run, "member.back", &found[false]);
        tell_found(run, "member.absent", &found[true]);
        looked += run->round.members;
    }
    snprintf(s->watch.at, sizeof s->watch.at, "%s", run ? run->config->name : "");
}

/* The calls of members show who was drawn, or how many (tally.h). Asked before calls are handled: a
 * run that one of them creates opens no round before the next turn. */
void serve_hide_calls(struct serve *s)
{
    bool secret = false;
    for (const struct run *run = s->runs; run && !secret; run = run->next)
        secret = run->round.rules.secret && !serve_is_over(run);
    tally_hide(&s->tally, secret);
}

void serve_watch(struct serve *s, uint64_t now)
{
    if (now < s->watch.next_ms) return;
    s->watch.next_ms = now + WATCH_MS;
    watch_disk(s, now);
    watch_uploads(s, now);
    watch_log(s, now);
    serve_note_backups(s, now);
    watch_certificate(s, now);
    audit_tick(s->shop.audit);
    watch_states(s, now);
    watch_runs(s, now);
    serve_retain_turn(s, now);
    trouble_tick(s->shop.troubles, now);
}
