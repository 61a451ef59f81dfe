#include "coordinator/store/store_usage.h"

#include "base/file.h"
#include "coordinator/store/store_retain.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

/* One word each, because they are heads of columns and keys of JSON. */
const char *store_usage_kind(size_t kind)
{
    static const char *const names[STORE_USAGE_KINDS] = {
        [STORE_FILE_UPDATE] = "updates",  [STORE_FILE_STATE] = "state",
        [STORE_FILE_FROZEN] = "frozen",   [STORE_FILE_MEMORY] = "optimizer",
        [STORE_FILE_EARLIER] = "earlier", [STORE_FILE_NOISY] = "noisy",
        [STORE_FILE_PIN] = "uploaded"};
    REQUIRE(kind < STORE_USAGE_KINDS);
    return names[kind];
}

/* By halves, because rows are in the order of ids. */
static struct store_usage_run *find(struct store_usage *u, int64_t id)
{
    size_t low = 0, high = u->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (u->run[middle].id == id) return &u->run[middle];
        if (u->run[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* A run that was created after the list was made is left out. */
static err add(const struct store_file *f, void *context)
{
    struct store_usage_run *run = find(context, f->run);
    if (!run) return ERR_NONE;
    run->files[f->kind]++;
    run->bytes[f->kind] += f->blob.size;
    /* As the kinds in store_retain.c: the last state and its frozen factors stay. */
    bool goes = f->kind == STORE_FILE_UPDATE || f->kind == STORE_FILE_EARLIER;
    run->removes_files += run->due && goes;
    run->removes_bytes += run->due && goes ? f->blob.size : 0;
    return ERR_NONE;
}

/* The same rule as run_is_due(), in SQL, because this program has no live runs. Archived runs
 * are due as long as the sweep has left them files. */
static err load_runs(struct store_usage *out, struct db *db, uint64_t ended_before_ms,
                     struct arena *arena)
{
    struct db_query q = {0};
    int64_t most = 0;
    bool row = true;
    TRY(db_number(&most, db, "SELECT count(*) FROM runs WHERE deleted_ms=0", ""));
    TRY(arena_take(&out->run, arena, (size_t)most + 1, sizeof *out->run));
    out->run[out->count++].name = "(uploaded)";
    TRY(db_query_open(&q, db,
                      "SELECT id,name,archived_ms>0 OR (ended_ms>0 AND ended_ms<?) FROM runs"
                      " WHERE deleted_ms=0 ORDER BY id",
                      "i", (int64_t)ended_before_ms));
    err e = ERR_NONE;
    while (!err_is(e) && (int64_t)out->count <= most) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        struct store_usage_run *run = &out->run[out->count++];
        run->id = db_query_int(&q, 0);
        run->due = db_query_int(&q, 2) != 0;
        e = db_query_copy(&run->name, &q, 1, arena);
    }
    db_query_close(&q);
    return e;
}

/* The same rows that drop_events() removes, without its batches. */
static err count_events(struct store_usage *out, struct db *db, uint64_t before_ms)
{
    int64_t events = 0;
    TRY(db_number(&events, db,
                  "SELECT count(*) FROM events WHERE wall_ms<? AND " STORE_RETAIN_EVENTS, "i",
                  (int64_t)before_ms));
    out->removes_events = (uint64_t)events;
    return ERR_NONE;
}

/* A file that a running service has just removed counts as nothing. */
/* Subfolders and links are not counted: a store has none. */
static err sum_folder(uint64_t *out, const char *dir, const char *name)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, dir, name));
    DIR *list = opendir(folder);
    if (!list) return err_sys(errno, "%s", folder);
    for (struct dirent *entry; (entry = readdir(list));)
        if (!err_is(file_join(path, sizeof path, folder, entry->d_name))) *out += file_size(path);
    closedir(list);
    return ERR_NONE;
}

/* The file and its log; a server does not say how much of its disk it uses for one database. */
static err sum_database(struct store_usage *out, const struct store_place *place)
{
    char path[LIMIT_PATH_BYTES], log[LIMIT_PATH_BYTES];
    TRY(store_place_database(path, sizeof path, place));
    if (db_is_server(path)) return ERR_NONE;
    TRY(file_join(log, sizeof log, place->dir, "fedlora.db-wal"));
    out->database_bytes = file_size(path) + file_size(log);
    return ERR_NONE;
}

err store_usage(struct store_usage *out, const struct store_place *place,
                const struct store_usage_rules *rules, struct arena *arena)
{
    struct store_usage u = {0};
    struct store store = {0};
    TRY(store_open_beside(&store, place));
    err e = load_runs(&u, &store.db, rules->ended_before_ms, arena);
    if (!err_is(e)) e = store_files(&store.db, add, &u);
    if (!err_is(e)) e = count_events(&u, &store.db, rules->events_before_ms);
    store_close(&store);
    if (!err_is(e)) e = sum_database(&u, place);
    if (!err_is(e)) e = sum_folder(&u.upload_bytes, place->dir, "spool");
    if (!err_is(e)) *out = u;
    return e;
}
