#include "coordinator/audit/audit_parts.h"

#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PENDING_BYTES_MAX = 8 << 20, /* about 20,000 lines that could not be written yet */
    AHEAD_BYTES = 1 << 20,       /* reserved on the disk behind the last line */
    HEAD_MS = 60 * 60 * 1000,
    STEP_MS = 2000, /* a clock that moves more than this against the monotonic one was set */
    DENIED_MS = 1000,
};

uint64_t (*audit_wall_ms)(void) = text_wall_ms;
uint64_t (*audit_now_ms)(void) = text_now_ms;

/* ---- lines ---- */

/* After the month has changed, lines go to the buffer of the new file. The old file gets its own
 * lines first, so that both files are in the order of the numbers. */
static struct bytes *buffer_of(struct audit *a)
{
    return *a->next_file ? &a->next : &a->pending;
}

/* A peer whose handshake failed has no role. */
static const char *role_of(const struct rpc_peer *peer)
{
    if (!peer) return "coordinator";
    return peer->role ? rpc_role_name(peer->role) : "";
}

/* The line gets its number and hash here, and not when it is written: so a line that waits for the
 * disk cannot be left out without a trace. */
static err add_line(struct audit *a, const struct audit_entry *e, uint64_t now)
{
    const struct rpc_peer *peer = e->peer;
    const struct audit_line line = {.time_ms = now,
                                    .role = role_of(peer),
                                    .id = peer ? peer->id : "",
                                    .serial = peer ? peer->serial : "",
                                    .address = peer ? peer->address : "",
                                    .action = e->action,
                                    .object = e->object,
                                    .outcome = e->outcome,
                                    .detail = e->detail,
                                    .details = e->details};
    return audit_line_make(buffer_of(a), &a->head, &line, NULL);
}

/* An hour without any line needs no head, because the last one covers everything. A quiet service
 * therefore writes nothing. */
static err add_head(struct audit *a, uint64_t now)
{
    const struct audit_line line = {.time_ms = now, .role = "coordinator", .outcome = "ok"};
    if (a->head.seq == a->signed_seq) return ERR_NONE;
    TRY(audit_line_make(buffer_of(a), &a->head, &line, &a->key));
    a->signed_seq = a->head.seq;
    a->signed_ms = audit_now_ms();
    return ERR_NONE;
}

/* A file is ended by a signed head, so that it can be checked without the ones after it. A clock
 * that was set back continues the newest file, whatever its month. While the end of one file waits
 * for the disk, no second one is begun. */
static err rotate(struct audit *a, uint64_t now)
{
    char file[AUDIT_LINE_FILE_BYTES];
    audit_line_file(file, now);
    if (*a->next_file || (*a->file && strcmp(file, a->file) <= 0)) return ERR_NONE;
    TRY(add_head(a, now));
    memcpy(a->next_file, file, sizeof file);
    return ERR_NONE;
}

/* The lost lines have no numbers, so the chain has no gap; this line is the only trace of them. */
static err add_lost(struct audit *a, uint64_t now)
{
    const struct log_field count = LOG_INT("lines", a->lost);
    const struct audit_entry entry = {
        .action = "audit.lost", .outcome = "failed", .detail = &count, .details = 1};
    if (!a->lost) return ERR_NONE;
    TRY(add_line(a, &entry, now));
    a->lost = 0;
    return ERR_NONE;
}

/* Nothing is returned, because the action has happened already. audit_ready() is the place to
 * refuse. */
void audit_add(struct audit *a, const struct audit_entry *entry)
{
    if (!a) return;
    uint64_t now = audit_wall_ms();
    err e = rotate(a, now);
    if (!err_is(e)) e = add_lost(a, now);
    if (!err_is(e)) e = add_line(a, entry, now);
    if (err_is(e)) a->lost++;
}

/* ---- denials ---- */

/* Only copies are kept, because a flood of denials must not cost an allocation each. The mutex is
 * held for a copy of some hundred bytes: handshakes fail in the thread of the front. */
void audit_denied(struct audit *a, const struct rpc_peer *peer, const char *what, const char *why)
{
    if (!a) return;
    struct denied *d = &a->denied;
    pthread_mutex_lock(&d->mutex);
    if (d->count++ == 0) {
        d->peer = *peer;
        snprintf(d->what, sizeof d->what, "%s", what);
        snprintf(d->why, sizeof d->why, "%s", why);
    }
    pthread_mutex_unlock(&d->mutex);
}

/* The next line of denials, if there is one and a second has passed since the last. */
static bool take_denied(struct denied *out, struct audit *a, uint64_t now)
{
    struct denied *d = &a->denied;
    pthread_mutex_lock(&d->mutex);
    bool due = d->count && (!d->written_ms || now - d->written_ms >= DENIED_MS);
    if (due) {
        *out = *d;
        d->count = 0;
        d->written_ms = now;
    }
    pthread_mutex_unlock(&d->mutex);
    return due;
}

/* The first denial of a second is described, and the others are counted. An attacker who wants to
 * hide among them still leaves the count. */
static void add_denied(struct audit *a)
{
    struct denied d;
    if (!take_denied(&d, a, audit_now_ms())) return;
    AUDIT(a, &d.peer, "call.denied", d.what, "refused", LOG_STR("reason", d.why),
          LOG_INT("left_out", d.count - 1));
}

/* ---- the disk ---- */

/* The descriptor of the file before is closed only once the new one is usable, so that a failure
 * leaves the log as it was. */
static err open_file(struct audit *a, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    struct stat st;
    TRY(file_join(path, sizeof path, a->dir, name));
    int fd = file_disk.open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return err_sys(errno, "%s", path);
    if (fstat(fd, &st) != 0) {
        file_disk.close(fd);
        return err_sys(errno, "%s", path);
    }
    /* A new name must survive a power cut too, or the next start would continue the older file. */
    err e = st.st_size == 0 ? file_sync_dir(a->dir) : ERR_NONE;
    if (err_is(e)) {
        file_disk.close(fd);
        return e;
    }
    if (a->fd >= 0) file_disk.close(a->fd);
    a->fd = fd;
    snprintf(a->file, sizeof a->file, "%s", name);
    a->size = a->reserved = (uint64_t)st.st_size;
    return ERR_NONE;
}

/* A write may be cut short by a full disk; the rest then fails, and write_pending() cuts the file
 * back. */
static err write_all(int fd, const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = file_disk.write(fd, data + at, size - at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return err_sys(n ? errno : EIO, "%s", "the audit log");
    }
    return ERR_NONE;
}

/* After a failure the file is cut back to its durable length before anything else is written. */
static err write_pending(struct audit *a, struct bytes *lines)
{
    if (lines->size == 0) return ERR_NONE;
    if (a->torn && file_disk.ftruncate(a->fd, (off_t)a->size) != 0)
        return err_sys(errno, "%s/%s", a->dir, a->file);
    a->torn = true;
    err e = write_all(a->fd, lines->data, lines->size);
    if (!err_is(e) && file_disk.fsync(a->fd) != 0) e = err_sys(errno, "%s", "the audit log");
    if (err_is(e)) return err_in(e, "%s/%s", a->dir, a->file);
    a->torn = false;
    a->size += lines->size;
    bytes_clear(lines);
    return ERR_NONE;
}

/* The file of a month is complete, with its signed head, before the next one is made. A crash in
 * between leaves a log that continues in the old file or in an empty new one, and both are found by
 * continue_log(). */
err audit_flush(struct audit *a)
{
    if (!a) return ERR_NONE;
    add_denied(a);
    TRY(write_pending(a, &a->pending));
    if (!*a->next_file) return ERR_NONE;
    TRY(open_file(a, a->next_file));
    *a->next_file = 0;
    const struct bytes empty = a->pending;
    a->pending = a->next;
    a->next = empty;
    return write_pending(a, &a->pending);
}

bool audit_pending(const struct audit *a)
{
    return a && (a->pending.size || a->next.size);
}

/* Not every file system can reserve room. Such a disk may be full when a line is written; the line
 * then waits in memory. */
err audit_ready(struct audit *a)
{
    if (!a) return ERR_NONE;
    if (a->torn || a->lost) TRY(audit_flush(a));
    uint64_t wanted = a->size + a->pending.size + AHEAD_BYTES / 2;
    if (a->fd < 0 || wanted <= a->reserved) return ERR_NONE;
    uint64_t end = a->size + a->pending.size + AHEAD_BYTES;
    if (fallocate(a->fd, FALLOC_FL_KEEP_SIZE, (off_t)a->size, (off_t)(end - a->size)) != 0 &&
        (errno == ENOSPC || errno == EDQUOT))
        return err_sys(errno, "%s/%s: no room for the line of this action", a->dir, a->file);
    a->reserved = end;
    return ERR_NONE;
}

/* ---- time ---- */

/* Times in a log are only as good as the clock, so an auditor must see each time it was set. */
static void add_step(struct audit *a, uint64_t wall, int64_t by)
{
    AUDIT(a, NULL, "clock.stepped", "", "ok", LOG_INT("by_ms", by),
          LOG_INT("was_ms", (int64_t)wall - by));
}

/* The monotonic clock is not set by anyone, so what the wall clock moves more than it is a step. */
void audit_tick(struct audit *a)
{
    if (!a) return;
    uint64_t wall = audit_wall_ms(), now = audit_now_ms();
    int64_t by = (int64_t)(wall - a->wall_ms) - (int64_t)(now - a->clock_ms);
    a->wall_ms = wall;
    a->clock_ms = now;
    if (by > STEP_MS || by < -STEP_MS) add_step(a, wall, by);
    if (now - a->signed_ms < HEAD_MS) return;
    err e = add_head(a, wall);
    (void)e; /* the memory is full; tried again at the next tick */
}

/* ---- open and close ---- */

/* The last whole line of a file, and the length of the file up to its end; *size 0: it has none. */
static err last_line(const char **line, size_t *line_size, size_t *size, const struct file_map *map)
{
    const char *text = (const char *)map->data;
    size_t end = map->size;
    while (end && text[end - 1] != '\n')
        end--;
    size_t start = end ? end - 1 : 0;
    while (start && text[start - 1] != '\n')
        start--;
    if (map->size - end > AUDIT_LINE_BYTES || end - start > AUDIT_LINE_BYTES)
        return err_make(ERR_INPUT, "the last line has more than %d bytes", AUDIT_LINE_BYTES);
    *line = text + start;
    *line_size = end ? end - 1 - start : 0;
    *size = end;
    return ERR_NONE;
}

/* Nothing was answered for a line that a crash cut off, because answers wait for the flush. */
static err read_end(size_t *size, char time[AUDIT_LINE_TIME_BYTES], struct audit *a,
                    const struct file_map *map)
{
    struct audit_line_read read = {0};
    const char *line = NULL;
    size_t line_size = 0;
    TRY(last_line(&line, &line_size, size, map));
    if (*size == 0) return ERR_NONE;
    TRY(audit_line_parse(&read, line, line_size));
    if (!read.whole) return err_make(ERR_INPUT, "its last line was changed");
    a->head = (struct audit_line_head){read.seq, read.hash};
    a->signed_seq = read.signs ? read.seq : 0;
    memcpy(time, read.time, AUDIT_LINE_TIME_BYTES);
    return ERR_NONE;
}

/* A log whose end was damaged is not continued: a new chain behind it would look like the damage
 * was ours. The operator decides, and keeps the evidence. */
static err read_file(size_t *size, char time[AUDIT_LINE_TIME_BYTES], struct audit *a,
                     const char *name)
{
    char path[LIMIT_PATH_BYTES];
    struct file_map map = {0};
    TRY(file_join(path, sizeof path, a->dir, name));
    TRY(file_map_open(&map, path));
    err e = read_end(size, time, a, &map);
    file_map_close(&map);
    if (!err_is(e)) return e;
    return err_in(e, "%s: cannot be continued; keep a copy, move the folder away and start again",
                  path);
}

/* The newest file may be empty, or hold only a part of its first line, if a crash came just after
 * it was made. The line to continue from is then in the one before. */
static err continue_log(struct audit *a, char time[AUDIT_LINE_TIME_BYTES])
{
    char(*file)[AUDIT_LINE_FILE_BYTES] = NULL;
    struct arena arena = {0};
    size_t count = 0, size = 0;
    err e = ERR_NONE;
    TRY_OUT(e, audit_line_files(&file, &count, a->dir, &arena));
    if (count) {
        TRY_OUT(e, read_file(&size, time, a, file[count - 1]));
        TRY_OUT(e, open_file(a, file[count - 1]));
        a->torn = a->size > size;
        a->size = size;
    }
    for (size_t n = count; n > 1 && !a->head.seq; n--)
        TRY_OUT(e, read_file(&size, time, a, file[n - 2]));
    if (a->torn && file_disk.ftruncate(a->fd, (off_t)a->size) != 0)
        e = err_sys(errno, "%s/%s", a->dir, a->file);
    a->torn = err_is(e);
out:
    arena_close(&arena);
    return e;
}

/* The public half is written at each start, because an operator may have replaced the key. */
static err open_key(struct audit *a, const char *key)
{
    char path[LIMIT_PATH_BYTES], public[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, a->dir, "audit.key"));
    TRY(file_join(public, sizeof public, a->dir, "audit.pub"));
    if (!key || !*key) key = path;
    if (!file_exists(key)) TRY(ledger_key_make(key, public));
    TRY(ledger_key_open(&a->key, key));
    return ledger_public_write(a->key.public, public);
}

/* A clock that is behind the last line was set back while the service was not running. */
static void compare_time(struct audit *a, const char *last)
{
    char now[AUDIT_LINE_TIME_BYTES];
    a->wall_ms = audit_wall_ms();
    a->clock_ms = a->signed_ms = audit_now_ms();
    audit_line_time(now, a->wall_ms + STEP_MS);
    if (strcmp(now, last) < 0)
        AUDIT(a, NULL, "clock.stepped", "", "ok", LOG_STR("last_line", last));
}

/* The key comes before the log, so that no file is touched that could not be signed later. */
err audit_open(struct audit **out, const char *data, const char *key)
{
    char time[AUDIT_LINE_TIME_BYTES] = "";
    struct audit *a = calloc(1, sizeof *a);
    err e = ERR_NONE;
    if (!a) return err_sys(ENOMEM, "the audit log");
    a->fd = -1;
    a->pending.max = a->next.max = PENDING_BYTES_MAX;
    pthread_mutex_init(&a->denied.mutex, NULL);
    TRY_OUT(e, file_join(a->dir, sizeof a->dir, data, "audit"));
    TRY_OUT(e, file_make_dirs(a->dir));
    TRY_OUT(e, open_key(a, key));
    TRY_OUT(e, continue_log(a, time));
    compare_time(a, time);
    *out = a;
    return ERR_NONE;
out:
    a->signed_seq = a->head.seq; /* nothing to sign */
    audit_close(a);
    return e;
}

/* A head at the end: after an orderly stop every line is proven. */
void audit_close(struct audit *a)
{
    if (!a) return;
    err e = add_head(a, audit_wall_ms());
    if (!err_is(e)) e = audit_flush(a);
    (void)e; /* the next start signs what follows */
    if (a->fd >= 0) file_disk.close(a->fd);
    bytes_close(&a->pending);
    bytes_close(&a->next);
    ledger_key_close(&a->key);
    pthread_mutex_destroy(&a->denied.mutex);
    free(a);
}

struct audit_line_head audit_head(const struct audit *a)
{
    return a ? a->head : (struct audit_line_head){0};
}

const struct ledger_key *audit_key(const struct audit *a)
{
    return a ? &a->key : NULL;
}
