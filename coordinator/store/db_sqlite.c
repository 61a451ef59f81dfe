/* SQLite behind db.h: WAL and synchronous=FULL. */
#include "coordinator/store/db_sqlite.h"

#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/db_kind.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longer than the longest transaction of another thread on a slow disk. */
enum { BUSY_MS = 20000, GIVE_ROOM_MS = 100, KEPT = 8 };

struct lite {
    sqlite3 *handle;
    /* The statements that run() has used last, because parsing one costs more than running it.
     * sqlite3_sql() is their text. */
    sqlite3_stmt *kept[KEPT];
    unsigned next; /* of kept: the place of the next new one */
};

static sqlite3 *handle_of(const struct db *db)
{
    return ((struct lite *)db->connection)->handle;
}

sqlite3 *db_sqlite_handle(const struct db *db)
{
    return db->kind == &db_sqlite ? handle_of(db) : NULL;
}

/* The kind tells the caller who acts next: a lock passes by itself, everything else needs the
 * operator. The errno makes a full disk recognizable to callers that free space. */
static err error_of(const struct db *db, int code)
{
    sqlite3 *handle = handle_of(db);
    const char *text = handle ? sqlite3_errmsg(handle) : sqlite3_errstr(code);
    int primary = code & 0xff;
    if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED)
        return err_make(ERR_LIMIT, "%s: %s", db->path, text);
    err e = err_make(ERR_MACHINE, "%s: %s", db->path, text);
    int sys = handle ? sqlite3_system_errno(handle) : 0;
    bool full =
        primary == SQLITE_FULL || (primary == SQLITE_IOERR && (sys == ENOSPC || sys == EDQUOT));
    bool damaged = primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB;
    e.sys = full ? ENOSPC : damaged ? EUCLEAN : primary == SQLITE_NOMEM ? ENOMEM : EIO;
    return e;
}

static err lite_script(struct db *db, const char *sql)
{
    int code = sqlite3_exec(handle_of(db), sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? ERR_NONE : error_of(db, code);
}

/* For SQLite: non-zero rolls back. The error's text is lost, as it is with a real disk. */
static int before_commit(void *unused)
{
    (void)unused;
    return db_before_commit && err_is(db_before_commit());
}

/* WAL lets the other threads read while one writes. synchronous=FULL flushes at every commit,
 * because a receipt is sent for it. foreign_keys is off by default, and is set for each connection.
 * NOMUTEX, because only one thread uses a connection. */
static err lite_open(struct db *out, const char *where)
{
    struct lite *lite = calloc(1, sizeof *lite);
    if (!lite) return err_sys(ENOMEM, "a database connection");
    out->connection = lite;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int code = sqlite3_open_v2(where, &lite->handle, flags, NULL);
    if (code != SQLITE_OK) return error_of(out, code);
    sqlite3_busy_timeout(lite->handle, BUSY_MS);
    sqlite3_commit_hook(lite->handle, before_commit, NULL);
    TRY(lite_script(out, "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;"
                         "PRAGMA foreign_keys=ON; PRAGMA cache_size=-2000;"));
    return lite_script(out, out->care == DB_FLUSHED ? "PRAGMA synchronous=FULL;"
                                                    : "PRAGMA synchronous=OFF;");
}

/* "immutable" keeps SQLite from making files beside the database, which it otherwise does for one
 * in WAL mode, and which fails in a folder that is mounted read-only. In a URI some characters of a
 * path are written as their codes. */
err db_open_still(struct db *out, const char *path)
{
    struct db db = {.kind = &db_sqlite};
    struct lite *lite = calloc(1, sizeof *lite);
    char uri[3 * LIMIT_PATH_BYTES + 32];
    size_t n = (size_t)snprintf(uri, sizeof uri, "file:");
    if (!lite) return err_sys(ENOMEM, "a database connection");
    db.connection = lite;
    err e = strlen(path) < sizeof db.path
                ? ERR_NONE
                : err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    if (!err_is(e)) {
        memcpy(db.path, path, strlen(path) + 1);
        for (const char *p = path; *p; p++)
            n += (size_t)snprintf(uri + n, sizeof uri - n, strchr("?#%", *p) ? "%%%02X" : "%c", *p);
        snprintf(uri + n, sizeof uri - n, "?immutable=1");
        int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX;
        int code = sqlite3_open_v2(uri, &lite->handle, flags, NULL);
        if (code != SQLITE_OK) e = error_of(&db, code);
    }
    if (err_is(e))
        db_close(&db);
    else
        *out = db;
    return e;
}

static void lite_close(struct db *db)
{
    struct lite *lite = db->connection;
    for (int i = 0; lite && i < KEPT; i++)
        sqlite3_finalize(lite->kept[i]);
    if (lite) sqlite3_close(lite->handle);
    free(lite);
}

/* SQLITE_TRANSIENT makes SQLite copy the value, because the caller's memory may change before the
 * statement runs. */
static int bind_one(sqlite3_stmt *statement, int at, const struct db_value *v)
{
    if (v->letter == 'i') return sqlite3_bind_int64(statement, at, v->number);
    if (v->letter == 'd') return sqlite3_bind_double(statement, at, v->real);
    if (v->letter == 't') return sqlite3_bind_text(statement, at, v->data, -1, SQLITE_TRANSIENT);
    return sqlite3_bind_blob64(statement, at, v->data, v->size, SQLITE_TRANSIENT);
}

static err bind(const struct db *db, sqlite3_stmt *statement, const struct db_statement *s)
{
    int code = SQLITE_OK;
    for (size_t i = 0; code == SQLITE_OK && i < s->values; i++)
        code = bind_one(statement, (int)i + 1, &s->value[i]);
    return code == SQLITE_OK ? ERR_NONE : error_of(db, code);
}

static err lite_query(struct db_query *out, const struct db_statement *s)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(handle_of(out->db), s->sql, -1, &statement, NULL);
    err e = code == SQLITE_OK ? bind(out->db, statement, s) : error_of(out->db, code);
    if (err_is(e))
        sqlite3_finalize(statement);
    else
        out->rows = statement;
    return e;
}

static err step(bool *row, const struct db *db, sqlite3_stmt *statement)
{
    int code = sqlite3_step(statement);
    if (code != SQLITE_ROW && code != SQLITE_DONE) return error_of(db, code);
    *row = code == SQLITE_ROW;
    return ERR_NONE;
}

static err lite_next(bool *row, struct db_query *q)
{
    return step(row, q->db, q->rows);
}

static void lite_close_query(struct db_query *q)
{
    sqlite3_finalize(q->rows);
}

static err keep_statement(sqlite3_stmt **out, struct db *db, const char *sql)
{
    struct lite *lite = db->connection;
    sqlite3_stmt *made = NULL;
    for (int i = 0; i < KEPT; i++)
        if (lite->kept[i] && !strcmp(sqlite3_sql(lite->kept[i]), sql)) {
            *out = lite->kept[i];
            return ERR_NONE;
        }
    int code = sqlite3_prepare_v2(lite->handle, sql, -1, &made, NULL);
    if (code != SQLITE_OK) return error_of(db, code);
    sqlite3_finalize(lite->kept[lite->next]);
    *out = lite->kept[lite->next] = made;
    lite->next = (lite->next + 1) % KEPT;
    return ERR_NONE;
}

/* One step is enough, because these statements return no rows. */
static err lite_run(struct db *db, const struct db_statement *s)
{
    sqlite3_stmt *statement = NULL;
    bool row;
    TRY(keep_statement(&statement, db, s->sql));
    err e = bind(db, statement, s);
    if (!err_is(e)) e = step(&row, db, statement);
    if (!err_is(e)) db->changes = sqlite3_changes64(handle_of(db));
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return e;
}

/* IMMEDIATE takes the write lock now, because a transaction that first reads and then writes could
 * otherwise fail in the middle. */
static err lite_begin(struct db *db)
{
    return lite_run(db, &(struct db_statement){.sql = "BEGIN IMMEDIATE"});
}

/* Only a short wait for the other threads, because this is tried again. */
static void lite_give_room(struct db *db)
{
    sqlite3 *handle = handle_of(db);
    sqlite3_busy_timeout(handle, GIVE_ROOM_MS);
    sqlite3_wal_checkpoint_v2(handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_busy_timeout(handle, BUSY_MS);
}

static err lite_shrink(bool *more, struct db *db, int pages)
{
    char sql[64];
    int64_t was = 0, left = 0;
    TRY(db_number(&was, db, "PRAGMA freelist_count", ""));
    snprintf(sql, sizeof sql, "PRAGMA incremental_vacuum(%d)", pages);
    if (was) TRY(lite_script(db, sql));
    TRY(db_number(&left, db, "PRAGMA freelist_count", ""));
    *more = left > 0 && left < was; /* equal: the file was made without this */
    return ERR_NONE;
}

/* VACUUM is the only way to change this in a database that has tables. */
static err lite_make_shrinkable(struct db *db)
{
    enum { INCREMENTAL = 2 };
    int64_t mode = 0, pages = 0, bytes = 1;
    TRY(db_number(&mode, db, "PRAGMA auto_vacuum", ""));
    TRY(db_number(&pages, db, "PRAGMA page_count", ""));
    TRY(db_number(&bytes, db, "PRAGMA page_size", ""));
    if (mode == INCREMENTAL || pages > DB_REWRITE_BYTES / bytes) return ERR_NONE;
    return lite_script(db, "PRAGMA auto_vacuum=INCREMENTAL; VACUUM");
}

/* The result of the rollback is ignored, because the caller needs the first error. */
static err lite_end(struct db *db, err e)
{
    if (!err_is(e)) e = lite_run(db, &(struct db_statement){.sql = "COMMIT"});
    /* A failed commit may leave the transaction open; other errors have rolled it back. */
    if (err_is(e) && !sqlite3_get_autocommit(handle_of(db)))
        sqlite3_exec(handle_of(db), "ROLLBACK", NULL, NULL, NULL);
    /* On a full disk the log of committed pages cannot grow, and it is emptied only after further
     * commits. Emptying it now gives its room back. */
    if (e.sys == ENOSPC) lite_give_room(db);
    return e;
}

static int64_t lite_number(const struct db_query *q, int column)
{
    return sqlite3_column_int64(q->rows, column);
}

static double lite_real(const struct db_query *q, int column)
{
    return sqlite3_column_double(q->rows, column);
}

static const char *lite_text(const struct db_query *q, int column)
{
    const unsigned char *text = sqlite3_column_text(q->rows, column);
    return text ? (const char *)text : "";
}

static const void *lite_blob(size_t *size, const struct db_query *q, int column)
{
    const void *data = sqlite3_column_blob(q->rows, column);
    *size = (size_t)sqlite3_column_bytes(q->rows, column);
    return data;
}

static err lite_version(int64_t *out, struct db *db)
{
    return db_number(out, db, "PRAGMA user_version", "");
}

/* VACUUM INTO reads one snapshot, so it is not disturbed by commits and does not hold them up. It
 * does not flush the new file. */
static err lite_copy(struct db *db, const char *path)
{
    if (file_exists(path)) return err_make(ERR_INPUT, "%s: exists already", path);
    err e = db_run(db, "VACUUM INTO ?", "t", path);
    if (!err_is(e)) e = file_flush(path);
    if (err_is(e)) file_disk.unlink(path);
    return e;
}

static err lite_check(char *problem, struct db *db)
{
    struct db_query q = {0};
    bool row = false;
    err e = db_query_open(&q, db, "PRAGMA integrity_check(1)", "");
    if (!err_is(e)) e = db_query_next(&row, &q);
    if (e.sys == EUCLEAN) {
        snprintf(problem, DB_PROBLEM_BYTES, "%.*s", DB_PROBLEM_BYTES - 1, e.text);
        e = ERR_NONE;
    } else if (!err_is(e) && row && strcmp(db_query_text(&q, 0), "ok") != 0) {
        snprintf(problem, DB_PROBLEM_BYTES, "%.*s", DB_PROBLEM_BYTES - 1, db_query_text(&q, 0));
    }
    db_query_close(&q);
    return e;
}

static err lite_claim(struct db *db)
{
    (void)db;
    return ERR_NONE;
}

/* For SQLite: non-zero ends the statement. */
static int is_late(void *until_ms)
{
    return text_now_ms() > *(const uint64_t *)until_ms;
}

/* quick_check and not integrity_check, which also compares every index with its table. It reads the
 * whole file, so a large database is looked at in part only. */
static err lite_quick_check(bool *whole, struct db *db, uint64_t until_ms)
{
    struct db_query q = {0};
    bool row = false;
    sqlite3_progress_handler(handle_of(db), 100000, is_late, &until_ms);
    err e = db_query_open(&q, db, "PRAGMA quick_check(1)", "");
    if (!err_is(e)) e = db_query_next(&row, &q);
    bool late = err_is(e) && text_now_ms() > until_ms;
    if (!err_is(e) && row && strcmp(db_query_text(&q, 0), "ok") != 0) {
        e = err_make(ERR_MACHINE, "%.200s", db_query_text(&q, 0));
        e.sys = EUCLEAN;
    }
    db_query_close(&q);
    sqlite3_progress_handler(handle_of(db), 0, NULL, NULL);
    if (late && e.sys != EUCLEAN) e = ERR_NONE;
    if (!err_is(e)) *whole = !late;
    return e;
}

const struct db_kind db_sqlite = {
    .open = lite_open,
    .close = lite_close,
    .script = lite_script,
    .run = lite_run,
    .begin = lite_begin,
    .end = lite_end,
    .query = lite_query,
    .next = lite_next,
    .close_query = lite_close_query,
    .number = lite_number,
    .real = lite_real,
    .text = lite_text,
    .blob = lite_blob,
    .version = lite_version,
    .claim = lite_claim,
    .give_room = lite_give_room,
    .shrink = lite_shrink,
    .make_shrinkable = lite_make_shrinkable,
    .copy = lite_copy,
    .check = lite_check,
    .quick_check = lite_quick_check,
};
