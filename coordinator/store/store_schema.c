/* The tables of the store, and how an older store gets them. */
#include "base/file.h"
#include "base/version.h"
#include "coordinator/store/store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { STORE_VERSION = VERSION_STORE };

/* Version 1. A digest column names a blob; NULL means that there is none.
 *
 * runs      `published` rounds; `opened`: the newest round that members may have been handed;
 *           `hold`: '', paused, stopped, failed
 * members   one row for each member of a run, with the figures of its newest update
 * updates   those that count in round `counted_in`; made_for: the round they were trained for
 * rounds    round 0 is the start; `state` is NULL if a version before 6 gave the state up
 * events    for `run watch`, in the order of `sequence`, never deleted
 * pins      blobs that an operator uploaded and that no run names yet
 * doomed    blobs that were given up and whose files are still to be removed */
static const char schema[] =
    "CREATE TABLE IF NOT EXISTS runs(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
    " config BLOB NOT NULL, modules BLOB, published INTEGER NOT NULL DEFAULT 0,"
    " opened INTEGER NOT NULL DEFAULT 0, hold TEXT NOT NULL DEFAULT '',"
    " reason TEXT NOT NULL DEFAULT '', created_ms INTEGER NOT NULL, state BLOB, state_size INTEGER,"
    " frozen BLOB, frozen_size INTEGER);"
    "CREATE TABLE IF NOT EXISTS members(run INTEGER NOT NULL REFERENCES runs(id), id TEXT NOT NULL,"
    " joined INTEGER NOT NULL DEFAULT 0, rank INTEGER NOT NULL DEFAULT 0,"
    " examples INTEGER NOT NULL DEFAULT 0, libraries TEXT, bytes_up INTEGER NOT NULL DEFAULT 0,"
    " bytes_down INTEGER NOT NULL DEFAULT 0, train_loss REAL NOT NULL DEFAULT 0,"
    " made_for INTEGER NOT NULL DEFAULT 0, counted_in INTEGER NOT NULL DEFAULT 0, digest BLOB,"
    " PRIMARY KEY(run, id)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS updates(run INTEGER NOT NULL REFERENCES runs(id),"
    " counted_in INTEGER NOT NULL, member TEXT NOT NULL, made_for INTEGER NOT NULL,"
    " digest BLOB NOT NULL, size INTEGER NOT NULL, examples INTEGER NOT NULL,"
    " train_loss REAL NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL,"
    " PRIMARY KEY(run, counted_in, member)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS rounds(run INTEGER NOT NULL REFERENCES runs(id),"
    " round INTEGER NOT NULL, state BLOB, state_size INTEGER NOT NULL, updates INTEGER NOT NULL,"
    " took_ms INTEGER NOT NULL, aggregate_ms INTEGER NOT NULL, train_loss REAL NOT NULL,"
    " update_norm REAL NOT NULL, error REAL NOT NULL, dropped REAL NOT NULL,"
    " report TEXT NOT NULL, PRIMARY KEY(run, round)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS events(sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
    " run INTEGER NOT NULL REFERENCES runs(id), wall_ms INTEGER NOT NULL, event TEXT NOT NULL,"
    " text TEXT NOT NULL, round INTEGER NOT NULL, member TEXT NOT NULL);"
    "CREATE INDEX IF NOT EXISTS events_of_run ON events(run, sequence);"
    "CREATE INDEX IF NOT EXISTS updates_by_digest ON updates(digest);"
    "CREATE TABLE IF NOT EXISTS pins(digest BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS doomed(digest BLOB PRIMARY KEY) WITHOUT ROWID;"
    "PRAGMA user_version = 1;";

/* Added by version 2. A new database runs all scripts in turn, so old and new stores have the
 * same tables. */
static const char schema_2[] =
    "ALTER TABLE members ADD COLUMN eval_rows INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE members ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN memory BLOB;"
    "ALTER TABLE runs ADD COLUMN memory_size INTEGER;"
    "CREATE TABLE evaluations(run INTEGER NOT NULL REFERENCES runs(id), round INTEGER NOT NULL,"
    " member TEXT NOT NULL, rows INTEGER NOT NULL, loss REAL NOT NULL, accuracy REAL NOT NULL,"
    " PRIMARY KEY(run, round, member)) WITHOUT ROWID;"
    "PRAGMA user_version = 2;";

/* Added by version 3, for privacy: the ledger's lines, and for each round the cohort's seed, the
 * clip norm and the noisy mean. */
static const char schema_3[] =
    "CREATE TABLE ledger(run INTEGER NOT NULL REFERENCES runs(id), line INTEGER NOT NULL,"
    " text TEXT NOT NULL, PRIMARY KEY(run, line)) WITHOUT ROWID;"
    "CREATE TABLE private_rounds(run INTEGER NOT NULL REFERENCES runs(id), round INTEGER NOT NULL,"
    " seed BLOB, clip REAL NOT NULL DEFAULT 0, noisy BLOB, noisy_size INTEGER NOT NULL DEFAULT 0,"
    " next_clip REAL NOT NULL DEFAULT 0, PRIMARY KEY(run, round)) WITHOUT ROWID;"
    "PRAGMA user_version = 3;";

/* Added by version 4: copies of members' own ledgers. The columns after `text` are read from a
 * release line; `ours` is 1 if the release is of this run, and the others are 0 in other lines. */
static const char schema_4[] =
    "CREATE TABLE ledger_copies(run INTEGER NOT NULL REFERENCES runs(id), member TEXT NOT NULL,"
    " line INTEGER NOT NULL, text TEXT NOT NULL, ours INTEGER NOT NULL, round INTEGER NOT NULL,"
    " released BLOB, noise REAL NOT NULL, sampling REAL NOT NULL, count INTEGER NOT NULL,"
    " PRIMARY KEY(run, member, line)) WITHOUT ROWID;"
    "PRAGMA user_version = 4;";

/* Added by version 5: status replies count these events, and a run may have millions of others. */
static const char schema_5[] = "CREATE INDEX IF NOT EXISTS reports_skipped ON events(run, round)"
                               " WHERE event='report.skipped';"
                               "PRAGMA user_version = 5;";

/* Added by version 6: a state that was given up keeps its digest and has `gone` 1. Lookups by
 * digest need the others only. */
static const char schema_6[] =
    "ALTER TABLE rounds ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;"
    "UPDATE rounds SET gone=1 WHERE state IS NULL;"
    "CREATE INDEX IF NOT EXISTS states_kept ON rounds(state) WHERE gone=0;"
    "PRAGMA user_version = 6;";

/* Added by version 7: the newest round that a member's update was taken out of, and why, and the
 * newest round that an operator closes without it; the median norm of a round's updates, 0 where it
 * was not measured. */
static const char schema_7[] =
    "ALTER TABLE members ADD COLUMN refused_in INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE members ADD COLUMN excused_in INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE members ADD COLUMN refusal TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE rounds ADD COLUMN norm REAL NOT NULL DEFAULT 0;"
    "PRAGMA user_version = 7;";

/* Added by version 8: the epochs of the newest starts (store_epoch.c). */
static const char schema_8[] = "CREATE TABLE IF NOT EXISTS epochs(start INTEGER PRIMARY KEY, epoch "
                               "BLOB NOT NULL) WITHOUT ROWID;"
                               "PRAGMA user_version = 8;";

/* Added by version 9, for retention.
 *
 * report_z        packed_text() of the report; `report` holds those of older versions
 * began           the round whose published state the run was created from; 0: it made its own
 * ended_ms        when it finished or was stopped; archived_ms: when its files were given up
 * deleted_ms      the row is a tombstone, and `name` is not the run's any more: deleted_name is */
static const char schema_9[] =
    "ALTER TABLE rounds ADD COLUMN report_z BLOB;"
    "ALTER TABLE runs ADD COLUMN began INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN ended_ms INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN archived_ms INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN deleted_ms INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE runs ADD COLUMN deleted_by TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE runs ADD COLUMN deleted_name TEXT NOT NULL DEFAULT '';"
    "UPDATE runs SET ended_ms=coalesce((SELECT max(wall_ms) FROM events WHERE run=runs.id"
    " AND event IN('run.finished','run.stopped')),0);"
    "PRAGMA user_version = 9;";

/* Added by version 10: the lineage of every state, never deleted (store_lineage.c). software holds
 * descriptions of programs and machines, which others name by digest.
 *
 * counted   the updates that a round's state was made from, also when their own rows are gone
 * made      by which program and under which configuration a round was combined */
static const char schema_10[] =
    "CREATE TABLE software(digest BLOB PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;"
    "ALTER TABLE members ADD COLUMN software BLOB;"
    "CREATE TABLE counted(run INTEGER NOT NULL REFERENCES runs(id), round INTEGER NOT NULL,"
    " member TEXT NOT NULL, made_for INTEGER NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL,"
    " examples INTEGER NOT NULL, weight REAL NOT NULL, software BLOB,"
    " PRIMARY KEY(run, round, member)) WITHOUT ROWID;"
    "CREATE TABLE made(run INTEGER NOT NULL REFERENCES runs(id), round INTEGER NOT NULL,"
    " config BLOB NOT NULL, software BLOB NOT NULL, PRIMARY KEY(run, round)) WITHOUT ROWID;"
    "PRAGMA user_version = 10;";

/* Added by version 11: the newest backups (store_backup_add()). */
static const char schema_11[] =
    "CREATE TABLE IF NOT EXISTS backups(id INTEGER PRIMARY KEY AUTOINCREMENT, made_ms INTEGER NOT "
    "NULL,"
    " path TEXT NOT NULL, files INTEGER NOT NULL, bytes INTEGER NOT NULL, wrong INTEGER NOT NULL);"
    "PRAGMA user_version = 11;";

/* Added by version 12 (store_identity.h).
 *
 * identities     role: client or admin; origin: file, token or operator; `recorded` 1: only
 *                certificates of the next table are good, because earlier ones were revoked;
 *                keep_runs 1: a revoked member stays in its open runs
 * certificates   revoked_ms 0: not revoked
 * tokens         secret: BLAKE2b-256 of the 16 bytes; used_key: digest of the public key that it
 *                gave `chain` to; chain is '' again when the token has ended */
static const char schema_12[] =
    "CREATE TABLE IF NOT EXISTS identities(role TEXT NOT NULL, id TEXT NOT NULL,"
    " state TEXT NOT NULL, origin TEXT NOT NULL, name TEXT NOT NULL DEFAULT '',"
    " added_by TEXT NOT NULL DEFAULT '', added_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL,"
    " reason TEXT NOT NULL DEFAULT '', recorded INTEGER NOT NULL DEFAULT 0,"
    " keep_runs INTEGER NOT NULL DEFAULT 0, seen_ms INTEGER NOT NULL DEFAULT 0,"
    " address TEXT NOT NULL DEFAULT '', software TEXT NOT NULL DEFAULT '',"
    " ends_s INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(role, id)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS certificates(serial TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL,"
    " id TEXT NOT NULL, key BLOB NOT NULL, begins_s INTEGER NOT NULL, ends_s INTEGER NOT NULL,"
    " how TEXT NOT NULL, issued_ms INTEGER NOT NULL, revoked_ms INTEGER NOT NULL DEFAULT 0,"
    " reason TEXT NOT NULL DEFAULT '') WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS certificates_of ON certificates(role, id, issued_ms);"
    "CREATE INDEX IF NOT EXISTS certificates_revoked ON certificates(serial) WHERE revoked_ms>0;"
    "CREATE TABLE IF NOT EXISTS tokens(number INTEGER PRIMARY KEY, secret BLOB NOT NULL UNIQUE,"
    " role TEXT NOT NULL, id TEXT NOT NULL, server TEXT NOT NULL, made_by TEXT NOT NULL,"
    " made_ms INTEGER NOT NULL, ends_ms INTEGER NOT NULL, revoked_ms INTEGER NOT NULL DEFAULT 0,"
    " used_ms INTEGER NOT NULL DEFAULT 0, used_from TEXT NOT NULL DEFAULT '', used_key BLOB,"
    " serial TEXT NOT NULL DEFAULT '', chain TEXT NOT NULL DEFAULT '');"
    "CREATE INDEX IF NOT EXISTS tokens_of ON tokens(role, id);"
    "PRAGMA user_version = 12;";

static const char *const schemas[STORE_VERSION] = {schema,   schema_2,  schema_3,  schema_4,
                                                   schema_5, schema_6,  schema_7,  schema_8,
                                                   schema_9, schema_10, schema_11, schema_12};

/* A new database beside blobs means that the right one is missing. */
static err refuse_strange_blobs(const struct store *store)
{
    bool any = false;
    TRY(blob_any(&any, store->dir));
    if (!any) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s is new or empty, but %s/blobs has files: restore the database that belongs "
                    "to them, or use another folder",
                    store->db.path, store->dir);
}

/* The database as it was before an upgrade, because the older fedlorad cannot read the new tables.
 * A copy that a crash has interrupted has another name. Of a server's database the operator has a
 * dump (docs/postgresql.md). */
static err keep_copy(struct store *store, int64_t version)
{
    char path[LIMIT_PATH_BYTES + 32], part[sizeof path + 8];
    if (db_is_server(store->db.path)) return ERR_NONE;
    snprintf(path, sizeof path, "%s.v%d", store->db.path, (int)version);
    snprintf(part, sizeof part, "%s.part", path);
    if (file_disk.unlink(part) != 0 && errno != ENOENT) return err_sys(errno, "%s", part);
    err e = db_copy(&store->db, part);
    if (!err_is(e) && file_disk.rename(part, path) != 0) e = err_sys(errno, "%s", path);
    if (!err_is(e)) e = file_sync_dir(store->dir);
    return err_is(e) ? err_in(e, "the copy of the database before its upgrade") : e;
}

/* Names the newest copy that this version can read. */
static err newer(const struct store *store, int64_t version)
{
    char path[LIMIT_PATH_BYTES + 32] = "", advice[LIMIT_PATH_BYTES + 160];
    for (int v = STORE_VERSION; v > 0; v--) {
        snprintf(path, sizeof path, "%s.v%d", store->db.path, v);
        if (file_exists(path)) break;
        *path = 0;
    }
    snprintf(advice, sizeof advice,
             *path ? "put %.300s, the copy from before the upgrade, in its place"
                   : "restore a backup from before the upgrade%.0s",
             path);
    return err_make(ERR_INPUT,
                    "%.300s: made by a newer fedlorad (version %d, this one knows %d): start the "
                    "newer one, or %s (docs/operating.md, \"Downgrade\")",
                    store->db.path, (int)version, STORE_VERSION, advice);
}

/* All missing versions in one transaction: a crash leaves the old version. */
err store_schema_make(struct db *db, int64_t from, int64_t to)
{
    REQUIRE(to <= STORE_VERSION);
    TRY(db_begin(db));
    err e = ERR_NONE;
    for (; from < to && !err_is(e); from++)
        e = db_script(db, schemas[from]);
    return db_end(db, e);
}

/* A newer database is refused, because this version would not keep its rows consistent. */
err store_schema(struct store *store)
{
    struct db *db = &store->db;
    int64_t version = 0;
    TRY(db_version(&version, db));
    if (version > STORE_VERSION) return newer(store, version);
    if (version == STORE_VERSION) return ERR_NONE;
    TRY(version ? keep_copy(store, version) : refuse_strange_blobs(store));
    err e = store_schema_make(db, version, STORE_VERSION);
    if (!err_is(e)) store->migrated_from = version;
    return e;
}

/* The tables are not changed, because the service that runs on them may be an older one. */
err store_open_beside(struct store *out, const struct store_place *place)
{
    struct store store = {0};
    const char *dir = place->dir;
    char path[LIMIT_PATH_BYTES];
    int64_t version = 0;
    TRY(store_place_database(path, sizeof path, place));
    if (strlen(dir) + STORE_PATH_ROOM >= sizeof store.dir ||
        (!db_is_server(path) && !file_exists(path)))
        return err_make(ERR_INPUT, "%.300s: expected the folder of a store (store.path)", dir);
    memcpy(store.dir, dir, strlen(dir) + 1);
    TRY(db_open(&store.db, path, DB_FLUSHED));
    err e = db_version(&version, &store.db);
    if (!err_is(e) && version != STORE_VERSION)
        e = err_make(
            ERR_INPUT,
            "%.300s has version %d, this fedlorad uses %d: use the fedlorad of the running "
            "service, or start this one first, which upgrades it",
            store.db.path, (int)version, STORE_VERSION);
    if (err_is(e))
        store_close(&store);
    else
        *out = store;
    return e;
}
