/* One kind of database behind db.h: a table of functions, as db.c needs them. For db*.c only. */
#ifndef COORDINATOR_DB_KIND_H
#define COORDINATOR_DB_KIND_H

#include "coordinator/store/db.h"

/* A parameter of a statement, or NULL. */
struct db_value {
    char letter; /* as in db.h */
    bool null;
    int64_t number;
    double real;
    const void *data; /* texts and blobs; a text ends with a zero that `size` does not count */
    size_t size;
};
enum { DB_VALUES_MAX = 24 };

struct db_statement {
    const char *sql; /* SQLite's dialect, as far as db.h allows it */
    const struct db_value *value;
    size_t values;
};

struct db_kind {
    /* out->path and out->care are set. */
    err (*open)(struct db *out, const char *where);
    void (*close)(struct db *db);
    err (*script)(struct db *db, const char *sql);
    err (*run)(struct db *db, const struct db_statement *s); /* sets db->changes */
    err (*begin)(struct db *db);
    err (*end)(struct db *db, err e);
    err (*query)(struct db_query *out, const struct db_statement *s); /* out->db is set */
    err (*next)(bool *row, struct db_query *q);
    void (*close_query)(struct db_query *q);
    int64_t (*number)(const struct db_query *q, int column);
    double (*real)(const struct db_query *q, int column);
    const char *(*text)(const struct db_query *q, int column);
    const void *(*blob)(size_t *size, const struct db_query *q, int column);
    err (*version)(int64_t *out, struct db *db);
    err (*claim)(struct db *db);
    void (*give_room)(struct db *db);
    err (*shrink)(bool *more, struct db *db, int pages); /* NULL: not needed, like the next */
    err (*make_shrinkable)(struct db *db);
    err (*copy)(struct db *db, const char *path);
    err (*check)(char *problem, struct db *db); /* NULL: not needed */
    err (*quick_check)(bool *whole, struct db *db, uint64_t until_ms);
};

extern const struct db_kind db_sqlite, db_postgres;

#endif
