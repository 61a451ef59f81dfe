/* PostgreSQL behind db.h, by libpq.
 *
 * Writers take turns by a lock of the server that ends with the transaction, so that transactions
 * see what they would see in SQLite. The coordinator's session also holds a second lock, the claim,
 * and writes a random token into fedlora_store; each writing transaction of this process compares
 * it. So a coordinator that was cut off, and whose place another one has taken, cannot write.
 *
 * If the connection is lost while a transaction commits, the server is asked afterwards whether it
 * did. */
#include "base/text.h"
#include "coordinator/store/db_postgres_sql.h"
#include "coordinator/store/pg_session.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEP_US = 20000, SETTLE_MS = 20000, COLUMNS = 24 };

struct pg_rows {
    PGresult *result;
    int row;
    void *blob[COLUMNS]; /* of this row, decoded */
};

/* ---------------------------------------------------------------- opening */

/* The one row of the store's own table: the version of the others, and the claim. */
static err make_store_table(struct db *db)
{
    return pg_session_command(
        db, "BEGIN; SELECT " PG_SESSION_LOCK(
                "advisory_xact_lock",
                "write") ";"
                         "CREATE TABLE IF NOT EXISTS fedlora_store("
                         "version BIGINT NOT NULL, claim TEXT NOT NULL);"
                         "INSERT INTO fedlora_store SELECT 0, '' WHERE NOT EXISTS("
                         "SELECT 1 FROM fedlora_store); COMMIT");
}

static err check_schema(bool *has_table, struct db *db)
{
    PGresult *result = NULL;
    TRY(pg_session_simple(&result, db, "SELECT current_schema(), to_regclass('fedlora_store')"));
    bool schema = !PQgetisnull(result, 0, 0);
    *has_table = !PQgetisnull(result, 0, 1);
    PQclear(result);
    if (schema) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: the schema of its search_path does not exist; make it with "
                    "CREATE SCHEMA",
                    db->path);
}

/* A password in the string would be shown with every error, so it is refused. */
static err refuse_password(const char *where)
{
    char *why = NULL;
    bool has = false;
    PQconninfoOption *all = PQconninfoParse(where, &why);
    if (!all) {
        err e =
            err_make(ERR_INPUT, "the connection string of the database: %.200s", why ? why : "");
        PQfreemem(why);
        return e;
    }
    for (const PQconninfoOption *o = all; o->keyword; o++)
        has |= !strcmp(o->keyword, "password") && o->val;
    PQconninfoFree(all);
    if (!has) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "the connection string of the database has a password; write it into "
                    "a file instead and name that with ?passfile=FILE");
}

static err pg_open(struct db *out, const char *where)
{
    bool has_table = false;
    TRY(refuse_password(where));
    struct pg_session *pg = calloc(1, sizeof *pg);
    if (!pg) return err_sys(ENOMEM, "a database connection");
    out->connection = pg;
    TRY(pg_session_open(out));
    TRY(check_schema(&has_table, out));
    if (!has_table) {
        err e = make_store_table(out);
        if (err_is(e)) (void)pg_session_command(out, "ROLLBACK");
        TRY(e);
    }
    return ERR_NONE;
}

static void pg_close(struct db *db)
{
    struct pg_session *pg = db->connection;
    if (pg && pg->claims) {
        pg_session_claimed(db, NULL);
        /* The server notices the end of a session a moment later. */
        if (!pg_session_broken(db))
            (void)pg_session_command(db, "SELECT " PG_SESSION_LOCK("advisory_unlock", "claim"));
    }
    if (pg) PQfinish(pg->conn);
    free(pg);
}

/* ---------------------------------------------------------------- transactions */

static err rollback(struct db *db, err e)
{
    struct pg_session *pg = db->connection;
    if (pg->conn) (void)pg_session_command(db, "ROLLBACK");
    pg->in_transaction = false;
    return e;
}

/* The claim is read after the lock was waited for, by a statement of its own, because a statement
 * sees the database as it was when it began. */
static err pg_begin(struct db *db)
{
    struct pg_session *pg = db->connection;
    PGresult *result = NULL;
    REQUIRE(!pg->in_transaction);
    TRY(pg_session_ready(db));
    err e = pg_session_simple(
        &result, db,
        "BEGIN; SELECT " PG_SESSION_LOCK(
            "advisory_xact_lock",
            "write") ";"
                     "SELECT pg_current_xact_id()::text, claim FROM fedlora_store");
    if (err_is(e)) return rollback(db, e);
    bool ours = PQntuples(result) == 1 && pg_session_owns(db, PQgetvalue(result, 0, 1));
    if (ours) snprintf(pg->xid, sizeof pg->xid, "%s", PQgetvalue(result, 0, 0));
    PQclear(result);
    pg->in_transaction = ours;
    return ours ? ERR_NONE : rollback(db, pg_session_taken_over(db));
}

/* The connection broke while the server was committing. */
static err settle(struct db *db, err cause)
{
    struct pg_session *pg = db->connection;
    const char *digits = pg->xid;
    char sql[80];
    snprintf(sql, sizeof sql, "SELECT pg_xact_status('%.20s'::xid8)", digits);
    for (uint64_t until = text_now_ms() + SETTLE_MS; text_now_ms() < until; usleep(STEP_US)) {
        PGresult *result = NULL;
        if (err_is(pg_session_ready(db)) || err_is(pg_session_simple(&result, db, sql))) continue;
        const char *status = PQgetvalue(result, 0, 0);
        bool committed = !strcmp(status, "committed"), open = !strcmp(status, "in progress");
        PQclear(result);
        if (open) continue;
        return committed ? ERR_NONE : cause;
    }
    return err_make(ERR_MACHINE,
                    "%s: the connection was lost during a commit, and the server does "
                    "not say whether it was done",
                    db->path);
}

static err pg_end(struct db *db, err e)
{
    struct pg_session *pg = db->connection;
    if (!err_is(e) && db_before_commit) e = db_before_commit();
    if (err_is(e)) return rollback(db, e);
    PGresult *result = NULL;
    e = pg_session_simple(&result, db, "COMMIT");
    bool broken = pg_session_broken(db);
    /* A transaction in which a statement had failed is rolled back by COMMIT. */
    if (!err_is(e) && strcmp(PQcmdStatus(result), "COMMIT") != 0)
        e = err_make(ERR_MACHINE, "%s: the transaction was rolled back", db->path);
    if (!err_is(e)) PQclear(result);
    pg->in_transaction = false;
    return err_is(e) && broken ? settle(db, e) : e;
}

static err run_within(struct db *db, const struct db_statement *s)
{
    PGresult *result = NULL;
    TRY(pg_session_run(&result, db, s));
    db->changes = strtoll(PQcmdTuples(result), NULL, 10);
    PQclear(result);
    return ERR_NONE;
}

static err pg_run(struct db *db, const struct db_statement *s)
{
    const struct pg_session *pg = db->connection;
    if (pg->in_transaction) return run_within(db, s);
    TRY(pg_begin(db));
    return pg_end(db, run_within(db, s));
}

static err pg_script(struct db *db, const char *sql)
{
    const struct pg_session *pg = db->connection;
    struct bytes translated = {.max = PG_SQL_BYTES_MAX};
    TRY(pg_session_ready(db));
    bool alone = !pg->in_transaction;
    err e = db_postgres_sql(&translated, sql);
    if (!err_is(e) && alone) e = pg_begin(db);
    if (!err_is(e)) {
        e = pg_session_command(db, (const char *)translated.data);
        if (alone) e = pg_end(db, e);
    }
    bytes_close(&translated);
    return e;
}

/* ---------------------------------------------------------------- rows */

static err pg_query(struct db_query *out, const struct db_statement *s)
{
    struct pg_rows *rows = calloc(1, sizeof *rows);
    if (!rows) return err_sys(ENOMEM, "a query");
    err e = pg_session_ready(out->db);
    if (!err_is(e)) e = pg_session_run(&rows->result, out->db, s);
    if (err_is(e)) {
        free(rows);
        return e;
    }
    REQUIRE(PQnfields(rows->result) <= COLUMNS);
    rows->row = -1;
    out->rows = rows;
    return ERR_NONE;
}

static void forget_blobs(struct pg_rows *rows)
{
    for (int i = 0; i < COLUMNS; i++) {
        PQfreemem(rows->blob[i]);
        rows->blob[i] = NULL;
    }
}

static err pg_next(bool *row, struct db_query *q)
{
    struct pg_rows *rows = q->rows;
    forget_blobs(rows);
    *row = ++rows->row < PQntuples(rows->result);
    return ERR_NONE;
}

static void pg_close_query(struct db_query *q)
{
    struct pg_rows *rows = q->rows;
    forget_blobs(rows);
    PQclear(rows->result);
    free(rows);
}

static const char *pg_text(const struct db_query *q, int column)
{
    const struct pg_rows *rows = q->rows;
    return PQgetvalue(rows->result, rows->row, column); /* "" for NULL */
}

static int64_t pg_number(const struct db_query *q, int column)
{
    const char *text = pg_text(q, column);
    return *text == 't' ? 1 : strtoll(text, NULL, 10);
}

static double pg_real(const struct db_query *q, int column)
{
    return strtod(pg_text(q, column), NULL);
}

static const void *pg_blob(size_t *size, const struct db_query *q, int column)
{
    struct pg_rows *rows = q->rows;
    *size = 0;
    if (PQgetisnull(rows->result, rows->row, column)) return NULL;
    const char *text = pg_text(q, column);
    if (PQftype(rows->result, column) != PG_BYTEA) {
        *size = strlen(text);
        return text;
    }
    PQfreemem(rows->blob[column]);
    rows->blob[column] = PQunescapeBytea((const unsigned char *)text, size);
    return rows->blob[column];
}

/* ---------------------------------------------------------------- the rest */

static err pg_version(int64_t *out, struct db *db)
{
    return db_number(out, db, "SELECT version FROM fedlora_store", "");
}

static err write_token(struct db *db, const char *token)
{
    TRY(pg_session_command(db, "BEGIN; SELECT " PG_SESSION_LOCK("advisory_xact_lock", "write")));
    const struct db_value value = {.letter = 't', .data = token, .size = strlen(token)};
    PGresult *result = NULL;
    err e = pg_session_run(&result, db,
                           &(struct db_statement){"UPDATE fedlora_store SET claim=?", &value, 1});
    if (err_is(e)) return rollback(db, e);
    PQclear(result);
    return pg_session_command(db, "COMMIT");
}

static err pg_claim(struct db *db)
{
    struct pg_session *pg = db->connection;
    uint8_t random[(PG_TOKEN_BYTES - 1) / 2];
    char token[PG_TOKEN_BYTES];
    bool got = false;
    uint64_t until = text_now_ms() + DB_CLAIM_MS;
    REQUIRE(sodium_init() >= 0);
    TRY(pg_session_ready(db));
    for (;;) {
        TRY(pg_session_try_claim(&got, db));
        if (got || text_now_ms() >= until) break;
        usleep(STEP_US);
    }
    if (!got)
        return err_make(ERR_STATE, "%s: another coordinator is using this database", db->path);
    randombytes_buf(random, sizeof random);
    sodium_bin2hex(token, sizeof token, random, sizeof random);
    TRY(write_token(db, token));
    pg->claims = true;
    pg_session_claimed(db, token);
    return ERR_NONE;
}

static void pg_give_room(struct db *db)
{
    (void)db;
}

static err pg_copy(struct db *db, const char *path)
{
    return err_make(ERR_INPUT, "%s: a database on a server cannot be copied to %s: use pg_dump",
                    db->path, path);
}

static err pg_quick_check(bool *whole, struct db *db, uint64_t until_ms)
{
    (void)until_ms;
    TRY(pg_session_ready(db));
    *whole = true;
    return ERR_NONE;
}

const struct db_kind db_postgres = {
    .open = pg_open,
    .close = pg_close,
    .script = pg_script,
    .run = pg_run,
    .begin = pg_begin,
    .end = pg_end,
    .query = pg_query,
    .next = pg_next,
    .close_query = pg_close_query,
    .number = pg_number,
    .real = pg_real,
    .text = pg_text,
    .blob = pg_blob,
    .version = pg_version,
    .claim = pg_claim,
    .give_room = pg_give_room,
    .copy = pg_copy,
    .quick_check = pg_quick_check,
};
