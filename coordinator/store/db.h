/* The database of a store: one connection, for one thread, to a SQLite file or to a PostgreSQL
 * server. Once db_end() or db_run() has returned without error, its effect survives a power cut,
 * unless the database was opened without that care.
 *
 * Statements are written in the part of SQL that both understand, with SQLite's names of types in
 * tables, `?` or `?1` for parameters, and INSERT OR IGNORE; db_postgres_sql.h translates the rest.
 * Writers of a database take turns: from db_begin() to db_end(), or for one db_run(), no other
 * connection writes.
 *
 * Errors are ERR_MACHINE (ENOSPC if the disk or the database is full, EUCLEAN if it is damaged), or
 * ERR_LIMIT if another connection held the lock for too long.
 *
 * Parameters of a statement are given by a format of one letter each:
 *
 *     i    int64_t
 *     d    double
 *     t    const char *, a text; NULL is stored as NULL
 *     b    const void *, size_t: a blob
 *     h    const struct digest *; NULL is stored as NULL */
#ifndef COORDINATOR_DB_H
#define COORDINATOR_DB_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

struct db_kind;

/* A commit without flush survives the end of the process, but not a power cut. */
enum db_care { DB_FLUSHED, DB_UNFLUSHED };

struct db {
    const struct db_kind *kind;
    void *connection;            /* NULL in a zeroed struct */
    char path[LIMIT_PATH_BYTES]; /* the file, or the server and database: for errors */
    enum db_care care;
    int64_t changes; /* rows that the last db_run() has changed */
};

/* `where`: the path of a SQLite file, or a connection string of libpq that begins with
 * "postgresql://" or "postgres://". ERR_INPUT: it has a password, which belongs into a file. */
err db_open(struct db *out, const char *where, enum db_care care);
bool db_is_server(const char *where); /* a connection string, not a path */
/* A SQLite file that nobody writes to, for example in a backup: nothing is created, not even beside
 * it. */
err db_open_still(struct db *out, const char *path);
void db_close(struct db *db);
/* Writes all that is committed now to a new SQLite file, flushed, while other connections go on.
 * The file must not exist. ERR_INPUT: the database is on a server, which has its own tools. */
err db_copy(struct db *db, const char *path);
err db_script(struct db *db, const char *sql); /* several statements, without parameters */
err db_run(struct db *db, const char *sql, const char *format, ...);
err db_begin(struct db *db); /* takes the write lock */
/* Commits if e is no error, else rolls back. Returns e, or the reason why the commit failed. */
err db_end(struct db *db, err e);
/* The version that the last script has set with "PRAGMA user_version"; 0: a new database. */
err db_version(int64_t *out, struct db *db);

/* Makes this process the one coordinator of the database while the connection lives. SQLite: does
 * nothing, because the lock of the folder (base/lock.h) covers the file. PostgreSQL: waits at most
 * DB_CLAIM_MS for the session of another coordinator to end (ERR_STATE), and from then on every
 * writing transaction of this process fails if another coordinator has claimed the database. */
enum { DB_CLAIM_MS = 10 * 1000 };
err db_claim(struct db *db);
/* Another coordinator has claimed a database of this process, which must end. Any thread. */
bool db_taken_over(void);

/* Gives at most `pages` free pages of the file back to the disk, in a time of milliseconds. *more:
 * there are more. */
err db_shrink(bool *more, struct db *db, int pages);
/* Lets db_shrink() work on a database that was made without it, which rewrites the file; one of
 * more than DB_REWRITE_BYTES is left as it is. No other connection may be open. */
enum { DB_REWRITE_BYTES = 256 << 20 };
err db_make_shrinkable(struct db *db);

/* Empties the log of committed pages, which otherwise keeps up to 4 MB, as far as other connections
 * allow it now. */
void db_give_room(struct db *db);
/* Reads everything and compares each index with its table. *problem is "" or says what is damaged.
 * A PostgreSQL server looks after its own files. */
enum { DB_PROBLEM_BYTES = 200 };
err db_check(char problem[DB_PROBLEM_BYTES], struct db *db);
/* The same without the indexes, and until `until_ms` of the monotonic clock; *whole: all of it was
 * looked at. ERR_MACHINE with EUCLEAN: it is damaged. */
err db_quick_check(bool *whole, struct db *db, uint64_t until_ms);

struct db_query {
    struct db *db;
    void *rows;
};
err db_query_open(struct db_query *out, struct db *db, const char *sql, const char *format, ...);
err db_query_next(bool *row, struct db_query *q);
void db_query_close(struct db_query *q);
int64_t db_query_int(const struct db_query *q, int column); /* of a condition: 0 or 1 */
double db_query_num(const struct db_query *q, int column);
/* "" for NULL. Valid until the next row. */
const char *db_query_text(const struct db_query *q, int column);
/* The same text in the arena, for rows that outlive the query. */
err db_query_copy(const char **out, const struct db_query *q, int column, struct arena *arena);
bool db_query_digest(struct digest *out, const struct db_query *q, int column); /* false: none */
const void *db_query_blob(size_t *size, const struct db_query *q, int column);
/* The first column of the first row, as an integer. Without a row *out keeps its value. */
err db_number(int64_t *out, struct db *db, const char *sql, const char *format, ...);

/* For tests: called before each commit; an error takes its place. NULL: not called. */
extern err (*db_before_commit)(void);

#endif
