#include "coordinator/store/db.h"

#include "base/file.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

/* Longer than the longest transaction of another thread on a slow disk. */
enum { DB_BUSY_MS = 20000, DB_GIVE_ROOM_MS = 100 };

/* The kind tells the caller who acts next: a lock passes by itself, everything else needs the
 * operator. The errno makes a full disk recognizable to callers that free space. */
static err db_error(const struct db *db, int code)
{
    const char *text = db->handle ? sqlite3_errmsg(db->handle) : sqlite3_errstr(code);
    int primary = code & 0xff;
    if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED)
        return err_make(ERR_LIMIT, "%s: %s", db->path, text);
    err e = err_make(ERR_MACHINE, "%s: %s", db->path, text);
    int sys = db->handle ? sqlite3_system_errno(db->handle) : 0;
    bool full =
        primary == SQLITE_FULL || (primary == SQLITE_IOERR && (sys == ENOSPC || sys == EDQUOT));
    bool damaged = primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB;
    e.sys = full ? ENOSPC : damaged ? EUCLEAN : primary == SQLITE_NOMEM ? ENOMEM : EIO;
    return e;
}

/* WAL lets the other threads read while one writes. synchronous=FULL flushes at every commit,
 * because a receipt is sent for it. foreign_keys is off by default, and is set for each connection.
 * NOMUTEX, because only one thread uses a connection. */
err db_open(struct db *out, const char *path, enum db_care care)
{
    struct db db = {0};
    if (strlen(path) >= sizeof db.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    memcpy(db.path, path, strlen(path) + 1);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int code = sqlite3_open_v2(path, &db.handle, flags, NULL);
    err e = code == SQLITE_OK ? ERR_NONE : db_error(&db, code);
    if (!err_is(e)) {
        sqlite3_busy_timeout(db.handle, DB_BUSY_MS);
        e = db_script(&db, "PRAGMA journal_mode=WAL; PRAGMA foreign_keys=ON;"
                           "PRAGMA cache_size=-2000;");
        if (!err_is(e))
            e = db_script(&db, care == DB_FLUSHED ? "PRAGMA synchronous=FULL;"
                                                  : "PRAGMA synchronous=OFF;");
    }
    if (err_is(e))
        db_close(&db);
    else
        *out = db;
    return e;
}

/* "immutable" keeps SQLite from making files beside the database, which it otherwise does for one
 * in WAL mode, and which fails in a folder that is mounted read-only. In a URI some characters of a
 * path are written as their codes. */
err db_open_still(struct db *out, const char *path)
{
    struct db db = {0};
    char uri[3 * LIMIT_PATH_BYTES + 32];
    size_t n = (size_t)snprintf(uri, sizeof uri, "file:");
    if (strlen(path) >= sizeof db.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    memcpy(db.path, path, strlen(path) + 1);
    for (const char *p = path; *p; p++)
        n += (size_t)snprintf(uri + n, sizeof uri - n, strchr("?#%", *p) ? "%%%02X" : "%c", *p);
    snprintf(uri + n, sizeof uri - n, "?immutable=1");
    int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX;
    int code = sqlite3_open_v2(uri, &db.handle, flags, NULL);
    if (code != SQLITE_OK) {
        err e = db_error(&db, code);
        db_close(&db);
        return e;
    }
    *out = db;
    return ERR_NONE;
}

void db_close(struct db *db)
{
    for (int i = 0; i < DB_KEPT; i++)
        sqlite3_finalize(db->kept[i]);
    sqlite3_close(db->handle);
    *db = (struct db){0};
}

err db_script(struct db *db, const char *sql)
{
    int code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? ERR_NONE : db_error(db, code);
}

/* SQLITE_TRANSIENT makes SQLite copy the value, because the caller's memory may change before the
 * statement runs. Variadic arguments are not converted, so callers must pass exactly the types of
 * db.h: an int for the letter i may be read with wrong upper bits. */
static int bind_one(sqlite3_stmt *statement, int at, char letter, va_list *args)
{
    const struct digest *digest;
    const void *blob;
    switch (letter) {
    case 'i':
        return sqlite3_bind_int64(statement, at, va_arg(*args, int64_t));
    case 'd':
        return sqlite3_bind_double(statement, at, va_arg(*args, double));
    case 't':
        return sqlite3_bind_text(statement, at, va_arg(*args, const char *), -1, SQLITE_TRANSIENT);
    case 'h':
        digest = va_arg(*args, const struct digest *);
        return sqlite3_bind_blob(statement, at, digest, digest ? DIGEST_BYTES : 0,
                                 SQLITE_TRANSIENT);
    default:
        REQUIRE(letter == 'b');
        blob = va_arg(*args, const void *);
        return sqlite3_bind_blob64(statement, at, blob, va_arg(*args, size_t), SQLITE_TRANSIENT);
    }
}

static err query_bind(struct db_query *q, const char *format, va_list *args)
{
    int code = SQLITE_OK;
    for (int i = 0; code == SQLITE_OK && format[i]; i++)
        code = bind_one(q->statement, i + 1, format[i], args);
    return code == SQLITE_OK ? ERR_NONE : db_error(q->db, code);
}

static err query_prepare(struct db_query *out, struct db *db, const char *sql, const char *format,
                         va_list *args)
{
    struct db_query q = {.db = db};
    int code = sqlite3_prepare_v2(db->handle, sql, -1, &q.statement, NULL);
    err e = code == SQLITE_OK ? query_bind(&q, format, args) : db_error(db, code);
    if (err_is(e))
        db_query_close(&q);
    else
        *out = q;
    return e;
}

err db_query_open(struct db_query *out, struct db *db, const char *sql, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    err e = query_prepare(out, db, sql, format, &args);
    va_end(args);
    return e;
}

err db_query_next(bool *row, struct db_query *q)
{
    int code = sqlite3_step(q->statement);
    if (code != SQLITE_ROW && code != SQLITE_DONE) return db_error(q->db, code);
    *row = code == SQLITE_ROW;
    return ERR_NONE;
}

void db_query_close(struct db_query *q)
{
    sqlite3_finalize(q->statement);
    *q = (struct db_query){0};
}

static err keep_statement(sqlite3_stmt **out, struct db *db, const char *sql)
{
    sqlite3_stmt *made = NULL;
    for (int i = 0; i < DB_KEPT; i++)
        if (db->kept[i] && !strcmp(sqlite3_sql(db->kept[i]), sql)) {
            *out = db->kept[i];
            return ERR_NONE;
        }
    int code = sqlite3_prepare_v2(db->handle, sql, -1, &made, NULL);
    if (code != SQLITE_OK) return db_error(db, code);
    sqlite3_finalize(db->kept[db->next]);
    *out = db->kept[db->next] = made;
    db->next = (db->next + 1) % DB_KEPT;
    return ERR_NONE;
}

/* One step is enough, because these statements return no rows. */
err db_run(struct db *db, const char *sql, const char *format, ...)
{
    struct db_query q = {.db = db};
    bool row;
    va_list args;
    TRY(keep_statement(&q.statement, db, sql));
    va_start(args, format);
    err e = query_bind(&q, format, &args);
    va_end(args);
    if (!err_is(e)) e = db_query_next(&row, &q);
    sqlite3_reset(q.statement);
    sqlite3_clear_bindings(q.statement);
    return e;
}

err db_number(int64_t *out, struct db *db, const char *sql, const char *format, ...)
{
    struct db_query q = {0};
    bool row = false;
    va_list args;
    va_start(args, format);
    err e = query_prepare(&q, db, sql, format, &args);
    va_end(args);
    if (!err_is(e)) e = db_query_next(&row, &q);
    if (!err_is(e) && row) *out = db_query_int(&q, 0);
    db_query_close(&q);
    return e;
}

/* IMMEDIATE takes the write lock now, because a transaction that first reads and then writes could
 * otherwise fail in the middle. */
err db_begin(struct db *db)
{
    return db_run(db, "BEGIN IMMEDIATE", "");
}

/* VACUUM INTO reads one snapshot, so it is not disturbed by commits and does not hold them up. It
 * does not flush the new file. */
err db_copy(struct db *db, const char *path)
{
    if (file_exists(path)) return err_make(ERR_INPUT, "%s: exists already", path);
    err e = db_run(db, "VACUUM INTO ?", "t", path);
    if (!err_is(e)) e = file_flush(path);
    if (err_is(e)) file_disk.unlink(path);
    return e;
}

err db_check(char problem[DB_PROBLEM_BYTES], struct db *db)
{
    struct db_query q = {0};
    bool row = false;
    *problem = 0;
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

/* Only a short wait for the other threads, because this is tried again. */
void db_give_room(struct db *db)
{
    sqlite3_busy_timeout(db->handle, DB_GIVE_ROOM_MS);
    sqlite3_wal_checkpoint_v2(db->handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_busy_timeout(db->handle, DB_BUSY_MS);
}

/* The result of the rollback is ignored, because the caller needs the first error. */
err db_end(struct db *db, err e)
{
    if (!err_is(e)) e = db_run(db, "COMMIT", "");
    /* A failed commit may leave the transaction open; other errors have rolled it back. */
    if (err_is(e) && !sqlite3_get_autocommit(db->handle))
        sqlite3_exec(db->handle, "ROLLBACK", NULL, NULL, NULL);
    /* On a full disk the log of committed pages cannot grow, and it is emptied only after further
     * commits. Emptying it now gives its room back. */
    if (e.sys == ENOSPC) db_give_room(db);
    return e;
}

int64_t db_query_int(const struct db_query *q, int column)
{
    return sqlite3_column_int64(q->statement, column);
}

double db_query_num(const struct db_query *q, int column)
{
    return sqlite3_column_double(q->statement, column);
}

const char *db_query_text(const struct db_query *q, int column)
{
    const unsigned char *text = sqlite3_column_text(q->statement, column);
    return text ? (const char *)text : "";
}

const void *db_query_blob(size_t *size, const struct db_query *q, int column)
{
    const void *data = sqlite3_column_blob(q->statement, column);
    *size = (size_t)sqlite3_column_bytes(q->statement, column);
    return data;
}

bool db_query_digest(struct digest *out, const struct db_query *q, int column)
{
    size_t size;
    const void *data = db_query_blob(&size, q, column);
    if (size != DIGEST_BYTES) return false;
    memcpy(out->byte, data, DIGEST_BYTES);
    return true;
}
