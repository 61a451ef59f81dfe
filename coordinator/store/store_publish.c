/* The commits that make results of a run count: its start, and each published round. */
#include "coordinator/store/store_rows.h"

#include "base/text.h"

#include <string.h>

/* A start state is the result of "round 0", so that it is kept and given up like the others. */
err store_rows_state(struct db *db, int64_t run, uint32_t round, const struct store_blob *state)
{
    TRY(db_run(db, "UPDATE runs SET state=?, state_size=? WHERE id=?", "hii", &state->digest,
               (int64_t)state->size, run));
    return db_run(db,
                  "INSERT INTO rounds(run,round,state,state_size,updates,took_ms,aggregate_ms,"
                  "train_loss,update_norm,error,dropped,report) VALUES(?,?,?,?,0,0,0,0,0,0,0,'')",
                  "iihi", run, (int64_t)round, &state->digest, (int64_t)state->size);
}

static err insert_start(struct db *db, const struct store_start *s)
{
    TRY(db_run(db, "UPDATE runs SET frozen=?, frozen_size=? WHERE id=?", "hii",
               store_rows_digest(&s->frozen), (int64_t)s->frozen.size, s->run));
    return store_rows_state(db, s->run, 0, &s->state);
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
    err e = insert_start(db, s);
    if (!err_is(e) && s->ledger) e = insert_line(db, s->run, 1, s->ledger);
    if (!err_is(e) && s->seed)
        e = db_run(db, "INSERT INTO private_rounds(run,round,seed) VALUES(?,0,?)", "ib", s->run,
                   (const void *)s->seed->byte, sizeof s->seed->byte);
    struct store_event plan = {.event = "privacy.plan", .text = s->plan};
    if (!err_is(e) && s->plan) e = store_rows_event(db, s->run, &plan);
    return db_end(db, e);
}

/* The condition published=?-1 makes a second publication of the same round change no row, which
 * publish_rows() checks. The old memory and frozen factors are given up here; if the new row
 * names them again, store_trim() keeps them. */
static err insert_round(struct db *db, const struct store_publish *p)
{
    const struct store_round *r = &p->round;
    TRY(db_run(
        db,
        "INSERT INTO rounds(run,round,state,state_size,updates,took_ms,aggregate_ms,"
        "train_loss,update_norm,error,dropped,report,norm) VALUES(?,?,?,?,?,?,?,?,0,0,0,'',?)",
        "iihiiiidd", p->run, (int64_t)r->round, &r->state.digest, (int64_t)r->state.size,
        (int64_t)r->updates, (int64_t)r->took_ms, (int64_t)r->aggregate_ms, r->train_loss,
        r->norm));
    TRY(db_run(db,
               "INSERT OR IGNORE INTO doomed SELECT memory FROM runs WHERE id=?1 AND memory IS NOT"
               " NULL UNION SELECT frozen FROM runs WHERE id=?1 AND frozen IS NOT NULL",
               "i", p->run));
    return db_run(db,
                  "UPDATE runs SET published=?, state=?, state_size=?, frozen=?, frozen_size=?,"
                  " memory=?, memory_size=? WHERE id=? AND published=?-1",
                  "ihihihiii", (int64_t)r->round, &r->state.digest, (int64_t)r->state.size,
                  store_rows_digest(&p->frozen), (int64_t)p->frozen.size,
                  store_rows_digest(&p->memory), (int64_t)p->memory.size, p->run,
                  (int64_t)r->round);
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
err store_rows_noisy(struct db *db, int64_t run, int64_t round)
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
    TRY(store_rows_noisy(db, p->run, round - 1));
    TRY(db_run(db, "INSERT INTO private_rounds(run,round,clip) VALUES(?,?,?)", "iid", p->run,
               round + 1, p->next_clip));
    struct store_event spent = {
        .event = "privacy.spent", .text = release_says(r), .round = p->round.round};
    TRY(store_rows_event(db, p->run, &spent));
    if (p->next_line && *p->next_line)
        TRY(insert_lines(db, p->run, release_line_number(r) + 1, p->next_line));
    if (!p->stop || !*p->stop) return ERR_NONE;
    TRY(db_run(db, "UPDATE runs SET hold='stopped', reason=?, ended_ms=? WHERE id=?", "tii",
               p->stop, (int64_t)text_wall_ms(), p->run));
    struct store_event stopped = {.event = "run.stopped", .text = p->stop, .round = p->round.round};
    return store_rows_event(db, p->run, &stopped);
}

/* The order matters only for the two checks: the release must be of this very state, and the
 * round must be the next one. Events come last, so that their numbers are in the order of the
 * rows. */
static err publish_rows(struct db *db, const struct store_publish *p)
{
    REQUIRE(p->release && digest_equal(release_state(p->release), &p->round.state.digest));
    TRY(insert_round(db, p));
    REQUIRE(db->changes == 1); /* published once, after the round before it */
    if (release_private(p->release)) TRY(insert_release(db, p));
    TRY(store_lineage_publish(db, p));
    TRY(give_up_old(db, p));
    struct store_event closed = {.event = "round.closed", .round = p->round.round};
    struct store_event finished = {.event = "run.finished", .round = p->round.round};
    TRY(store_rows_event(db, p->run, &closed));
    if (!p->last) return ERR_NONE;
    TRY(db_run(db, "UPDATE runs SET ended_ms=? WHERE id=?", "ii", (int64_t)text_wall_ms(), p->run));
    return store_rows_event(db, p->run, &finished);
}

/* The commit of this transaction publishes the round. A crash before it leaves the updates and the
 * old state as they were; after it, state, ledger line and events are all there. */
err store_publish(struct store *store, const struct store_publish *publish)
{
    TRY(db_begin(&store->db));
    return db_end(&store->db, publish_rows(&store->db, publish));
}
