#include "sim/folder.h"

#include "base/bytes.h"
#include "base/file.h"
#include "proto/message.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SETUP_BYTES_MAX = 64 << 20 };

static void add_member(struct digest_stream *s, const struct fleet *f, const struct fleet_member *m)
{
    const uint64_t counts[] = {m->rank, m->data.count, m->data.tokens};
    digest_add(s, m->id, strlen(m->id) + 1);
    digest_add(s, counts, sizeof counts);
    device_digest(s, &f->devices, m->device, m->id);
    for (size_t i = 0; i < m->data.count; i++)
        digest_add(s, m->data.row[i].id, m->data.row[i].count * sizeof *m->data.row[i].id);
}

/* Everything that decides the results, but for the number of workers, crashes and evaluations. */
static err setup_digest(struct digest *out, const struct fleet *f, const struct simulate_options *o)
{
    struct digest_stream s;
    struct bytes packed = {.max = SETUP_BYTES_MAX};
    struct digest frozen;
    if (f->frozen) TRY(digest_of_file(&frozen, f->frozen));
    err e = message_pack(&packed, &o->config->base);
    if (!err_is(e)) {
        digest_begin(&s);
        digest_add(&s, packed.data, packed.size);
        digest_add(&s, f->base.byte, DIGEST_BYTES);
        if (f->frozen) digest_add(&s, frozen.byte, DIGEST_BYTES);
        digest_add(&s, &f->devices.seed, sizeof f->devices.seed);
        for (size_t i = 0; i < f->members; i++)
            add_member(&s, f, &f->member[i]);
        attack_digest(&s, &o->attack);
        *out = digest_end(&s);
    }
    bytes_close(&packed);
    return e;
}

static err write_text(const char *dir, const char *name, const char *text)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    return file_write(path, text, strlen(text), true);
}

static err check_no_file(const char *dir, const char *name, const char *what)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    if (!file_exists(path)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: holds %s; choose another folder with -o, or remove it", dir,
                    what);
}

err folder_check(const struct fleet *f, const struct simulate_options *o)
{
    char path[LIMIT_PATH_BYTES], store[LIMIT_PATH_BYTES], text[DIGEST_TEXT_BYTES], *found = NULL;
    struct digest digest;
    size_t size = 0;
    TRY(setup_digest(&digest, f, o));
    digest_text(text, &digest);
    TRY(file_join(path, sizeof path, o->dir, "setup"));
    TRY(file_join(store, sizeof store, o->dir, "store"));
    TRY(check_no_file(o->dir, "sweep.json", "a sweep"));
    if (!file_exists(path) && !file_is_dir(store)) {
        TRY(file_make_dirs(o->dir));
        TRY(write_text(o->dir, "split.txt", f->histogram));
        TRY(write_text(o->dir, "settings.json", o->settings));
        if (o->ini) TRY(write_text(o->dir, "run.ini", o->ini));
        return write_text(o->dir, "setup", text);
    }
    if (!file_exists(path)) return check_no_file(o->dir, "store", "a store of another program");
    TRY(file_read_all(&found, &size, path, 1 << 10));
    bool same = !strcmp(found, text);
    free(found);
    if (same) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: holds a simulation with other data or options; choose another folder with "
                    "-o, or begin anew with --force",
                    o->dir);
}

err folder_check_none(const char *dir)
{
    return check_no_file(dir, "setup", "a single simulation");
}

/* ---- removing ---- */

static err remove_entry(const char *path);

static err remove_entries(const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    DIR *folder = opendir(dir);
    if (!folder) return err_sys(errno, "%s", dir);
    err e = ERR_NONE;
    for (struct dirent *d; !err_is(e) && (d = readdir(folder));) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        e = file_join(path, sizeof path, dir, d->d_name);
        if (!err_is(e)) e = remove_entry(path);
    }
    closedir(folder);
    return e;
}

/* lstat(), because a link is removed and not what it points at. */
static err remove_entry(const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0) return errno == ENOENT ? ERR_NONE : err_sys(errno, "%s", path);
    if (!S_ISDIR(st.st_mode)) return unlink(path) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
    TRY(remove_entries(path));
    return rmdir(path) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
}

err folder_remove(const char *dir)
{
    return remove_entry(dir);
}

err folder_clear(const char *dir)
{
    static const char *const names[] = {
        "store",         "rounds.jsonl", "updates.csv", "members.csv", "result.json",
        "kept",          "ledgers",      "flight",      "report.html", "run.ini",
        "settings.json", "split.txt",    "tb",          "reference",   "setup"};
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, "setup"));
    if (!file_exists(path)) return ERR_NONE;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        TRY(file_join(path, sizeof path, dir, names[i]));
        TRY(remove_entry(path));
    }
    return ERR_NONE;
}
