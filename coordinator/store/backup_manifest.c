#include "coordinator/store/backup_manifest.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "base/version.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "fedlora backup"
enum { VERSION = 1 };

err backup_manifest_path(char out[LIMIT_PATH_BYTES], const char *dir, const struct digest *digest)
{
    char name[DIGEST_TEXT_BYTES + 8], text[DIGEST_TEXT_BYTES];
    digest_text(text, digest);
    snprintf(name, sizeof name, "files/%s", text);
    return file_join(out, LIMIT_PATH_BYTES, dir, name);
}

static err manifest_path(char out[LIMIT_PATH_BYTES], const char *dir)
{
    return file_join(out, LIMIT_PATH_BYTES, dir, "manifest.json");
}

bool backup_manifest_exists(const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    return !err_is(manifest_path(path, dir)) && file_exists(path);
}

/* Grows by doubling up to its limit, because the number of blobs is known only when all rows have
 * been read. */
err backup_manifest_add(struct backup_manifest *m, const struct backup_file *file)
{
    if (m->files == LIMIT_BACKUP_FILES)
        return err_make(ERR_LIMIT, "more than %d files in one backup", LIMIT_BACKUP_FILES);
    if (m->files == m->room) {
        size_t room = m->room ? 2 * m->room : 64;
        struct backup_file *grown = realloc(m->file, room * sizeof *grown);
        if (!grown) return err_sys(ENOMEM, "the list of a backup's files");
        m->file = grown;
        m->room = room;
    }
    m->file[m->files++] = *file;
    return ERR_NONE;
}

/* Sorted by digest and not by name, because files are looked up by the digests that rows hold. */
static int by_digest(const void *a, const void *b)
{
    const struct backup_file *x = a, *y = b;
    return memcmp(x->blob.digest.byte, y->blob.digest.byte, DIGEST_BYTES);
}

/* Several rows may name one file, for example frozen factors that two runs share. Not one of the
 * files that have other names, because a file is written at each of its places. */
void backup_manifest_sort(struct backup_manifest *m)
{
    size_t kept = 0;
    if (m->files) qsort(m->file, m->files, sizeof *m->file, by_digest);
    for (size_t i = 0; i < m->files; i++)
        if (!kept || by_digest(&m->file[kept - 1], &m->file[i]) ||
            strcmp(m->file[kept - 1].name, m->file[i].name))
            m->file[kept++] = m->file[i];
    m->files = kept;
}

const struct backup_file *backup_manifest_find(const struct backup_manifest *m,
                                               const struct digest *digest)
{
    struct backup_file key = {.blob.digest = *digest};
    return m->files ? bsearch(&key, m->file, m->files, sizeof *m->file, by_digest) : NULL;
}

const struct backup_file *backup_manifest_database(const struct backup_manifest *m)
{
    for (size_t i = 0; i < m->files; i++)
        if (!strcmp(m->file[i].name, BACKUP_DATABASE)) return &m->file[i];
    return NULL;
}

void backup_manifest_close(struct backup_manifest *m)
{
    free(m->file);
    *m = (struct backup_manifest){0};
}

static json_t *file_json(const struct backup_file *f)
{
    char digest[DIGEST_TEXT_BYTES];
    digest_text(digest, &f->blob.digest);
    json_t *row = json_pack("{s:s, s:I, s:s}", "name", f->name, "size", (json_int_t)f->blob.size,
                            "digest", digest);
    if (row && f->missing) json_object_set_new(row, "missing", json_true());
    return row;
}

/* Canonical JSON, so that two backups of one store can be compared with diff. A row that could not
 * be made for lack of memory is missing in the list, which is noticed by its length. */
err backup_manifest_write(const struct backup_manifest *m, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    struct bytes text = {.max = LIMIT_JSON_BYTES};
    TRY(manifest_path(path, dir));
    json_t *list = json_array();
    for (size_t i = 0; i < m->files; i++)
        json_array_append_new(list, file_json(&m->file[i]));
    json_t *all =
        json_pack("{s:s, s:i, s:s, s:I, s:s, s:I, s:o}", "format", FORMAT, "version", VERSION,
                  "software", version_text(), "store", (json_int_t)m->store_version, "federation",
                  m->federation, "made_ms", (json_int_t)m->made_ms, "files", list);
    err e = all && json_array_size(list) == m->files ? json_write(&text, all)
                                                     : err_sys(ENOMEM, "%s", path);
    if (!err_is(e)) e = file_write(path, text.data, text.size, /*replace*/ true);
    json_decref(all);
    bytes_close(&text);
    return e;
}

/* The names become paths when the backup is restored, so only those of backup_make() pass. */
static err check_name(const struct backup_file *f, const char *where)
{
    char digest[DIGEST_TEXT_BYTES];
    digest_text(digest, &f->blob.digest);
    bool blob = !strncmp(f->name, "blobs/", 6) && !strcmp(f->name + 6, digest);
    bool audit = !strncmp(f->name, "audit/", 6) && text_is_name(f->name + 6, BACKUP_NAME_BYTES);
    if (blob || audit || !strcmp(f->name, BACKUP_DATABASE)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: \"%.100s\" is not the name of a file of a store", where,
                    f->name);
}

static err read_file(struct backup_manifest *m, const json_t *row, const char *where)
{
    struct backup_file f = {0};
    const char *name = NULL, *digest = NULL;
    int64_t size = 0;
    TRY(json_get_str(&name, row, "name", where));
    TRY(json_get_int(&size, row, "size", 0, INT64_MAX, where));
    TRY(json_get_str(&digest, row, "digest", where));
    TRY(json_opt_bool(&f.missing, row, "missing", where));
    err e = digest_parse(&f.blob.digest, digest);
    if (err_is(e)) return err_in(e, "%s: %.100s", where, name);
    f.blob.size = (uint64_t)size;
    snprintf(f.name, sizeof f.name, "%s", name);
    TRY(check_name(&f, where));
    return backup_manifest_add(m, &f);
}

/* The format is checked before anything else, so that another JSON file is refused by its kind and
 * not by a missing key. */
static err read_all(struct backup_manifest *m, const json_t *all, const char *path)
{
    const char *format = NULL, *software = NULL, *federation = NULL;
    int64_t version = 0, made = 0;
    TRY(json_get_str(&format, all, "format", path));
    if (strcmp(format, FORMAT) != 0)
        return err_make(ERR_INPUT, "%s: format \"%.40s\", expected \"%s\"", path, format, FORMAT);
    TRY(json_get_int(&version, all, "version", 1, VERSION, path));
    TRY(json_get_str(&software, all, "software", path));
    TRY(json_get_str(&federation, all, "federation", path));
    TRY(json_get_int(&m->store_version, all, "store", 1, INT32_MAX, path));
    TRY(json_get_int(&made, all, "made_ms", 0, INT64_MAX, path));
    m->made_ms = (uint64_t)made;
    snprintf(m->software, sizeof m->software, "%s", software);
    snprintf(m->federation, sizeof m->federation, "%s", federation);
    const json_t *list = json_object_get(all, "files");
    if (!json_is_array(list))
        return err_make(ERR_INPUT, "%s: files: expected a list of files", path);
    for (size_t i = 0; i < json_array_size(list); i++)
        TRY(read_file(m, json_array_get(list, i), path));
    backup_manifest_sort(m);
    const struct backup_file *database = backup_manifest_database(m);
    if (database && !database->missing) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: lists no %s", path, BACKUP_DATABASE);
}

err backup_manifest_read(struct backup_manifest *out, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    struct backup_manifest m = {0};
    json_t *all = NULL;
    TRY(manifest_path(path, dir));
    if (!file_exists(path))
        return err_make(ERR_INPUT,
                        "%.300s: is no backup, or one that was not finished: expected "
                        "manifest.json in it",
                        dir);
    TRY(json_open(&all, path, LIMIT_JSON_BYTES));
    err e = read_all(&m, all, path);
    json_decref(all);
    if (err_is(e))
        backup_manifest_close(&m);
    else
        *out = m;
    return e;
}
