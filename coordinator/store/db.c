#include "coordinator/store/db_kind.h"

#include <stdarg.h>
#include <string.h>

err (*db_before_commit)(void);

bool db_is_server(const char *where)
{
    return !strncmp(where, "postgresql://", 13) || !strncmp(where, "postgres://", 11);
}

err db_open(struct db *out, const char *where, enum db_care care)
{
    bool server = db_is_server(where);
    struct db db = {.kind = server ? &db_postgres : &db_sqlite, .care = care};
    if (strlen(where) >= sizeof db.path)
        return err_make(ERR_INPUT, "%.80s...: the %s is too long", where,
                        server ? "connection string" : "path");
    memcpy(db.path, where, strlen(where) + 1);
    err e = db.kind->open(&db, where);
    if (err_is(e))
        db_close(&db);
    else
        *out = db;
    return e;
}

void db_close(struct db *db)
{
    if (db->kind) db->kind->close(db);
    *db = (struct db){0};
}

err db_script(struct db *db, const char *sql)
{
    return db->kind->script(db, sql);
}

/* Variadic arguments are not converted, so callers must pass exactly the types of db.h: an int for
 * the letter i may be read with wrong upper bits. */
static struct db_value take(char letter, va_list *args)
{
    struct db_value v = {.letter = letter};
    switch (letter) {
    case 'i':
        v.number = va_arg(*args, int64_t);
        return v;
    case 'd':
        v.real = va_arg(*args, double);
        return v;
    case 't':
        v.data = va_arg(*args, const char *);
        v.size = v.data ? strlen(v.data) : 0;
        break;
    case 'h':
        v.data = va_arg(*args, const struct digest *);
        v.size = v.data ? DIGEST_BYTES : 0;
        break;
    default:
        REQUIRE(letter == 'b');
        v.data = va_arg(*args, const void *);
        v.size = va_arg(*args, size_t);
    }
    v.null = !v.data;
    return v;
}

static struct db_statement take_all(struct db_value value[DB_VALUES_MAX], const char *sql,
                                    const char *format, va_list *args)
{
    size_t n = strlen(format);
    REQUIRE(n <= DB_VALUES_MAX);
    for (size_t i = 0; i < n; i++)
        value[i] = take(format[i], args);
    return (struct db_statement){sql, value, n};
}

err db_run(struct db *db, const char *sql, const char *format, ...)
{
    struct db_value value[DB_VALUES_MAX];
    va_list args;
    va_start(args, format);
    struct db_statement s = take_all(value, sql, format, &args);
    va_end(args);
    return db->kind->run(db, &s);
}

err db_begin(struct db *db)
{
    return db->kind->begin(db);
}

err db_end(struct db *db, err e)
{
    return db->kind->end(db, e);
}

err db_version(int64_t *out, struct db *db)
{
    return db->kind->version(out, db);
}

err db_claim(struct db *db)
{
    return db->kind->claim(db);
}

/* A server looks after its own files. */
err db_shrink(bool *more, struct db *db, int pages)
{
    *more = false;
    return db->kind->shrink ? db->kind->shrink(more, db, pages) : ERR_NONE;
}

err db_make_shrinkable(struct db *db)
{
    return db->kind->make_shrinkable ? db->kind->make_shrinkable(db) : ERR_NONE;
}

void db_give_room(struct db *db)
{
    db->kind->give_room(db);
}

err db_copy(struct db *db, const char *path)
{
    return db->kind->copy(db, path);
}

err db_check(char problem[DB_PROBLEM_BYTES], struct db *db)
{
    *problem = 0;
    return db->kind->check ? db->kind->check(problem, db) : ERR_NONE;
}

err db_quick_check(bool *whole, struct db *db, uint64_t until_ms)
{
    return db->kind->quick_check(whole, db, until_ms);
}

err db_query_open(struct db_query *out, struct db *db, const char *sql, const char *format, ...)
{
    struct db_value value[DB_VALUES_MAX];
    struct db_query q = {.db = db};
    va_list args;
    va_start(args, format);
    struct db_statement s = take_all(value, sql, format, &args);
    va_end(args);
    TRY(db->kind->query(&q, &s));
    *out = q;
    return ERR_NONE;
}

err db_query_next(bool *row, struct db_query *q)
{
    return q->db->kind->next(row, q);
}

void db_query_close(struct db_query *q)
{
    if (q->db) q->db->kind->close_query(q);
    *q = (struct db_query){0};
}

err db_number(int64_t *out, struct db *db, const char *sql, const char *format, ...)
{
    struct db_value value[DB_VALUES_MAX];
    struct db_query q = {.db = db};
    bool row = false;
    va_list args;
    va_start(args, format);
    struct db_statement s = take_all(value, sql, format, &args);
    va_end(args);
    TRY(db->kind->query(&q, &s));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) *out = db_query_int(&q, 0);
    db_query_close(&q);
    return e;
}

int64_t db_query_int(const struct db_query *q, int column)
{
    return q->db->kind->number(q, column);
}

double db_query_num(const struct db_query *q, int column)
{
    return q->db->kind->real(q, column);
}

const char *db_query_text(const struct db_query *q, int column)
{
    return q->db->kind->text(q, column);
}

err db_query_copy(const char **out, const struct db_query *q, int column, struct arena *arena)
{
    const char *text = db_query_text(q, column);
    return arena_text(out, arena, text, strlen(text));
}

const void *db_query_blob(size_t *size, const struct db_query *q, int column)
{
    return q->db->kind->blob(size, q, column);
}

bool db_query_digest(struct digest *out, const struct db_query *q, int column)
{
    size_t size;
    const void *data = db_query_blob(&size, q, column);
    if (size != DIGEST_BYTES) return false;
    memcpy(out->byte, data, DIGEST_BYTES);
    return true;
}
