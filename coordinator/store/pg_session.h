/* One session of a PostgreSQL server, for db_postgres.c: statements with a limit of time, a new
 * connection after a lost one, and the claim, which makes a process the one coordinator of a
 * database. One thread for each session. */
#ifndef COORDINATOR_PG_SESSION_H
#define COORDINATOR_PG_SESSION_H

#include "coordinator/store/db_kind.h"

#include <libpq-fe.h>

enum { PG_XID_BYTES = 24, PG_TOKEN_BYTES = 33, PG_SQL_BYTES_MAX = 1 << 16 };
/* Types of values, from the server's catalog pg_type. */
enum { PG_INT8 = 20, PG_FLOAT8 = 701, PG_TEXT = 25, PG_BYTEA = 17 };

struct pg_session {
    PGconn *conn;
    bool in_transaction, claims;
    uint64_t again_ms;      /* no attempt to connect before */
    char xid[PG_XID_BYTES]; /* of the transaction */
};

/* The locks of a database and schema: "write", and "claim". */
#define PG_SESSION_LOCK(function, name)                                                            \
    "pg_" function "(1178682446, hashtext(current_schema() || '" name "'))"

/* db->connection is a struct pg_session, in all of these. */
err pg_session_open(struct db *db);
/* Before a statement: connects again if the connection was lost, but not in a transaction. */
err pg_session_ready(struct db *db);
bool pg_session_broken(const struct db *db);
/* One or several statements without parameters; the last result, or the first error. The caller
 * clears it. */
err pg_session_simple(PGresult **out, struct db *db, const char *sql);
err pg_session_command(struct db *db, const char *sql);
err pg_session_run(PGresult **out, struct db *db, const struct db_statement *s);

/* The claim's lock is taken, by this session. */
err pg_session_try_claim(bool *got, struct db *db);
/* Records that this process has claimed the database with this token; NULL: no longer. */
void pg_session_claimed(const struct db *db, const char *token);
/* False: this process has claimed the database with another token than that in the database. */
bool pg_session_owns(const struct db *db, const char *token);
/* The error for that; sets db_taken_over(). */
err pg_session_taken_over(const struct db *db);

#endif
