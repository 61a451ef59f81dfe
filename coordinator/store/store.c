#include "coordinator/store/store_rows.h"

#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/store_files.h"

#include <string.h>

enum { STORE_TRIM_BATCH = 256 };

err store_place_database(char *out, size_t bytes, const struct store_place *place)
{
    bool server = place->database && *place->database;
    return file_join(out, bytes, server ? "" : place->dir, server ? place->database : "fedlora.db");
}

/* Each thread opens its own connection. The first call makes folders and tables (before other
 * threads exist: main.c), later calls find them. */
err store_open_at(struct store *out, const struct store_place *place)
{
    struct store store = {0};
    const char *dir = place->dir;
    char path[LIMIT_PATH_BYTES];
    if (strlen(dir) + STORE_PATH_ROOM >= sizeof store.dir)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", dir);
    memcpy(store.dir, dir, strlen(dir) + 1);
    TRY(file_join(path, sizeof path, dir, "blobs"));
    TRY(file_make_dirs(path));
    TRY(file_join(path, sizeof path, dir, "spool"));
    TRY(file_make_dirs(path));
    TRY(store_place_database(path, sizeof path, place));
    TRY(db_open(&store.db, path, place->care));
    err e = store_schema(&store);
    if (err_is(e))
        store_close(&store);
    else
        *out = store;
    return e;
}

err store_open(struct store *out, const char *dir)
{
    return store_open_at(out, &(struct store_place){.dir = dir});
}

void store_close(struct store *store)
{
    db_close(&store->db);
    *store = (struct store){0};
}

/* Every table that names a blob, as in store_files.c. A table that is missing here would lose its
 * files at the next start. */
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
err store_rows_event(struct db *db, int64_t run, const struct store_event *event)
{
    return db_run(db, "INSERT INTO events(run,wall_ms,event,text,round,member) VALUES(?,?,?,?,?,?)",
                  "iittit", run, (int64_t)text_wall_ms(), event->event,
                  event->text ? event->text : "", (int64_t)event->round,
                  event->member ? event->member : "");
}

/* A single statement is a transaction by itself, so this function needs no db_begin(). */
err store_event_add(struct store *store, int64_t run, const struct store_event *event)
{
    return store_rows_event(&store->db, run, event);
}

err store_event_add_all(struct store *store, const int64_t *run, size_t runs,
                        const struct store_event *event)
{
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < runs && !err_is(e); i++)
        e = store_rows_event(&store->db, run[i], event);
    return db_end(&store->db, e);
}

const struct digest *store_rows_digest(const struct store_blob *blob)
{
    return blob->size ? &blob->digest : NULL;
}

static err insert_run(int64_t *id, struct db *db, const struct store_run *run)
{
    return db_number(id, db,
                     "INSERT INTO runs(name,config,created_ms,frozen,frozen_size)"
                     " VALUES(?,?,?,?,?) RETURNING id",
                     "tbihi", run->name, run->config, run->config_size, (int64_t)run->created_ms,
                     store_rows_digest(&run->frozen), (int64_t)run->frozen.size);
}

/* The state is the result of a round of another run, and like a start state of this one. */
static err insert_from(struct db *db, int64_t id, const struct store_run *run)
{
    int64_t round = run->published;
    struct store_event event = {
        .event = "run.continues", .text = run->from, .round = run->published};
    if (!run->state.size) return ERR_NONE;
    TRY(db_run(db,
               "UPDATE runs SET published=?1, opened=?1, began=?1, memory=?2, memory_size=?3"
               " WHERE id=?4",
               "ihii", round, store_rows_digest(&run->memory), (int64_t)run->memory.size, id));
    TRY(store_rows_state(db, id, run->published, &run->state));
    TRY(db_run(db, "DELETE FROM pins WHERE digest=?", "h", &run->state.digest));
    return store_rows_event(db, id, &event);
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
    if (!err_is(e)) e = store_rows_event(db, made, &event);
    if (!err_is(e)) e = insert_from(db, made, run);
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
    if (!err_is(e) && !strcmp(hold, "stopped"))
        e = db_run(&store->db, "UPDATE runs SET ended_ms=? WHERE id=?", "ii",
                   (int64_t)text_wall_ms(), run);
    if (!err_is(e)) e = store_rows_event(&store->db, run, event);
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
    if (!err_is(e)) e = store_lineage_hello(&store->db, run, m);
    struct store_event event = {.event = "member.joined", .member = m->id};
    if (!err_is(e) && first) e = store_rows_event(&store->db, run, &event);
    return db_end(&store->db, e);
}

/* Committed before a member gets the round: run_save_opening() says why. */
err store_opened(struct store *store, int64_t run, uint32_t round, const struct store_event *event)
{
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "UPDATE runs SET opened=? WHERE id=?", "ii", (int64_t)round, run);
    if (!err_is(e)) e = store_rows_event(&store->db, run, event);
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
    err e =
        db_run(&store->db,
               "INSERT INTO evaluations VALUES(?,?,?,?,?,?) ON CONFLICT(run,round,member)"
               " DO UPDATE SET rows=excluded.rows, loss=excluded.loss, accuracy=excluded.accuracy",
               "iitidd", run, (int64_t)v->round, member, (int64_t)v->rows, v->loss, v->accuracy);
    if (!err_is(e)) e = store_rows_event(&store->db, run, &event);
    return db_end(&store->db, e);
}

/* Adds to the row, because the loop thread counts only what is new since the last write. */
err store_bytes_down(struct store *store, int64_t run, const char *member, uint64_t bytes)
{
    return db_run(&store->db, "UPDATE members SET bytes_down=bytes_down+? WHERE run=? AND id=?",
                  "iit", (int64_t)bytes, run, member);
}

/* INSERT OR IGNORE: the same update may be made durable twice if a receipt was lost. The second
 * time nothing changes, so its bytes are not counted again. */
static err insert_update(struct db *db, const struct store_update *u)
{
    int64_t run = u->run, round = u->counted_in;
    TRY(db_run(db, "INSERT OR IGNORE INTO updates VALUES(?,?,?,?,?,?,?,?,?,?)", "iitihiiddi", run,
               round, u->member, (int64_t)u->trained_round, &u->blob.digest, (int64_t)u->blob.size,
               (int64_t)u->examples, u->train_loss, u->seconds, (int64_t)u->tokens));
    if (db->changes == 0) return ERR_NONE;
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
    return store_rows_event(db, run, &event);
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
static err trim(struct store *store)
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

/* A backup copies the files of an earlier moment, so they stay until it is done. */
err store_trim(struct store *store)
{
    struct lock backup = {0};
    int64_t any = 0;
    bool free = false;
    TRY(db_number(&any, &store->db, "SELECT EXISTS(SELECT 1 FROM doomed)", ""));
    if (!any) return ERR_NONE;
    TRY(store_files_free(&free, &backup, store->dir));
    err e = free ? trim(store) : ERR_NONE;
    lock_close(&backup);
    return e;
}
