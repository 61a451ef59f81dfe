/* Reading an audit log that is being written: only what is durable. */
#include "coordinator/audit/audit_parts.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file to read: the one of the place, or for a zeroed place the newest that may have a line of
 * that time. *at: its index; `count` if there is none. */
static err find_file(size_t *at, const struct audit_place *place,
                     char (*file)[AUDIT_LINE_FILE_BYTES], size_t count, uint64_t since_ms)
{
    char since[AUDIT_LINE_FILE_BYTES];
    size_t n = 0;
    if (*place->file) {
        while (n < count && strcmp(file[n], place->file) != 0)
            n++;
        if (n == count)
            return err_make(ERR_INPUT, "the audit log has no file \"%.15s\"", place->file);
    } else {
        audit_line_file(since, since_ms);
        while (n + 1 < count && strcmp(file[n + 1], since) <= 0)
            n++;
    }
    *at = n;
    return ERR_NONE;
}

/* pread(), because the descriptor of the writer appends and must not move. */
static err read_at(struct bytes *out, int fd, uint64_t offset, size_t size)
{
    uint8_t part[1 << 16];
    while (size) {
        ssize_t n = pread(fd, part, size < sizeof part ? size : sizeof part, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n < 0 ? errno : EIO, "reading the audit log");
        TRY(bytes_append(out, part, (size_t)n));
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return ERR_NONE;
}

/* Whole lines from an offset on, at which a line starts; none at the end of the file. */
static err read_lines(struct bytes *out, const struct audit *a, const char *name, uint64_t offset,
                      size_t most)
{
    char path[LIMIT_PATH_BYTES];
    struct stat st;
    size_t before = out->size;
    TRY(file_join(path, sizeof path, a->dir, name));
    int fd = file_disk.open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &st) != 0) {
        err e = err_sys(errno, "%s", path);
        if (fd >= 0) file_disk.close(fd);
        return e;
    }
    /* Of the newest file only what is durable. */
    uint64_t size = strcmp(name, a->file) ? (uint64_t)st.st_size : a->size;
    uint64_t left = offset < size ? size - offset : 0;
    err e = read_at(out, fd, offset, left < most ? (size_t)left : most);
    file_disk.close(fd);
    while (!err_is(e) && out->size > before && out->data[out->size - 1] != '\n')
        out->size--;
    if (err_is(e)) out->size = before;
    if (out->data) out->data[out->size] = 0;
    return e;
}

/* Empty files are stepped over, so that an empty answer means the end of the log. The place behind
 * the last line stays valid while lines are added. */
err audit_read(struct bytes *out, struct audit_place *place, struct audit *a, uint64_t since_ms,
               size_t most)
{
    char(*file)[AUDIT_LINE_FILE_BYTES] = NULL;
    struct arena arena = {0};
    size_t count = 0, at = 0, before = out->size;
    REQUIRE(most >= AUDIT_LINE_BYTES);
    if (!a) return ERR_NONE;
    err e = audit_line_files(&file, &count, a->dir, &arena);
    if (!err_is(e)) e = find_file(&at, place, file, count, since_ms);
    uint64_t offset = *place->file ? place->offset : 0;
    while (!err_is(e) && at < count && out->size == before) {
        e = read_lines(out, a, file[at], offset, most);
        if (err_is(e)) break;
        snprintf(place->file, sizeof place->file, "%s", file[at]);
        place->offset = offset + (out->size - before);
        at++;
        offset = 0;
    }
    arena_close(&arena);
    return e;
}

static void scan_text(const char *text, size_t size, const char *begins,
                      void (*line)(void *context, const char *text, size_t size), void *context)
{
    size_t length = strlen(begins);
    for (size_t at = 0; at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        if (!end) return;
        size_t n = (size_t)(end - (text + at));
        if (n >= length && !memcmp(text + at, begins, length)) line(context, text + at, n);
        at += n + 1;
    }
}

/* By a map of the file, because a month may have hundreds of megabytes. */
err audit_scan(struct audit *a, const char *begins,
               void (*line)(void *context, const char *text, size_t size), void *context)
{
    char(*file)[AUDIT_LINE_FILE_BYTES] = NULL, path[LIMIT_PATH_BYTES];
    struct arena arena = {0};
    size_t count = 0;
    if (!a) return ERR_NONE;
    err e = audit_line_files(&file, &count, a->dir, &arena);
    for (size_t i = count > 2 ? count - 2 : 0; i < count && !err_is(e); i++) {
        struct file_map map = {0};
        e = file_join(path, sizeof path, a->dir, file[i]);
        if (!err_is(e)) e = file_map_open(&map, path);
        if (!err_is(e)) scan_text((const char *)map.data, map.size, begins, line, context);
        file_map_close(&map);
    }
    arena_close(&arena);
    return e;
}
