/* Statements are sent without waiting in libpq, so that a server that does not answer ends a call
 * after ANSWER_MS. */
#include "coordinator/store/pg_session.h"

#include "base/text.h"
#include "coordinator/store/db_postgres_sql.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ANSWER_MS is longer than the server's own limit for a statement or a lock (`settings`), so that
 * the server's error names the reason. */
enum { ANSWER_MS = 25000, AGAIN_MS = 1000 };

/* The claim of this process. Connections of worker threads compare it, so it has a lock. */
static pthread_mutex_t claim_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char path[LIMIT_PATH_BYTES], token[PG_TOKEN_BYTES];
} claimed;
static atomic_bool taken_over;

bool db_taken_over(void)
{
    return atomic_load(&taken_over);
}

/* ---------------------------------------------------------------- errors */

static void one_line(char *out, size_t bytes, const char *text)
{
    snprintf(out, bytes, "%s", text ? text : "");
    size_t n = strlen(out);
    while (n && (out[n - 1] == '\n' || out[n - 1] == ' '))
        out[--n] = 0;
    text_tame(out);
}

static err lost(const struct db *db)
{
    const struct pg_session *pg = db->connection;
    char why[200];
    one_line(why, sizeof why, pg->conn ? PQerrorMessage(pg->conn) : "no connection");
    err e = err_make(ERR_MACHINE, "%s: %s", db->path, why);
    e.sys = EIO;
    return e;
}

/* Classes of SQLSTATE from the appendix "PostgreSQL Error Codes" of the server's manual: 40 and
 * 55P03 are locks, 57014 a statement that took too long, 53100 a full disk, XX001 and XX002 damaged
 * files. */
static err error_of(const struct db *db, const PGresult *result)
{
    const char *state = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;
    char why[300];
    if (!state) return lost(db);
    one_line(why, sizeof why, PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY));
    if (!strncmp(state, "40", 2) || !strcmp(state, "55P03") || !strcmp(state, "57014"))
        return err_make(ERR_LIMIT, "%s: %s", db->path, why);
    err e = err_make(ERR_MACHINE, "%s: %s", db->path, why);
    bool damaged = !strcmp(state, "XX001") || !strcmp(state, "XX002");
    e.sys = !strcmp(state, "53100") ? ENOSPC : damaged ? EUCLEAN : EIO;
    return e;
}

/* ---------------------------------------------------------------- statements */

/* Waits until the session has a result, or breaks off. */
static bool await(PGconn *session)
{
    uint64_t until = text_now_ms() + ANSWER_MS;
    while (PQisBusy(session)) {
        uint64_t now = text_now_ms();
        struct pollfd fd = {.fd = PQsocket(session), .events = POLLIN};
        if (now >= until || fd.fd < 0) return false;
        int n = poll(&fd, 1, (int)(until - now));
        if (n < 0 && errno != EINTR) return false;
        if (n > 0 && !PQconsumeInput(session)) return false;
    }
    return true;
}

static bool is_error(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);
    return status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK;
}

/* The last result of what was sent, or the first error. A session that does not answer in time is
 * given up, because its later answer would be taken for that of another statement. */
static err collect(PGresult **out, struct db *db)
{
    struct pg_session *pg = db->connection;
    PGresult *kept = NULL;
    for (;;) {
        if (!await(pg->conn)) {
            err e =
                PQisBusy(pg->conn) && PQstatus(pg->conn) == CONNECTION_OK
                    ? err_make(ERR_MACHINE, "%s: no answer within %d s", db->path, ANSWER_MS / 1000)
                    : lost(db);
            PQclear(kept);
            PQfinish(pg->conn);
            pg->conn = NULL;
            return e;
        }
        PGresult *next = PQgetResult(pg->conn);
        if (!next) break;
        if (kept && is_error(kept)) {
            PQclear(next);
            continue;
        }
        PQclear(kept);
        kept = next;
    }
    if (kept && !is_error(kept)) {
        *out = kept;
        return ERR_NONE;
    }
    err e = error_of(db, kept);
    PQclear(kept);
    return e;
}

err pg_session_simple(PGresult **out, struct db *db, const char *sql)
{
    struct pg_session *pg = db->connection;
    if (!pg->conn || !PQsendQuery(pg->conn, sql)) return lost(db);
    return collect(out, db);
}

err pg_session_command(struct db *db, const char *sql)
{
    PGresult *result = NULL;
    TRY(pg_session_simple(&result, db, sql));
    PQclear(result);
    return ERR_NONE;
}

struct parameters {
    Oid type[DB_VALUES_MAX];
    const char *value[DB_VALUES_MAX];
    int length[DB_VALUES_MAX], format[DB_VALUES_MAX];
    char number[DB_VALUES_MAX][32];
    char *tamed[DB_VALUES_MAX];
};

/* Numbers travel as text: 17 digits give a double back exactly. Texts of peers may be anything, and
 * the server refuses those that are not UTF-8. */
static err set_parameter(struct parameters *p, size_t i, const struct db_value *v)
{
    p->type[i] = v->letter == 'i'   ? PG_INT8
                 : v->letter == 'd' ? PG_FLOAT8
                 : v->letter == 't' ? PG_TEXT
                                    : PG_BYTEA;
    p->value[i] = p->number[i];
    if (v->letter == 'i') {
        snprintf(p->number[i], sizeof p->number[i], "%lld", (long long)v->number);
    } else if (v->letter == 'd') {
        snprintf(p->number[i], sizeof p->number[i], "%.17g", v->real);
    } else if (v->null) {
        p->value[i] = NULL;
    } else {
        p->value[i] = v->data;
        p->format[i] = 1;
        REQUIRE(v->size <= INT32_MAX);
        p->length[i] = (int)v->size;
    }
    if (v->letter != 't' || v->null || text_is_utf8(v->data, v->size)) return ERR_NONE;
    p->tamed[i] = strdup(v->data);
    if (!p->tamed[i]) return err_sys(ENOMEM, "a text");
    text_tame(p->tamed[i]);
    p->value[i] = p->tamed[i];
    p->length[i] = (int)strlen(p->tamed[i]);
    return ERR_NONE;
}

err pg_session_run(PGresult **out, struct db *db, const struct db_statement *s)
{
    struct pg_session *pg = db->connection;
    struct bytes sql = {.max = PG_SQL_BYTES_MAX};
    struct parameters p = {0};
    err e = db_postgres_sql(&sql, s->sql);
    for (size_t i = 0; i < s->values && !err_is(e); i++)
        e = set_parameter(&p, i, &s->value[i]);
    if (!err_is(e) &&
        (!pg->conn || !PQsendQueryParams(pg->conn, (const char *)sql.data, (int)s->values, p.type,
                                         p.value, p.length, p.format, /*text results*/ 0)))
        e = lost(db);
    if (!err_is(e)) e = collect(out, db);
    for (size_t i = 0; i < s->values; i++)
        free(p.tamed[i]);
    bytes_close(&sql);
    return e;
}

/* ---------------------------------------------------------------- sessions */

/* Locks and statements are bounded on the server, and a transaction of a node that is gone ends
 * there. */
static const char settings[] =
    "SET statement_timeout='20s'; SET lock_timeout='20s';"
    "SET idle_in_transaction_session_timeout='60s'; SET extra_float_digits=3;"
    "SET bytea_output='hex'; SET standard_conforming_strings=on; SET client_min_messages=error";

err pg_session_open(struct db *db)
{
    struct pg_session *pg = db->connection;
    const char *const key[] = {"connect_timeout",  "keepalives_idle",  "keepalives_interval",
                               "keepalives_count", "tcp_user_timeout", "client_encoding",
                               "application_name", "dbname",           NULL};
    const char *const value[] = {"5", "10", "5", "3", "20000", "UTF8", "fedlorad", db->path, NULL};
    PQfinish(pg->conn);
    pg->conn = PQconnectdbParams(key, value, /*expand the last*/ 1);
    if (PQstatus(pg->conn) != CONNECTION_OK) return lost(db);
    TRY(pg_session_command(db, settings));
    return pg_session_command(db, db->care == DB_FLUSHED ? "SET synchronous_commit=on"
                                                         : "SET synchronous_commit=off");
}

err pg_session_try_claim(bool *got, struct db *db)
{
    PGresult *result = NULL;
    TRY(pg_session_simple(&result, db, "SELECT " PG_SESSION_LOCK("try_advisory_lock", "claim")));
    *got = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    return ERR_NONE;
}

void pg_session_claimed(const struct db *db, const char *token)
{
    pthread_mutex_lock(&claim_lock);
    memset(&claimed, 0, sizeof claimed);
    if (token) {
        memcpy(claimed.path, db->path, sizeof claimed.path);
        snprintf(claimed.token, sizeof claimed.token, "%s", token);
    }
    pthread_mutex_unlock(&claim_lock);
}

bool pg_session_owns(const struct db *db, const char *token)
{
    pthread_mutex_lock(&claim_lock);
    bool owns = strcmp(claimed.path, db->path) != 0 || !strcmp(claimed.token, token);
    pthread_mutex_unlock(&claim_lock);
    return owns;
}

err pg_session_taken_over(const struct db *db)
{
    atomic_store(&taken_over, true);
    return err_make(ERR_MACHINE, "%s: another coordinator has taken over this database", db->path);
}

/* A session that had the claim must get it back. If it does not, either the server has not noticed
 * yet that the lost session is gone, or another coordinator has the claim. */
static err claim_again(struct db *db)
{
    PGresult *result = NULL;
    bool got = false;
    TRY(pg_session_try_claim(&got, db));
    if (got) return ERR_NONE;
    TRY(pg_session_simple(&result, db, "SELECT claim FROM fedlora_store"));
    bool ours = PQntuples(result) == 1 && pg_session_owns(db, PQgetvalue(result, 0, 0));
    PQclear(result);
    if (!ours) return pg_session_taken_over(db);
    return err_make(ERR_MACHINE, "%s: the server has not ended the session that was lost yet",
                    db->path);
}

bool pg_session_broken(const struct db *db)
{
    const struct pg_session *pg = db->connection;
    return !pg->conn || PQstatus(pg->conn) != CONNECTION_OK;
}

err pg_session_ready(struct db *db)
{
    struct pg_session *pg = db->connection;
    if (!pg_session_broken(db)) return ERR_NONE;
    if (pg->in_transaction || text_now_ms() < pg->again_ms) return lost(db);
    err e = pg_session_open(db);
    if (!err_is(e) && pg->claims) e = claim_again(db);
    if (!err_is(e)) return ERR_NONE;
    PQfinish(pg->conn);
    pg->conn = NULL;
    pg->again_ms = text_now_ms() + AGAIN_MS;
    return e;
}
