#include "privacy/ledger/ledger_file.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

enum { LOCK_TRIES = 200, LOCK_PAUSE_MS = 50 };

static err lock(struct ledger_file *f)
{
    f->fd = file_disk.open(f->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        f->fd = 0;
        return err_sys(errno, "%s", f->path);
    }
    for (int i = 0; flock(f->fd, LOCK_EX | LOCK_NB) != 0; i++) {
        if (errno != EWOULDBLOCK && errno != EINTR) return err_sys(errno, "%s: lock", f->path);
        if (i == LOCK_TRIES)
            return err_make(ERR_LIMIT, "%s: another process has locked it for %d seconds", f->path,
                            LOCK_TRIES * LOCK_PAUSE_MS / 1000);
        nanosleep(&(struct timespec){.tv_nsec = LOCK_PAUSE_MS * 1000000L}, NULL);
    }
    return ERR_NONE;
}

/* Cuts off an incomplete last line. */
static err drop_torn_line(const struct ledger_file *f, const char *text, size_t *size)
{
    size_t whole = *size;
    while (whole && text[whole - 1] != '\n')
        whole--;
    if (whole == *size || whole == 0)
        return ERR_NONE; /* only a part of the first line: ledger_read() refuses it */
    *size = whole;
    if (file_disk.ftruncate(f->fd, (off_t)whole) != 0 || file_disk.fsync(f->fd) != 0)
        return err_sys(errno, "%s", f->path);
    return ERR_NONE;
}

static err append(const struct ledger_file *f, const struct bytes *line)
{
    for (size_t at = 0; at < line->size;) {
        ssize_t n = file_disk.write(f->fd, line->data + at, line->size - at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return err_sys(n ? errno : EIO, "%s", f->path);
    }
    return file_disk.fsync(f->fd) != 0 ? err_sys(errno, "%s", f->path) : ERR_NONE;
}

/* Flushes the folder too. If the file were missing after a power cut, a new ledger would be created
 * and the spent budget forgotten. */
static err sync_folder(const char *path)
{
    char folder[LIMIT_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    size_t size = slash ? (size_t)(slash - path) + (slash == path) : 1;
    memcpy(folder, slash ? path : ".", size);
    folder[size] = 0;
    return file_sync_dir(folder);
}

static err begin(struct ledger_file *f, const struct ledger_terms *terms)
{
    struct bytes line = {.max = LEDGER_LINE_BYTES};
    struct ledger_head head = {0};
    err e = ledger_start(&line, &head, &f->key, terms);
    if (!err_is(e)) e = append(f, &line);
    if (!err_is(e)) e = sync_folder(f->path);
    if (!err_is(e)) e = ledger_read(&f->ledger, (const char *)line.data, line.size, f->path);
    bytes_close(&line);
    return e;
}

static err go_on(struct ledger_file *f, const char *text, size_t size)
{
    TRY(drop_torn_line(f, text, &size));
    return ledger_read(&f->ledger, text, size, f->path);
}

static err read_whole(struct ledger_file *f, const struct ledger_terms *terms)
{
    char *text = NULL;
    size_t size = 0;
    err e = ERR_NONE;
    TRY(file_read_all(&text, &size, f->path, LEDGER_FILE_BYTES_MAX));
    TRY_OUT(e, size ? go_on(f, text, size) : begin(f, terms));
    TRY_OUT(e, spend_open(&f->spend, f->ledger.terms.epsilon, f->ledger.terms.delta));
    f->terms = f->ledger.in_force;
    f->head = f->ledger.head;
    for (size_t i = 0; i < f->ledger.count; i++)
        if (!strcmp(f->ledger.entry[i].kind, "release"))
            TRY_OUT(e, spend_charge(&f->spend, &f->ledger.entry[i].release.charged));
out:
    free(text);
    return e;
}

static err check_owner(const struct ledger_file *f, const struct ledger_terms *terms)
{
    if (memcmp(f->ledger.public, f->key.public, sizeof f->key.public) != 0)
        return err_make(ERR_INPUT, "%s: was created with another key", f->path);
    if (f->ledger.terms.unit != terms->unit)
        return err_make(ERR_INPUT, "%s: has another unit of privacy; create a new ledger", f->path);
    return ledger_check_simulated(&f->ledger, terms->simulated, f->path);
}

err ledger_file_open(struct ledger_file *out, const char *path, const char *key_path,
                     const struct ledger_terms *terms)
{
    struct ledger_file f = {0};
    if (strlen(path) >= sizeof f.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    memcpy(f.path, path, strlen(path) + 1);
    TRY(ledger_key_open(&f.key, key_path));
    err e = lock(&f);
    if (!err_is(e)) e = read_whole(&f, terms);
    if (!err_is(e)) e = check_owner(&f, terms);
    if (err_is(e))
        ledger_file_close(&f);
    else
        *out = f;
    return e;
}

err ledger_file_allows(struct spend_total *out, const struct ledger_file *f,
                       const struct account_event *event)
{
    err e = spend_allows(out, &f->spend, event);
    return err_is(e) ? err_in(e, "%s", f->path) : e;
}

/* Appends a line whose head is `head`. */
static err add(struct ledger_file *f, const struct bytes *line, const struct ledger_head *head)
{
    err e = append(f, line);
    f->unsure = err_is(e);
    if (!err_is(e)) f->head = *head;
    return e;
}

static err check_sure(const struct ledger_file *f)
{
    if (!f->unsure) return ERR_NONE;
    return err_make(ERR_STATE, "%s: a write has failed; open the ledger again", f->path);
}

err ledger_file_plan(struct ledger_file *f, const struct ledger_terms *terms)
{
    struct bytes line = {.max = LEDGER_LINE_BYTES};
    struct ledger_head head = f->head;
    TRY(check_sure(f));
    if (ledger_same_plan(f->terms, terms)) return ERR_NONE;
    if (f->ledger.terms.delta * (double)terms->units >= 1)
        return err_make(
            ERR_INPUT,
            "%s: its delta %.3g is not below one over the %llu records; create a new ledger",
            f->path, f->ledger.terms.delta, (unsigned long long)terms->units);
    err e = ledger_plan(&line, &head, &f->key, terms);
    if (!err_is(e)) e = add(f, &line, &head);
    if (!err_is(e)) f->terms = terms;
    bytes_close(&line);
    return e;
}

err ledger_file_charge(struct ledger_file *f, struct ledger_release *release)
{
    struct bytes line = {.max = LEDGER_LINE_BYTES};
    struct ledger_head head = f->head;
    struct spend_total total;
    TRY(check_sure(f));
    TRY(ledger_file_allows(&total, f, &release->charged));
    release->epsilon = total.epsilon;
    release->rdp = total.rdp;
    release->order = total.rdp_order;
    err e = ledger_add(&line, &head, &f->key, release);
    if (!err_is(e)) e = add(f, &line, &head);
    if (!err_is(e)) e = spend_charge(&f->spend, &release->charged);
    bytes_close(&line);
    return e;
}

void ledger_file_close(struct ledger_file *f)
{
    if (f->fd > 0) file_disk.close(f->fd);
    spend_close(&f->spend);
    ledger_close(&f->ledger);
    ledger_key_close(&f->key);
    *f = (struct ledger_file){0};
}
