/* The work directory of client/session/session_work.h.
 *
 * A kill at any moment loses little: a download continues from its .part file, and an update is
 * used again only if its description exists, names the same starting state, and the file has the
 * recorded digest. The description is written last, so its existence means that the update is
 * complete. */
#include "client/session/session_work.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A description has about a kilobyte. A larger file was not written by this program. */
enum { WORK_JSON_BYTES = 1 << 16, LOCK_BYTES = 32, ID_TEXT_BYTES = 2 * LIMIT_SESSION_BYTES + 1 };

/* One directory per federation and member id, so that one user can run several members. Relative
 * values of the environment variables are ignored, as the XDG convention requires. */
err session_work_find_dir(char *out, size_t bytes, const char *dir, const struct rpc_peer *self)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int length = 0;
    if (dir != NULL)
        length = snprintf(out, bytes, "%s", dir);
    else if (state != NULL && state[0] == '/')
        length = snprintf(out, bytes, "%s/fedlora/%s/%s", state, self->federation, self->id);
    else if (home != NULL && home[0] == '/')
        length =
            snprintf(out, bytes, "%s/.local/state/fedlora/%s/%s", home, self->federation, self->id);
    else
        return err_make(ERR_INPUT, "HOME and XDG_STATE_HOME are not set: expected --work DIR");
    if (length < 0 || (size_t)length >= bytes)
        return err_make(ERR_INPUT, "--work: the path is too long");
    return ERR_NONE;
}

/* The process that holds the lock has written its id into the file. */
static err refuse_second(const struct session_work *work, const struct rpc_peer *self)
{
    char path[LIMIT_PATH_BYTES], *text = NULL;
    size_t size;
    TRY(file_join(path, sizeof path, work->dir, "lock"));
    TRY(file_read_all(&text, &size, path, LOCK_BYTES));
    err e = err_make(ERR_STATE,
                     "%s: in use by another fedlora join as %s (process %ld); expected one at a "
                     "time, or a separate --work DIR for each",
                     work->dir, self->id, strtol(text, NULL, 10));
    free(text);
    return e;
}

/* Two processes with one directory would delete each other's files. */
static err take_lock(struct session_work *work, const struct rpc_peer *self)
{
    char text[LOCK_BYTES];
    TRY(lock_try(&work->lock, work->dir, /*wait*/ false));
    int fd = work->lock.fd;
    if (!fd) return refuse_second(work, self);
    int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)length, 0) == length) return ERR_NONE;
    err e = err_sys(errno, "%s/lock: cannot write", work->dir);
    lock_close(&work->lock);
    return e;
}

/* The name of the machine is hashed too, because a work directory may be copied to another one. A
 * file that cannot be read whole, for example after a full disk, is replaced. */
static err name_session(struct session_work *work)
{
    char path[LIMIT_PATH_BYTES], text[ID_TEXT_BYTES + 256] = "", *kept = NULL;
    size_t size = 0;
    TRY(file_join(path, sizeof path, work->dir, "session"));
    if (file_exists(path)) TRY(file_read_all(&kept, &size, path, WORK_JSON_BYTES));
    bool whole = size == ID_TEXT_BYTES - 1;
    if (whole) memcpy(text, kept, size);
    free(kept);
    if (!whole) {
        uint8_t fresh[LIMIT_SESSION_BYTES];
        randombytes_buf(fresh, sizeof fresh);
        sodium_bin2hex(text, ID_TEXT_BYTES, fresh, sizeof fresh);
        TRY(file_write(path, text, ID_TEXT_BYTES - 1, /*replace*/ true));
    }
    (void)gethostname(text + ID_TEXT_BYTES - 1, 255);
    struct digest id = digest_of(text, strlen(text));
    memcpy(work->id, id.byte, sizeof work->id);
    return ERR_NONE;
}

/* Directories get mode 0700, also one that the user has made, because updates are made from private
 * data. */
err session_work_open(struct session_work *out, const char *dir, const struct rpc_peer *self)
{
    struct session_work work = {0};
    unsigned was;
    TRY(session_work_find_dir(work.dir, sizeof work.dir, dir, self));
    TRY(file_join(work.blobs, sizeof work.blobs, work.dir, "blobs"));
    TRY(file_join(work.updates, sizeof work.updates, work.dir, "updates"));
    TRY(file_make_dirs(work.blobs));
    TRY(file_make_dirs(work.updates));
    TRY(file_make_private(&was, work.dir));
    TRY(take_lock(&work, self));
    err e = name_session(&work);
    if (err_is(e))
        session_work_close(&work);
    else
        *out = work;
    return e;
}

void session_work_close(struct session_work *work)
{
    lock_close(&work->lock);
}

/* Blobs are named by their digest, so two runs with the same frozen factors share the file. */
void session_work_blob(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                       const struct digest *digest)
{
    char name[DIGEST_TEXT_BYTES];
    digest_text(name, digest);
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.safetensors", work->blobs, name);
}

/* Run names contain no '/', which the coordinator and hello() check. */
void session_work_update(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                         const char *run, uint32_t round)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%" PRIu32 ".safetensors", work->updates, run, round);
}

void session_work_kept(char out[LIMIT_PATH_BYTES], const struct session_work *work, const char *run)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.kept.safetensors", work->dir, run);
}

/* A file of another size was not written by this program, or by a different version. */
size_t session_work_epoch(uint8_t out[SESSION_WORK_EPOCH], const struct session_work *work)
{
    char path[LIMIT_PATH_BYTES], *data = NULL;
    size_t size = 0;
    err e = file_join(path, sizeof path, work->dir, "epoch");
    if (!err_is(e)) e = file_read_all(&data, &size, path, SESSION_WORK_EPOCH);
    if (err_is(e) || size != SESSION_WORK_EPOCH)
        size = 0;
    else
        memcpy(out, data, size);
    free(data);
    return size;
}

void session_work_forget_epoch(const struct session_work *work)
{
    char path[LIMIT_PATH_BYTES];
    if (!err_is(file_join(path, sizeof path, work->dir, "epoch"))) (void)file_disk.unlink(path);
}

/* Written only when it has changed, which is once in each start of the coordinator. */
err session_work_keep_epoch(const struct session_work *work, const void *epoch, size_t size)
{
    char path[LIMIT_PATH_BYTES];
    uint8_t have[SESSION_WORK_EPOCH];
    if (size != SESSION_WORK_EPOCH) return ERR_NONE; /* an older coordinator sends none */
    if (session_work_epoch(have, work) == size && !memcmp(have, epoch, size)) return ERR_NONE;
    TRY(file_join(path, sizeof path, work->dir, "epoch"));
    return file_write(path, epoch, size, /*replace*/ true);
}

/* The description has the name of the update, with another suffix. */
static void note_path(char out[LIMIT_PATH_BYTES], const struct session_work *work, const char *run,
                      uint32_t round)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%" PRIu32 ".json", work->updates, run, round);
}

/* JSON, so that a user can read what is stored. file_write() makes it complete or absent. */
err session_work_keep(const struct session_work *work, const char *run, uint32_t round,
                      const struct session_update *u)
{
    char path[LIMIT_PATH_BYTES], digest[DIGEST_TEXT_BYTES], state[DIGEST_TEXT_BYTES];
    struct bytes text = {.max = WORK_JSON_BYTES};
    note_path(path, work, run, round);
    digest_text(digest, &u->digest);
    digest_text(state, &u->state);
    json_t *note =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:s}", "digest", digest, "state", state,
                  "size", (json_int_t)u->size, "examples", (json_int_t)u->examples, "tokens",
                  (json_int_t)u->tokens, "values", (json_int_t)u->values, "train_loss",
                  u->train_loss, "seconds", u->seconds, "promise", u->promise);
    if (note == NULL) return err_make(ERR_MACHINE, "%s: no memory to write it", path);
    err e = json_write(&text, note);
    if (!err_is(e)) e = file_write(path, text.data, text.size, /*replace*/ true);
    json_decref(note);
    bytes_close(&text);
    return e;
}

/* Every field is required: a description of another version is treated as absent, and the round is
 * trained again. */
static err read_note(struct session_update *out, const char *path)
{
    json_t *note = NULL;
    const char *digest = NULL, *state = NULL, *promise = NULL;
    int64_t size = 0, examples = 0, tokens = 0, values = 0;
    struct session_update u = {0};
    TRY(json_open(&note, path, WORK_JSON_BYTES));
    err e;
    TRY_OUT(e, json_get_str(&digest, note, "digest", path));
    TRY_OUT(e, json_get_str(&state, note, "state", path));
    TRY_OUT(e, digest_parse(&u.digest, digest));
    TRY_OUT(e, digest_parse(&u.state, state));
    TRY_OUT(e, json_get_int(&size, note, "size", 0, INT64_MAX, path));
    TRY_OUT(e, json_get_int(&examples, note, "examples", 0, INT64_MAX, path));
    TRY_OUT(e, json_get_int(&tokens, note, "tokens", 0, INT64_MAX, path));
    TRY_OUT(e, json_get_int(&values, note, "values", 0, INT64_MAX, path));
    TRY_OUT(e, json_get_num(&u.train_loss, note, "train_loss", path));
    TRY_OUT(e, json_get_num(&u.seconds, note, "seconds", path));
    TRY_OUT(e, json_get_str(&promise, note, "promise", path));
    snprintf(u.promise, sizeof u.promise, "%s", promise);
    u.size = (uint64_t)size;
    u.examples = (uint64_t)examples;
    u.tokens = (uint64_t)tokens;
    u.values = (uint64_t)values;
    *out = u;
out:
    json_decref(note);
    return e;
}

/* An update from another state belongs to an earlier attempt of the round and would be refused. The
 * digest is compared, because the file may be damaged or may be from a later training whose
 * description was not written yet. */
bool session_work_find(struct session_update *out, const struct session_work *work, const char *run,
                       uint32_t round, const struct digest *state)
{
    char path[LIMIT_PATH_BYTES];
    struct session_update u;
    struct digest have;
    note_path(path, work, run, round);
    if (!file_exists(path) || err_is(read_note(&u, path))) return false;
    session_work_update(path, work, run, round);
    if (!digest_equal(&u.state, state) || err_is(digest_of_file(&have, path)) ||
        !digest_equal(&have, &u.digest))
        return false;
    *out = u;
    return true;
}

/* "RUN.ROUND.json" or "RUN.ROUND.safetensors". Run names may contain dots, so the whole name is
 * compared and the number must follow it directly. */
static bool is_update_before(const char *name, const char *run, uint32_t round)
{
    size_t length = strlen(run);
    char *end = NULL;
    if (strncmp(name, run, length) != 0 || name[length] != '.') return false;
    unsigned long number = strtoul(name + length + 1, &end, 10);
    if (end == name + length + 1) return false;
    return (strcmp(end, ".json") == 0 || strcmp(end, ".safetensors") == 0) && number < round;
}

/* Failures are ignored: a file that stays costs only space. */
void session_work_drop_updates(const struct session_work *work, const char *run, uint32_t round)
{
    char path[LIMIT_PATH_BYTES];
    DIR *dir = opendir(work->updates);
    if (dir == NULL) return;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (is_update_before(entry->d_name, run, round) &&
            !err_is(file_join(path, sizeof path, work->updates, entry->d_name)))
            (void)file_disk.unlink(path);
    closedir(dir);
}

static bool is_kept(const char *name, const struct digest *keep, size_t count)
{
    char text[DIGEST_TEXT_BYTES];
    for (size_t i = 0; i < count; i++) {
        digest_text(text, &keep[i]);
        if (strncmp(name, text, DIGEST_TEXT_BYTES - 1) == 0) return true;
    }
    return false;
}

/* Compared by the digest in the name, so the .part file of a wanted blob is kept too. */
void session_work_drop_blobs(const struct session_work *work, const struct digest *keep,
                             size_t count)
{
    char path[LIMIT_PATH_BYTES];
    DIR *dir = opendir(work->blobs);
    if (dir == NULL) return;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        if (name[0] == '.' || is_kept(name, keep, count)) continue;
        if (!err_is(file_join(path, sizeof path, work->blobs, name))) (void)file_disk.unlink(path);
    }
    closedir(dir);
}

/* ---------------------------------------------------------------- marks */

static const char mark_suffix[] = ".open";

static void mark_path(char out[LIMIT_PATH_BYTES], const struct session_work *work, const char *run)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s%s", work->dir, run, mark_suffix);
}

err session_work_mark(const struct session_work *work, const char *run)
{
    char path[LIMIT_PATH_BYTES];
    mark_path(path, work, run);
    return file_write(path, "", 0, /*replace*/ true);
}

void session_work_unmark(const struct session_work *work, const char *run)
{
    char path[LIMIT_PATH_BYTES];
    mark_path(path, work, run);
    (void)file_disk.unlink(path);
}

/* True if the file is a mark; `run` gets its run. */
static bool read_mark(char run[LIMIT_NAME_BYTES], const char *name)
{
    size_t length = strlen(name), suffix = sizeof mark_suffix - 1;
    if (length <= suffix || length - suffix >= LIMIT_NAME_BYTES ||
        strcmp(name + length - suffix, mark_suffix) != 0)
        return false;
    snprintf(run, LIMIT_NAME_BYTES, "%.*s", (int)(length - suffix), name);
    return text_is_name(run, LIMIT_NAME_BYTES - 1);
}

err session_work_marked(const char ***out, size_t *count, const struct session_work *work,
                        struct arena *arena)
{
    char run[LIMIT_NAME_BYTES];
    const char **list = NULL;
    size_t n = 0;
    TRY(arena_take(&list, arena, LIMIT_RUNS, sizeof *list));
    DIR *dir = opendir(work->dir);
    if (dir == NULL) return err_sys(errno, "%s", work->dir);
    err e = ERR_NONE;
    for (const struct dirent *entry; n < LIMIT_RUNS && (entry = readdir(dir)) && !err_is(e);)
        if (read_mark(run, entry->d_name)) e = arena_text(&list[n++], arena, run, strlen(run));
    closedir(dir);
    if (err_is(e)) return e;
    qsort(list, n, sizeof *list, text_order);
    *out = list;
    *count = n;
    return ERR_NONE;
}
