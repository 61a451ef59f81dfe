#include "coordinator/work/keep_record.h"

#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { COPY_BYTES = 8 << 20, PAGE_ROWS = 256, LINE_BYTES_MAX = 64 << 20 };

/* In parts whose pages are dropped again, so that a state of gigabytes does not push the files
 * of open rounds out of memory. A file that the store has lost is left out: an error would stop
 * this sweep and every later one, and the record still has its digest. */
static err copy_blob(const struct keep_record *what, const char *path, const struct store *store,
                     const struct store_blob *blob)
{
    struct file_map map = {0};
    struct file_out out = {0};
    err e = ERR_NONE;
    struct blob_path from = blob_path(store->dir, &blob->digest);
    if (!blob->size || !file_exists(from.text)) return ERR_NONE;
    TRY(file_map_open(&map, from.text));
    TRY_OUT(e, file_out_open(&out, path, /*replace*/ true));
    for (size_t at = 0; at < map.size; at += COPY_BYTES) {
        size_t size = map.size - at < COPY_BYTES ? map.size - at : COPY_BYTES;
        TRY_OUT(e, file_out_append(&out, map.data + at, size));
        file_map_drop(&map, at, size);
        if (what->goes_on && !what->goes_on(what->context)) {
            e = err_make(ERR_STOPPED, "the copy of run %s gave way", what->name);
            goto out;
        }
    }
    e = file_out_commit(&out);
out:
    file_out_close(&out);
    file_map_close(&map);
    return e;
}

/* One value after the other, because the whole record may be larger than memory. */
static err add_json(struct file_out *out, json_t *value, const char *after)
{
    struct bytes text = {.max = LINE_BYTES_MAX};
    err e = value ? json_write(&text, value) : err_make(ERR_MACHINE, "no memory for a record");
    if (!err_is(e)) e = file_out_append(out, text.data, text.size);
    if (!err_is(e)) e = file_out_append(out, after, strlen(after));
    bytes_close(&text);
    json_decref(value);
    return e;
}

/* null for a state that a version before 6 forgot. */
static json_t *json_of_digest(const struct store_blob *blob)
{
    char text[DIGEST_TEXT_BYTES];
    if (!blob->size) return json_null();
    digest_text(text, &blob->digest);
    return json_string(text);
}

/* A report that does not parse was damaged on the disk; its round is recorded without it. */
static json_t *json_of_round(const struct store_round *r)
{
    json_t *report = *r->report_json ? json_loads(r->report_json, JSON_DECODE_ANY, NULL) : NULL;
    return json_pack("{s:I, s:o, s:I, s:I, s:I, s:f, s:o}", "round", (json_int_t)r->round, "state",
                     json_of_digest(&r->state), "size", (json_int_t)r->state.size, "updates",
                     (json_int_t)r->updates, "took_ms", (json_int_t)r->took_ms, "train_loss",
                     r->train_loss, "report", report ? report : json_null());
}

/* Pages of rounds, because a run may have 100,000 with a report each. The first page begins without
 * a comma. */
static err add_rounds(struct file_out *out, struct store *store, int64_t run)
{
    struct store_rounds_of of = {.run = run, .most = PAGE_ROWS, .reports = true};
    bool first = true;
    for (size_t count = PAGE_ROWS; count == PAGE_ROWS;) {
        struct arena arena = {0};
        struct store_round *round = NULL;
        err e = store_rounds_some(&round, &count, store, &of, &arena);
        for (size_t i = 0; i < count && !err_is(e); i++) {
            if (!first) e = file_out_append(out, ",\n", 2);
            if (!err_is(e)) e = add_json(out, json_of_round(&round[i]), "");
            first = false;
            of.after = round[i].round;
        }
        arena_close(&arena);
        TRY(e);
    }
    return ERR_NONE;
}

/* Streamed from one query: a run may have a billion of them. Those of a run with a secret draw
 * would tell who was drawn, and the copy may lie where more people read it than the store. */
static err add_updates(struct file_out *out, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = true;
    TRY(db_query_open(&q, &store->db,
                      "SELECT round,member,made_for,digest,size,examples,weight FROM counted"
                      " WHERE run=? AND run NOT IN (SELECT run FROM private_rounds)"
                      " ORDER BY round,member",
                      "i", run));
    err e = db_query_next(&row, &q);
    for (bool first = true; row && !err_is(e); first = false) {
        struct store_blob blob = {.size = (uint64_t)db_query_int(&q, 4)};
        (void)db_query_digest(&blob.digest, &q, 3);
        json_t *value = json_pack("{s:I, s:s, s:I, s:o, s:I, s:I, s:f}", "round",
                                  (json_int_t)db_query_int(&q, 0), "member", db_query_text(&q, 1),
                                  "trained_round", (json_int_t)db_query_int(&q, 2), "digest",
                                  json_of_digest(&blob), "size", (json_int_t)blob.size, "examples",
                                  (json_int_t)db_query_int(&q, 5), "weight", db_query_num(&q, 6));
        if (!first) e = file_out_append(out, ",\n", 2);
        if (err_is(e))
            json_decref(value);
        else
            e = add_json(out, value, "");
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    return e;
}

/* A name has only letters, digits, dots, dashes and underscores, so it needs no quoting. */
static err write_record(const char *dir, struct store *store, const struct store_run *run)
{
    char path[LIMIT_PATH_BYTES], head[512];
    struct file_out out = {0};
    err e = ERR_NONE;
    TRY(file_join(path, sizeof path, dir, "record.json"));
    TRY(file_out_open(&out, path, /*replace*/ true));
    struct digest config = digest_of(run->config, run->config_size);
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, &config);
    int n = snprintf(head, sizeof head,
                     "{\"run\":\"%s\",\"id\":%" PRId64 ",\"created_ms\":%" PRIu64
                     ",\"ended_ms\":%" PRIu64 ",\"config\":\"%s\",\n\"rounds\":[\n",
                     run->name, run->id, run->created_ms, run->ended_ms, text);
    TRY_OUT(e, file_out_append(&out, head, (size_t)n));
    TRY_OUT(e, add_rounds(&out, store, run->id));
    TRY_OUT(e, file_out_append(&out, "],\n\"updates\":[\n", 14));
    TRY_OUT(e, add_updates(&out, store, run->id));
    TRY_OUT(e, file_out_append(&out, "]}\n", 3));
    e = file_out_commit(&out);
out:
    file_out_close(&out);
    return e;
}

static err fill(const struct keep_record *what, struct store *store, const struct store_run *run,
                const char *part)
{
    char state[LIMIT_PATH_BYTES], frozen[LIMIT_PATH_BYTES];
    TRY(file_join(state, sizeof state, part, "state.safetensors"));
    TRY(file_join(frozen, sizeof frozen, part, "frozen.safetensors"));
    TRY(copy_blob(what, state, store, &run->state));
    TRY(copy_blob(what, frozen, store, &run->frozen));
    return write_record(part, store, run);
}

/* The folder gets its name when everything in it is flushed. One that a crash left half made is
 * filled again. A run that was deleted meanwhile has no copy. */
err keep_record_make(const struct keep_record *what, struct store *store)
{
    char path[LIMIT_PATH_BYTES], part[LIMIT_PATH_BYTES], word[LIMIT_NAME_BYTES + 32];
    struct store_run *row = NULL;
    struct arena arena = {0};
    err e = ERR_NONE;
    snprintf(word, sizeof word, "%s.%" PRId64, what->name, what->run);
    TRY(file_join(path, sizeof path, what->dir, word));
    if (file_exists(path)) return ERR_NONE;
    snprintf(word, sizeof word, "%s.%" PRId64 ".part", what->name, what->run);
    TRY(file_join(part, sizeof part, what->dir, word));
    TRY(file_make_dirs(part));
    TRY_OUT(e, store_run_named(&row, store, what->name, &arena));
    if (!row || row->id != what->run) goto out;
    TRY_OUT(e, fill(what, store, row, part));
    if (file_disk.rename(part, path) != 0)
        e = err_sys(errno, "%s", path);
    else
        e = file_sync_dir(what->dir);
out:
    arena_close(&arena);
    return e;
}
