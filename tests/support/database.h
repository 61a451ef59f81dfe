/* The database of a test's store. FEDLORA_TEST_DATABASE, a connection string of a PostgreSQL server
 * (tests/e2e/postgres.sh), makes each folder's store use a schema of its own there; without it the
 * stores are SQLite files. */
#ifndef TESTS_SUPPORT_DATABASE_H
#define TESTS_SUPPORT_DATABASE_H

#include "base/digest.h"
#include "coordinator/store/store.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DATABASE_BYTES = 512 };

/* For store.database of the store in `dir`: "" for SQLite. Returns out. */
static inline const char *support_database(char out[DATABASE_BYTES], const char *dir)
{
    const char *server = getenv("FEDLORA_TEST_DATABASE");
    char name[DIGEST_TEXT_BYTES], sql[80];
    *out = 0;
    if (!server) return out;
    struct digest digest = digest_of(dir, strlen(dir));
    digest_text(name, &digest);
    const char *hex = name + strlen(name) - 16;
    PGconn *conn = PQconnectdb(server);
    snprintf(sql, sizeof sql, "SET client_min_messages=error; CREATE SCHEMA IF NOT EXISTS t%s",
             hex);
    PGresult *result = PQexec(conn, sql);
    bool made = PQresultStatus(result) == PGRES_COMMAND_OK;
    if (!made) fprintf(stderr, "%s: %s", server, PQerrorMessage(conn));
    PQclear(result);
    PQfinish(conn);
    REQUIRE(made);
    snprintf(out, DATABASE_BYTES, "%s%coptions=-csearch_path%%3Dt%s", server,
             strchr(server, '?') ? '&' : '?', hex);
    return out;
}

/* False: tests of what only SQLite files have must be skipped. */
static inline bool support_is_sqlite(void)
{
    return !getenv("FEDLORA_TEST_DATABASE");
}

static inline err support_store_open(struct store *out, const char *dir)
{
    char database[DATABASE_BYTES];
    const struct store_place place = {.dir = dir, .database = support_database(database, dir)};
    return store_open_at(out, &place);
}

#endif
