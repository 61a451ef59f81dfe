#include "client/session/session_sent.h"

#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char domain[15] = "fedlora sent 1"; /* with its zero */
static const char file_name[] = "sent.jsonl", head_name[] = "sent.head";
enum {
    HEAD_BYTES = 128,
    MESSAGE_BYTES = 1 << 21,
    VALUES = 4096,
    TAIL_BYTES = 2 * SESSION_SENT_LINE_BYTES,
};
/* Of a whole journal; a line has about 400 bytes, so this is about a million calls. */
#define SENT_BYTES_MAX ((size_t)1 << 29)

static struct digest hash_of(const void *text, size_t size)
{
    return digest_of_in(domain, sizeof domain, text, size);
}

/* ---- one line */

static int set_digest(json_t *o, const char *key, const struct digest *d)
{
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, d);
    return json_object_set_new(o, key, json_string(text));
}

static int set_int(json_t *o, const char *key, uint64_t value)
{
    return json_object_set_new(o, key, json_integer((json_int_t)value));
}

static int set_time(json_t *o)
{
    char text[32] = "";
    time_t now = (time_t)(text_wall_ms() / 1000);
    struct tm tm;
    if (gmtime_r(&now, &tm)) strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return json_object_set_new(o, "time", json_string(text));
}

/* The line of a call as JSON, without its hash. NULL: no memory. */
static json_t *line_of(const struct session_sent *sent, const struct session_sent_call *c)
{
    json_t *o = json_object();
    int bad = !o || set_int(o, "seq", sent->lines + 1) || set_time(o) ||
              set_digest(o, "prev", &sent->hash) || set_digest(o, "digest", &c->digest) ||
              set_int(o, "bytes", c->bytes) ||
              json_object_set_new(o, "kind", json_string(c->kind)) ||
              json_object_set_new(o, "run", json_string(c->run ? c->run : ""));
    if (!bad && c->round) bad = set_int(o, "round", c->round);
    if (!bad && c->has_rows) bad = set_int(o, "rows", c->rows);
    if (!bad && c->tensors)
        bad = set_int(o, "tensors", c->tensors) ||
              json_object_set_new(o, "norm", json_real(isfinite(c->norm) ? c->norm : -1));
    if (!bad) return o;
    json_decref(o);
    return NULL;
}

/* Appends the canonical text, and sets its hash. Takes over `o`. */
static err finish_line(struct bytes *out, struct digest *hash, json_t *o)
{
    struct bytes plain = {.max = SESSION_SENT_LINE_BYTES};
    if (!o) return err_make(ERR_MACHINE, "%s: no memory for a line", file_name);
    err e = json_write(&plain, o);
    if (!err_is(e)) {
        *hash = hash_of(plain.data, plain.size);
        if (set_digest(o, "hash", hash)) e = err_make(ERR_MACHINE, "no memory for a line");
    }
    if (!err_is(e)) e = json_write(out, o);
    if (!err_is(e)) e = bytes_append(out, "\n", 1);
    bytes_close(&plain);
    json_decref(o);
    return e;
}

/* ---- writing */

static err append(const struct session_sent *sent, const struct bytes *line)
{
    for (size_t at = 0; at < line->size;) {
        ssize_t n = file_disk.write(sent->fd, line->data + at, line->size - at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return err_sys(n ? errno : ENOSPC, "%s: cannot write", sent->path);
    }
    if (file_disk.fsync(sent->fd) != 0) return err_sys(errno, "%s: cannot flush", sent->path);
    return ERR_NONE;
}

static err write_head(const struct session_sent *sent)
{
    char text[HEAD_BYTES], hash[DIGEST_TEXT_BYTES];
    digest_text(hash, &sent->hash);
    int length = snprintf(text, sizeof text, "%" PRIu64 " %s\n", sent->lines, hash);
    return file_write(sent->head_path, text, (size_t)length, /*replace*/ true);
}

/* After a failed write the line is tried again over the same place, because a half of it may be in
 * the file. */
static err cut_rest(struct session_sent *sent)
{
    struct session_sent again = {0};
    if (!sent->unsure) return ERR_NONE;
    char work[LIMIT_PATH_BYTES];
    snprintf(work, sizeof work, "%.*s", (int)(strlen(sent->path) - sizeof file_name), sent->path);
    TRY(session_sent_open(&again, work, *sent->keep ? sent->keep : NULL));
    session_sent_close(sent);
    *sent = again;
    return ERR_NONE;
}

err session_sent_add(struct session_sent *sent, const struct session_sent_call *call)
{
    struct bytes line = {.max = SESSION_SENT_LINE_BYTES};
    struct digest hash;
    TRY(cut_rest(sent));
    err e = finish_line(&line, &hash, line_of(sent, call));
    if (!err_is(e)) {
        e = append(sent, &line);
        sent->unsure = err_is(e);
    }
    if (!err_is(e)) {
        sent->hash = hash;
        sent->lines++;
        e = write_head(sent);
    }
    bytes_close(&line);
    return e;
}

err session_sent_message(struct session_sent *sent, const struct session_sent_call *given,
                         const ProtobufCMessage *message)
{
    struct bytes packed = {.max = MESSAGE_BYTES};
    struct session_sent_call call = *given;
    err e = message_pack(&packed, message);
    if (!err_is(e)) {
        call.bytes = packed.size;
        call.digest = digest_of(packed.data, packed.size);
        e = session_sent_add(sent, &call);
    }
    bytes_close(&packed);
    return e;
}

/* ---- update files */

static err measure(struct session_sent_call *call, const char *path)
{
    struct safetensors st = {0};
    float value[VALUES];
    double sum = 0;
    err e = ERR_NONE;
    TRY(safetensors_open(&st, path));
    for (size_t i = 0; i < st.count && !err_is(e); i++) {
        const struct tensor *t = &st.tensor[i];
        size_t width = t->count ? t->size / t->count : 0;
        for (size_t at = 0; at < t->count && !err_is(e); at += VALUES) {
            size_t n = t->count - at < VALUES ? t->count - at : VALUES;
            e = dtype_to_f32(value, (const char *)t->data + at * width, t->dtype, n);
            for (size_t k = 0; k < n && !err_is(e); k++)
                sum += (double)value[k] * (double)value[k];
        }
    }
    call->tensors = st.count;
    call->norm = sqrt(sum);
    safetensors_close(&st);
    return e;
}

/* KEEP/RUN.ROUND.DIGEST.safetensors; the digest makes a second update of a round another file. */
static err keep_file(const struct session_sent *sent, const struct session_sent_call *call,
                     const char *path)
{
    char digest[DIGEST_TEXT_BYTES], name[LIMIT_NAME_BYTES + 64], to[LIMIT_PATH_BYTES];
    struct file_map map = {0};
    digest_text(digest, &call->digest);
    snprintf(name, sizeof name, "%s.%" PRIu32 ".%.16s.safetensors", call->run, call->round, digest);
    TRY(file_join(to, sizeof to, sent->keep, name));
    if (file_exists(to)) return ERR_NONE;
    TRY(file_map_open(&map, path));
    err e = file_write(to, map.data, map.size, /*replace*/ true);
    file_map_close(&map);
    return e;
}

err session_sent_file(struct session_sent *sent, const struct session_sent_call *given,
                      const char *path)
{
    struct session_sent_call call = *given;
    TRY(measure(&call, path));
    if (*sent->keep) TRY(keep_file(sent, &call, path));
    return session_sent_add(sent, &call);
}

/* ---- reading */

struct known_head {
    uint64_t lines;
    struct digest hash;
};

/* No file: no line was ever written. */
static err read_head(struct known_head *out, const char *path)
{
    char *text = NULL, hash[DIGEST_TEXT_BYTES] = "";
    size_t size = 0;
    *out = (struct known_head){0};
    if (!file_exists(path)) return ERR_NONE;
    TRY(file_read_all(&text, &size, path, HEAD_BYTES));
    bool whole = sscanf(text, "%" SCNu64 " %64s", &out->lines, hash) == 2;
    free(text);
    err e = whole ? digest_parse(&out->hash, hash) : err_make(ERR_INPUT, "expected LINES HASH");
    return err_is(e) ? err_in(e, "%s", path) : e;
}

/* The hash of a line, computed from its text; ERR_INPUT if it is not the one it has. */
static err check_line(struct known_head *now, json_t *line, const char *where)
{
    const char *prev = NULL, *has = NULL;
    char expected[DIGEST_TEXT_BYTES];
    struct bytes plain = {.max = SESSION_SENT_LINE_BYTES};
    struct digest hash;
    int64_t seq = 0;
    TRY(json_get_int(&seq, line, "seq", 1, INT64_MAX, where));
    TRY(json_get_str(&prev, line, "prev", where));
    TRY(json_get_str(&has, line, "hash", where));
    if ((uint64_t)seq != now->lines + 1)
        return err_make(ERR_INPUT,
                        "%s: line number %" PRId64 ", expected %" PRIu64
                        ": lines were cut, added or moved",
                        where, seq, now->lines + 1);
    digest_text(expected, &now->hash);
    if (strcmp(prev, expected) != 0)
        return err_make(ERR_INPUT, "%s: does not follow the line before it", where);
    json_t *without = json_copy(line);
    if (!without) return err_make(ERR_MACHINE, "%s: no memory", where);
    json_object_del(without, "hash");
    err e = json_write(&plain, without);
    if (!err_is(e)) hash = hash_of(plain.data, plain.size);
    json_decref(without);
    bytes_close(&plain);
    if (err_is(e)) return e;
    digest_text(expected, &hash);
    if (strcmp(has, expected) != 0)
        return err_make(ERR_INPUT, "%s: the line was changed: its hash is another one", where);
    now->lines++;
    now->hash = hash;
    return ERR_NONE;
}

/* A line must also be the text that this program writes, so that not even a space can be added. */
static err check_text(const json_t *line, const char *text, size_t size, const char *where)
{
    struct bytes same = {.max = SESSION_SENT_LINE_BYTES};
    err e = json_write(&same, line);
    if (!err_is(e) && (same.size != size || memcmp(same.data, text, size) != 0))
        e = err_make(ERR_INPUT, "%s: the line was changed: it is not in canonical form", where);
    bytes_close(&same);
    return e;
}

static err read_line(struct known_head *now, const struct session_sent_reader *reader,
                     const char *text, size_t size, const char *where)
{
    json_t *line = NULL;
    TRY(json_parse(&line, text, size, where));
    err e = ERR_NONE;
    if (reader->verify) {
        e = check_text(line, text, size, where);
        if (!err_is(e)) e = check_line(now, line, where);
    }
    if (!err_is(e) && reader->take) e = reader->take(reader->context, line);
    json_decref(line);
    return e;
}

/* sent.head is written after its line, so the file may have more lines than it, never fewer. */
static err check_end(const struct known_head *head, uint64_t lines, const char *path)
{
    if (lines >= head->lines) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s:%" PRIu64 ": the journal ends, but %s knows %" PRIu64
                    " lines: the last ones were cut",
                    path, lines, head_name, head->lines);
}

static err read_text(const char *text, size_t size, const char *path,
                     const struct session_sent_reader *reader, const struct known_head *head)
{
    struct known_head now = {0};
    uint64_t line = 0;
    char where[LIMIT_PATH_BYTES + 32];
    for (const char *at = text, *end; size && (end = memchr(at, '\n', size));) {
        size_t length = (size_t)(end - at);
        snprintf(where, sizeof where, "%s:%" PRIu64, path, ++line);
        TRY(read_line(&now, reader, at, length, where));
        if (reader->verify && now.lines == head->lines && !digest_equal(&now.hash, &head->hash))
            return err_make(ERR_INPUT, "%s: is not the line that %s knows", where, head_name);
        size -= length + 1;
        at = end + 1;
    }
    return reader->verify ? check_end(head, line, path) : ERR_NONE;
}

err session_sent_read(const char *work, const struct session_sent_reader *reader)
{
    char path[LIMIT_PATH_BYTES], head_path[LIMIT_PATH_BYTES], *text = NULL;
    struct known_head head;
    size_t size = 0;
    TRY(file_join(path, sizeof path, work, file_name));
    TRY(file_join(head_path, sizeof head_path, work, head_name));
    TRY(read_head(&head, head_path)); /* first: join may append lines meanwhile */
    if (!file_exists(path)) return reader->verify ? check_end(&head, 0, path) : ERR_NONE;
    TRY(file_read_all(&text, &size, path, SENT_BYTES_MAX));
    err e = read_text(text, size, path, reader, &head);
    free(text);
    return e;
}

/* ---- opening */

/* The end of the file, long enough for a whole line and an incomplete one. `from`: its offset. */
static err read_tail(char tail[TAIL_BYTES], size_t *size, off_t *from, const struct session_sent *s)
{
    struct stat st;
    if (fstat(s->fd, &st) != 0) return err_sys(errno, "%s", s->path);
    *from = st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0;
    *size = (size_t)(st.st_size - *from);
    for (size_t at = 0; at < *size;) {
        ssize_t n = pread(s->fd, tail + at, *size - at, *from + (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n ? errno : EIO, "%s: cannot read", s->path);
        at += (size_t)n;
    }
    return ERR_NONE;
}

/* Of the newest line only its own hash is checked: reading all lines would take longer with each
 * month, and `fedlora sent --verify` does it. */
static err take_last(struct known_head *now, const char *text, size_t size, const char *path)
{
    json_t *line = NULL;
    const char *prev = NULL;
    int64_t seq = 0;
    TRY(json_parse(&line, text, size, path));
    err e = json_get_int(&seq, line, "seq", 1, INT64_MAX, path);
    if (!err_is(e)) e = json_get_str(&prev, line, "prev", path);
    *now = (struct known_head){.lines = (uint64_t)seq - 1};
    if (!err_is(e)) e = digest_parse(&now->hash, prev);
    if (!err_is(e)) e = check_line(now, line, path);
    json_decref(line);
    return e;
}

static err check_newest(const struct session_sent *sent, const struct known_head *head)
{
    TRY(check_end(head, sent->lines, sent->path));
    if (sent->lines != head->lines || digest_equal(&sent->hash, &head->hash)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: its last line is not the one that %s knows", sent->path,
                    head_name);
}

/* The journal continues after its newest whole line. */
static err take_end(struct session_sent *sent)
{
    char tail[TAIL_BYTES];
    struct known_head head, now = {0};
    size_t size = 0, from = 0;
    off_t offset = 0;
    TRY(read_tail(tail, &size, &offset, sent));
    size_t whole = size;
    while (whole && tail[whole - 1] != '\n')
        whole--;
    if (whole < size && (file_disk.ftruncate(sent->fd, offset + (off_t)whole) != 0 ||
                         file_disk.fsync(sent->fd) != 0))
        return err_sys(errno, "%s: cannot cut off an incomplete line", sent->path);
    for (from = whole ? whole - 1 : 0; from && tail[from - 1] != '\n';)
        from--;
    err e = read_head(&head, sent->head_path);
    if (!err_is(e) && whole) e = take_last(&now, tail + from, whole - 1 - from, sent->path);
    sent->lines = now.lines;
    sent->hash = now.hash;
    if (!err_is(e)) e = check_newest(sent, &head);
    if (!err_is(e) && sent->lines != head.lines) e = write_head(sent);
    if (e.kind != ERR_INPUT) return e;
    return err_make(ERR_INPUT, "%.400s; move %s and %s away to begin a new journal", e.text,
                    file_name, head_name);
}

err session_sent_open(struct session_sent *out, const char *work, const char *keep)
{
    struct session_sent sent = {0};
    TRY(file_join(sent.path, sizeof sent.path, work, file_name));
    TRY(file_join(sent.head_path, sizeof sent.head_path, work, head_name));
    if (keep) {
        if (strlen(keep) >= sizeof sent.keep)
            return err_make(ERR_INPUT, "%.80s...: too long", keep);
        memcpy(sent.keep, keep, strlen(keep) + 1);
        TRY(file_make_dirs(keep));
    }
    bool fresh = !file_exists(sent.path);
    sent.fd = file_disk.open(sent.path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (sent.fd < 0) return err_sys(errno, "%s", sent.path);
    err e = fresh ? file_sync_dir(work) : ERR_NONE;
    if (!err_is(e)) e = take_end(&sent);
    if (err_is(e))
        session_sent_close(&sent);
    else
        *out = sent;
    return e;
}

void session_sent_close(struct session_sent *sent)
{
    if (sent->fd > 0) (void)file_disk.close(sent->fd);
    sent->fd = 0;
}
