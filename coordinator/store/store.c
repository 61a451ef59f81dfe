#include "coordinator/store/store.h"

#include "base/file.h"
#include "base/text.h"

#include <math.h>
#include <string.h>

enum { STORE_TRIM_BATCH = 256 };

/* Each thread opens its own connection. The first call makes folders and tables (before other
 * threads exist: main.c), later calls find them. */
err store_open_with(struct store *out, const char *dir, enum db_care care)
{
    struct store store = {0};
    char path[LIMIT_PATH_BYTES];
    /* Room for "/spool/", an owner and a digest. */
    if (strlen(dir) + 128 >= sizeof store.dir)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", dir);
    memcpy(store.dir, dir, strlen(dir) + 1);
    TRY(file_join(path, sizeof path, dir, "blobs"));
    TRY(file_make_dirs(path));
    TRY(file_join(path, sizeof path, dir, "spool"));
    TRY(file_make_dirs(path));
    TRY(file_join(path, sizeof path, dir, "fedlora.db"));
    TRY(db_open(&store.db, path, care));
    err e = store_schema(&store);
    if (err_is(e))
        store_close(&store);
    else
        *out = store;
    return e;
}

err store_open(struct store *out, const char *dir)
{
    return store_open_with(out, dir, DB_FLUSHED);
}

void store_close(struct store *store)
{
    db_close(&store->db);
    *store = (struct store){0};
}

/* Every table that names a blob. A table that is missing here would lose its files at the next
 * start. */
err store_blob_known(bool *out, struct store *store, const struct digest *digest)
{
    int64_t found = 0;
    TRY(db_number(&found, &store->db,
                  "SELECT EXISTS(SELECT 1 FROM updates WHERE digest=?1)"
                  " OR EXISTS(SELECT 1 FROM runs WHERE state=?1 OR frozen=?1 OR memory=?1)"
                  " OR EXISTS(SELECT 1 FROM rounds WHERE state=?1 AND gone=0)"
                  " OR EXISTS(SELECT 1 FROM private_rounds WHERE noisy=?1)"
                  " OR EXISTS(SELECT 1 FROM pins WHERE digest=?1)",
                  "h", digest));
    *out = found != 0;
    return ERR_NONE;
}

/* Updates and noisy means are absent from this list, because no peer, not even an operator, may
 * read them. */
err store_blob_public(bool *out, struct store *store, int64_t run, const struct digest *digest)
{
    int64_t found = 0;
    TRY(db_number(
        &found, &store->db,
        "SELECT EXISTS(SELECT 1 FROM runs WHERE (?2=0 OR id=?2) AND (state=?1 OR frozen=?1))"
        " OR EXISTS(SELECT 1 FROM rounds WHERE (?2=0 OR run=?2) AND state=?1 AND gone=0)"
        " OR (?2=0 AND EXISTS(SELECT 1 FROM pins WHERE digest=?1))",
        "hi", digest, run));
    *out = found != 0;
    return ERR_NONE;
}

/* Events are written in the transaction of the change they report, so `run watch` never shows
 * something that a crash undid. */
static err insert_event(struct db *db, int64_t run, const struct store_event *event)
{
    return db_run(db, "INSERT INTO events(run,wall_ms,event,text,round,member) VALUES(?,?,?,?,?,?)",
                  "iittit", run, (int64_t)text_wall_ms(), event->event,
                  event->text ? event->text : "", (int64_t)event->round,
                  event->member ? event->member : "");
}

/* A single statement is a transaction by itself, so this function needs no db_begin(). */
err store_event_add(struct store *store, int64_t run, const struct store_event *event)
{
    return insert_event(&store->db, run, event);
}

err store_event_add_all(struct store *store, const int64_t *run, size_t runs,
                        const struct store_event *event)
{
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < runs && !err_is(e); i++)
        e = insert_event(&store->db, run[i], event);
    return db_end(&store->db, e);
}

static const struct digest *blob_digest(const struct store_blob *blob)
{
    return blob->size ? &blob->digest : NULL;
}

static err insert_run(int64_t *id, struct db *db, const struct store_run *run)
{
    TRY(db_run(db, "INSERT INTO runs(name,config,created_ms,frozen,frozen_size) VALUES(?,?,?,?,?)",
               "tbihi", run->name, run->config, run->config_size, (int64_t)run->created_ms,
               blob_digest(&run->frozen), (int64_t)run->frozen.size));
    *id = sqlite3_last_insert_rowid(db->handle);
    return ERR_NONE;
}

/* The name is checked before the transaction for a better message; the UNIQUE constraint would
 * refuse it too. The pin is dropped here because the run's row now names the blob. */
err store_run_add(int64_t *id, struct store *store, const struct store_run *run,
                  const char *const *member, size_t members)
{
    struct db *db = &store->db;
    int64_t made = 0, same = 0;
    TRY(db_number(&same, db, "SELECT count(*) FROM runs WHERE name=?", "t", run->name));
    if (same) return err_make(ERR_INPUT, "a run named %s exists already", run->name);
    TRY(db_begin(db));
    err e = insert_run(&made, db, run);
    for (size_t i = 0; i < members && !err_is(e); i++)
        e = db_run(db, "INSERT INTO members(run,id) VALUES(?,?)", "it", made, member[i]);
    if (!err_is(e) && run->frozen.size)
        e = db_run(db, "DELETE FROM pins WHERE digest=?", "h", &run->frozen.digest);
    struct store_event event = {.event = "run.created",
                                .text = run->by && *run->by ? run->by : run->name};
    if (!err_is(e)) e = insert_event(db, made, &event);
    e = db_end(db, e);
    if (!err_is(e)) *id = made;
    return e;
}

/* The reason is kept for failures, so that an operator sees it after a restart. */
err store_hold(struct store *store, int64_t run, const char *hold, const char *reason,
               const struct store_event *event)
{
    TRY(db_begin(&store->db));
    err e =
        db_run(&store->db, "UPDATE runs SET hold=?, reason=? WHERE id=?", "tti", hold, reason, run);
    if (!err_is(e)) e = insert_event(&store->db, run, event);
    return db_end(&store->db, e);
}

err store_modules(struct store *store, int64_t run, const void *packed, size_t size)
{
    return db_run(&store->db, "UPDATE runs SET modules=? WHERE id=?", "bi", packed, size, run);
}

/* Adds the event only for the first hello, because members say hello again after each of their
 * restarts. */
err store_hello(struct store *store, int64_t run, const struct store_member *m, bool first)
{
    TRY(db_begin(&store->db));
    err e = db_run(&store->db,
                   "UPDATE members SET joined=1, rank=?, examples=?, libraries=?, eval_rows=?"
                   " WHERE run=? AND id=?",
                   "iitiit", (int64_t)m->rank, (int64_t)m->examples, m->libraries,
                   (int64_t)m->eval_rows, run, m->id);
    struct store_event event = {.event = "member.joined", .member = m->id};
    if (!err_is(e) && first) e = insert_event(&store->db, run, &event);
    return db_end(&store->db, e);
}

/* Committed before a member gets the round: run_save_opening() says why. */
err store_opened(struct store *store, int64_t run, uint32_t round, const struct store_event *event)
{
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "UPDATE runs SET opened=? WHERE id=?", "ii", (int64_t)round, run);
    if (!err_is(e)) e = insert_event(&store->db, run, event);
    return db_end(&store->db, e);
}

/* The evaluation and its event, in one transaction. */
err store_evaluated(struct store *store, int64_t run, const char *member,
                    const struct store_evaluation *v)
{
    char text[160], accuracy[40] = "";
    if (v->accuracy >= 0) snprintf(accuracy, sizeof accuracy, ", accuracy %.4f", v->accuracy);
    snprintf(text, sizeof text, "loss %.6g%s over %llu rows", v->loss, accuracy,
             (unsigned long long)v->rows);
    struct store_event event = {
        .event = "evaluation.received", .text = text, .round = v->round, .member = member};
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "INSERT OR REPLACE INTO evaluations VALUES(?,?,?,?,?,?)", "iitidd",
                   run, (int64_t)v->round, member, (int64_t)v->rows, v->loss, v->accuracy);
    if (!err_is(e)) e = insert_event(&store->db, run, &event);
    return db_end(&store->db, e);
}

/* Adds to the row, because the loop thread counts only what is new since the last write. */
err store_bytes_down(struct store *store, int64_t run, const char *member, uint64_t bytes)
{
    return db_run(&store->db, "UPDATE members SET bytes_down=bytes_down+? WHERE run=? AND id=?",
                  "iit", (int64_t)bytes, run, member);
}

/* The start state is the result of "round 0", so that it is kept and given up like the others. */
static err insert_start(struct db *db, int64_t run, const struct store_blob *state,
                        const struct store_blob *frozen)
{
    TRY(db_run(db, "UPDATE runs SET state=?, state_size=?, frozen=?, frozen_size=? WHERE id=?",
               "hihii", &state->digest, (int64_t)state->size, blob_digest(frozen),
               (int64_t)frozen->size, run));
    return db_run(db, "INSERT INTO rounds VALUES(?,0,?,?,0,0,0,0,0,0,0,'',0,0)", "ihi", run,
                  &state->digest, (int64_t)state->size);
}

static err insert_line(struct db *db, int64_t run, uint64_t number, const char *text)
{
    return db_run(db, "INSERT INTO ledger VALUES(?,?,?)", "iit", run, (int64_t)number, text);
}

/* Each line is a row, numbered from `number` on, and keeps its newline, because store_ledger() only
 * joins the rows. */
static err insert_lines(struct db *db, int64_t run, uint64_t number, const char *text)
{
    char line[LEDGER_LINE_BYTES + 1];
    err e = ERR_NONE;
    for (const char *end; !err_is(e) && (end = strchr(text, '\n')); text = end + 1) {
        REQUIRE((size_t)(end - text) < LEDGER_LINE_BYTES);
        snprintf(line, sizeof line, "%.*s", (int)(end - text) + 1, text);
        e = insert_line(db, run, number++, line);
    }
    return e;
}

/* In a private run the ledger's first line and the seed it commits to are in the same
 * transaction as the state: neither is ever without the other. */
err store_started(struct store *store, const struct store_start *s)
{
    struct db *db = &store->db;
    TRY(db_begin(db));
    err e = insert_start(db, s->run, &s->state, &s->frozen);
    if (!err_is(e) && s->ledger) e = insert_line(db, s->run, 1, s->ledger);
    if (!err_is(e) && s->seed)
        e = db_run(db, "INSERT INTO private_rounds(run,round,seed) VALUES(?,0,?)", "ib", s->run,
                   (const void *)s->seed->byte, sizeof s->seed->byte);
    struct store_event plan = {.event = "privacy.plan", .text = s->plan};
    if (!err_is(e) && s->plan) e = insert_event(db, s->run, &plan);
    return db_end(db, e);
}

/* INSERT OR IGNORE: the same update may be made durable twice if a receipt was lost. The second
 * time nothing changes, so its bytes are not counted again. */
static err insert_update(struct db *db, const struct store_update *u)
{
    int64_t run = u->run, round = u->counted_in;
    TRY(db_run(db, "INSERT OR IGNORE INTO updates VALUES(?,?,?,?,?,?,?,?,?,?)", "iitihiiddi", run,
               round, u->member, (int64_t)u->trained_round, &u->blob.digest, (int64_t)u->blob.size,
               (int64_t)u->examples, u->train_loss, u->seconds, (int64_t)u->tokens));
    if (sqlite3_changes(db->handle) == 0) return ERR_NONE;
    TRY(db_run(db,
               "UPDATE members SET bytes_up=bytes_up+?, train_loss=?, made_for=?, counted_in=?,"
               " digest=? WHERE run=? AND id=?",
               "idiihit", (int64_t)u->blob.size, u->train_loss, (int64_t)u->trained_round, round,
               &u->blob.digest, run, u->member));
    if (u->pruned)
        TRY(db_run(db, "UPDATE members SET rank=?1, pruned=?1 WHERE run=?2 AND id=?3", "iit",
                   (int64_t)u->pruned, run, u->member));
    struct store_event event = {
        .event = "update.received", .member = u->member, .round = u->counted_in};
    return insert_event(db, run, &event);
}

/* All updates of a batch share one commit, and so one flush of the disk; a receipt is sent only
 * after it. */
err store_receipts(struct store *store, const struct store_update *update, size_t count)
{
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = insert_update(&store->db, &update[i]);
    return db_end(&store->db, e);
}

/* The condition published=?-1 makes a second publication of the same round change no row, which
 * publish_rows() checks. The old memory and frozen factors are given up here; if the new row
 * names them again, store_trim() keeps them. */
static err insert_round(struct db *db, const struct store_publish *p)
{
    const struct store_round *r = &p->round;
    TRY(db_run(db, "INSERT INTO rounds VALUES(?,?,?,?,?,?,?,?,?,?,?,?,0,?)", "iihiiiiddddtd",
               p->run, (int64_t)r->round, &r->state.digest, (int64_t)r->state.size,
               (int64_t)r->updates, (int64_t)r->took_ms, (int64_t)r->aggregate_ms, r->train_loss,
               0.0, 0.0, 0.0, "", r->norm));
    TRY(db_run(db,
               "INSERT OR IGNORE INTO doomed SELECT memory FROM runs WHERE id=?1 AND memory IS NOT"
               " NULL UNION SELECT frozen FROM runs WHERE id=?1 AND frozen IS NOT NULL",
               "i", p->run));
    return db_run(db,
                  "UPDATE runs SET published=?, state=?, state_size=?, frozen=?, frozen_size=?,"
                  " memory=?, memory_size=? WHERE id=? AND published=?-1",
                  "ihihihiii", (int64_t)r->round, &r->state.digest, (int64_t)r->state.size,
                  blob_digest(&p->frozen), (int64_t)p->frozen.size, blob_digest(&p->memory),
                  (int64_t)p->memory.size, p->run, (int64_t)r->round);
}

/* Lists files to remove in `doomed` instead of removing them, so that a crash before their removal
 * forgets none of them, and none is removed before the commit. `keep` includes the new round, so
 * round - keep is the newest round whose state is given up. Its digest stays, because a member or
 * an auditor may have a copy of the state. */
static err give_up_old(struct db *db, const struct store_publish *p)
{
    int64_t round = p->round.round, state = round - (int64_t)p->keep;
    int64_t update = round - (int64_t)p->updates_keep;
    TRY(db_run(
        db, "INSERT OR IGNORE INTO doomed SELECT digest FROM updates WHERE run=? AND counted_in<=?",
        "ii", p->run, update));
    TRY(db_run(db, "DELETE FROM updates WHERE run=? AND counted_in<=?", "ii", p->run, update));
    TRY(db_run(db,
               "INSERT OR IGNORE INTO doomed SELECT state FROM rounds"
               " WHERE run=? AND round<=? AND gone=0",
               "ii", p->run, state));
    return db_run(db, "UPDATE rounds SET gone=1 WHERE run=? AND round<=? AND gone=0", "ii", p->run,
                  state);
}

/* The noisy means of rounds up to this one: their states contain them, and no report needs them. */
static err give_up_noisy(struct db *db, int64_t run, int64_t round)
{
    TRY(db_run(db,
               "INSERT OR IGNORE INTO doomed SELECT noisy FROM private_rounds"
               " WHERE run=? AND round<=? AND noisy IS NOT NULL",
               "ii", run, round));
    return db_run(db,
                  "UPDATE private_rounds SET noisy=NULL"
                  " WHERE run=? AND round<=? AND noisy IS NOT NULL",
                  "ii", run, round);
}

/* The charge and the release are one transaction, so nothing is published without being charged.
 * The noisy mean of this round is kept for its report. The mean of the round before is given up
 * here, because its report may not have been made. */
static err insert_release(struct db *db, const struct store_publish *p)
{
    const struct release *r = p->release;
    int64_t round = p->round.round;
    TRY(insert_line(db, p->run, release_line_number(r), release_line(r)));
    TRY(give_up_noisy(db, p->run, round - 1));
    TRY(db_run(db, "INSERT INTO private_rounds(run,round,clip) VALUES(?,?,?)", "iid", p->run,
               round + 1, p->next_clip));
    struct store_event spent = {
        .event = "privacy.spent", .text = release_says(r), .round = p->round.round};
    TRY(insert_event(db, p->run, &spent));
    if (p->next_line && *p->next_line)
        TRY(insert_lines(db, p->run, release_line_number(r) + 1, p->next_line));
    if (!p->stop || !*p->stop) return ERR_NONE;
    TRY(db_run(db, "UPDATE runs SET hold='stopped', reason=? WHERE id=?", "ti", p->stop, p->run));
    struct store_event stopped = {.event = "run.stopped", .text = p->stop, .round = p->round.round};
    return insert_event(db, p->run, &stopped);
}

/* The order matters only for the two checks: the release must be of this very state, and the
 * round must be the next one. Events come last, so that their numbers are in the order of the
 * rows. */
static err publish_rows(struct db *db, const struct store_publish *p)
{
    REQUIRE(p->release && digest_equal(release_state(p->release), &p->round.state.digest));
    TRY(insert_round(db, p));
    REQUIRE(sqlite3_changes(db->handle) == 1); /* published once, after the round before it */
    if (release_private(p->release)) TRY(insert_release(db, p));
    TRY(give_up_old(db, p));
    struct store_event closed = {.event = "round.closed", .round = p->round.round};
    struct store_event finished = {.event = "run.finished", .round = p->round.round};
    TRY(insert_event(db, p->run, &closed));
    return p->last ? insert_event(db, p->run, &finished) : ERR_NONE;
}

/* The commit of this transaction publishes the round. A crash before it leaves the updates and the
 * old state as they were; after it, state, ledger line and events are all there. */
err store_publish(struct store *store, const struct store_publish *publish)
{
    TRY(db_begin(&store->db));
    return db_end(&store->db, publish_rows(&store->db, publish));
}

/* The event's text has two numbers for `run status`. A private round's noisy mean was kept for this
 * report only. SQLite stores NaN as NULL, which the columns refuse, so 0 stands for no norms. */
err store_report(struct store *store, int64_t run, const struct store_round *r)
{
    struct db *db = &store->db;
    char text[96];
    bool norms = !isnan(r->update_norm);
    if (!norms)
        snprintf(text, sizeof text, "without norms, which the method does not have");
    else
        snprintf(text, sizeof text, "change %.4g, error %.2g", r->update_norm, r->error);
    struct store_event event = {.event = "round.reported", .text = text, .round = r->round};
    TRY(db_begin(db));
    err e = db_run(db,
                   "UPDATE rounds SET update_norm=?, error=?, dropped=?, report=?"
                   " WHERE run=? AND round=?",
                   "dddtii", norms ? r->update_norm : 0.0, norms ? r->error : 0.0,
                   norms ? r->dropped : 0.0, r->report_json, run, (int64_t)r->round);
    if (!err_is(e)) e = insert_event(db, run, &event);
    if (!err_is(e)) e = give_up_noisy(db, run, r->round);
    return db_end(db, e);
}

err store_reports_skipped(uint32_t *out, struct store *store, int64_t run)
{
    int64_t count = 0;
    TRY(db_number(&count, &store->db,
                  "SELECT count(*) FROM events WHERE run=? AND event='report.skipped'", "i", run));
    *out = (uint32_t)count;
    return ERR_NONE;
}

/* An operator may upload a file and never use it, so the number of pins is limited. The same
 * file again does not count twice. */
err store_pin(struct store *store, const struct store_blob *blob, size_t pins_max)
{
    int64_t pins = 0;
    TRY(db_number(&pins, &store->db, "SELECT count(*) FROM pins WHERE digest<>?", "h",
                  &blob->digest));
    if ((size_t)pins >= pins_max)
        return err_make(ERR_LIMIT, "%zu blobs wait for a run to name them, the most that are kept",
                        pins_max);
    return db_run(&store->db, "INSERT OR IGNORE INTO pins VALUES(?,?)", "hi", &blob->digest,
                  (int64_t)blob->size);
}

/* The next blobs that were given up, at most STORE_TRIM_BATCH. */
static err next_doomed(struct digest *out, size_t *count, struct db *db)
{
    struct db_query q = {0};
    size_t n = 0;
    bool row = true;
    TRY(db_query_open(&q, db, "SELECT digest FROM doomed LIMIT ?", "i", (int64_t)STORE_TRIM_BATCH));
    err e = ERR_NONE;
    while (n < STORE_TRIM_BATCH && row && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (!err_is(e) && row && db_query_digest(&out[n], &q, 0)) n++;
    }
    db_query_close(&q);
    *count = n;
    return e;
}

static err forget_doomed(struct db *db, const struct digest *digest, size_t count)
{
    TRY(db_begin(db));
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = db_run(db, "DELETE FROM doomed WHERE digest=?", "h", &digest[i]);
    return db_end(db, e);
}

/* Files first, then their rows, so a crash in between finds no file the next time, which is no
 * error. In batches, because each commit waits for the disk and the next round waits for this. A
 * newer row may name the same content again (frozen factors mostly do), so each digest is looked up
 * first. */
err store_trim(struct store *store)
{
    struct digest digest[STORE_TRIM_BATCH];
    for (;;) {
        size_t count = 0;
        bool used = true;
        TRY(next_doomed(digest, &count, &store->db));
        if (count == 0) return ERR_NONE;
        for (size_t i = 0; i < count; i++) {
            TRY(store_blob_known(&used, store, &digest[i]));
            if (!used) TRY(blob_remove(store->dir, &digest[i]));
        }
        TRY(forget_doomed(&store->db, digest, count));
    }
}
