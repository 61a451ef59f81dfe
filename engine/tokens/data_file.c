#include "engine/tokens/data_file.h"

#include "base/bytes.h"
#include "base/file_kind.h"
#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { READ_BYTES = 1 << 20 };

/* ---- bytes of the file ---- */

struct source {
    const char *path;
    int fd;
    bool gzip, gzip_ended; /* ended: a member is complete; another one may follow it */
    uint64_t unpacked;     /* bytes out of gzip so far */
    char *raw;             /* (READ_BYTES) */
    size_t at, count;      /* unread bytes of `raw` */
    bool end;
    z_stream z;
};

/* A signal may interrupt a read, which is then repeated. `end` remembers the end of the file, so
 * that a terminal or a pipe is not read again behind it. */
static err fill(struct source *s)
{
    if (s->at < s->count || s->end) return ERR_NONE;
    ssize_t got;
    do
        got = read(s->fd, s->raw, READ_BYTES);
    while (got < 0 && errno == EINTR);
    if (got < 0) return err_sys(errno, "%s", s->path);
    s->at = 0;
    s->count = (size_t)got;
    s->end = got == 0;
    return ERR_NONE;
}

/* Programs that append to a .gz file write one gzip member behind another, so decompression starts
 * again after the end of each. */
static err unpack(size_t *count, char *block, struct source *s)
{
    s->z.next_out = (Bytef *)block;
    s->z.avail_out = READ_BYTES;
    while (s->z.avail_out > 0) {
        TRY(fill(s));
        if (s->end && s->gzip_ended) break;
        if (s->end) return err_make(ERR_INPUT, "%s: the gzip file is cut off", s->path);
        if (s->gzip_ended && inflateReset(&s->z) != Z_OK)
            return err_make(ERR_MACHINE, "%s: gzip cannot be read", s->path);
        s->z.next_in = (Bytef *)s->raw + s->at;
        s->z.avail_in = (uInt)(s->count - s->at);
        int code = inflate(&s->z, Z_NO_FLUSH);
        s->at = s->count - s->z.avail_in;
        s->gzip_ended = code == Z_STREAM_END;
        if (code == Z_MEM_ERROR) return err_sys(ENOMEM, "%s", s->path);
        if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
            return err_make(ERR_INPUT, "%s: damaged gzip data: %s", s->path,
                            s->z.msg ? s->z.msg : "unknown error");
    }
    *count = READ_BYTES - s->z.avail_out;
    s->unpacked += *count;
    if (s->unpacked > LIMIT_UNPACKED_BYTES)
        return err_make(ERR_INPUT, "%s: expands to more than %llu bytes", s->path,
                        LIMIT_UNPACKED_BYTES);
    return ERR_NONE;
}

/* *count 0 at the end of the file. `block` has READ_BYTES. */
static err next_block(size_t *count, char *block, struct source *s)
{
    if (s->gzip) return unpack(count, block, s);
    TRY(fill(s));
    *count = s->count - s->at;
    if (*count) memcpy(block, s->raw + s->at, *count);
    s->at = s->count;
    return ERR_NONE;
}

/* A file that is missing or not readable is a mistake in the command (ERR_INPUT); other errors are
 * of the machine. */
static err open_file(int *out, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == EACCES || errno == ENOTDIR))
        return err_make(ERR_INPUT, "%s: %s", path, strerror(errno));
    if (fd < 0) return err_sys(errno, "%s", path);
    if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        (void)close(fd);
        return err_make(ERR_INPUT, "%s: is a directory, expected a JSON Lines file", path);
    }
    *out = fd;
    return ERR_NONE;
}

static err source_open(struct source *s, const char *path)
{
    *s = (struct source){.path = path, .fd = -1};
    TRY(open_file(&s->fd, path));
    s->raw = malloc(READ_BYTES);
    if (!s->raw) return err_sys(ENOMEM, "%s", path);
    TRY(fill(s));
    if (s->count < 2 || memcmp(s->raw, "\x1f\x8b", 2) != 0) return ERR_NONE;
    if (inflateInit2(&s->z, /*gzip only*/ 16 + MAX_WBITS) != Z_OK)
        return err_sys(ENOMEM, "%s", path);
    s->gzip = true;
    return ERR_NONE;
}

static void source_close(struct source *s)
{
    if (s->gzip) (void)inflateEnd(&s->z);
    if (s->fd >= 0) (void)close(s->fd);
    free(s->raw);
}

/* ---- kinds of files ---- */

#define BY_PANDAS(read_)                                                                           \
    "python3 -c 'import pandas, sys; pandas." read_                                                \
    "(sys.argv[1]).to_json(sys.argv[2], orient=\"records\", lines=True)' IN OUT.jsonl"
#define BY_CSV(how_)                                                                               \
    "python3 -c 'import csv, json, sys; [print(json.dumps(r)) for r in "                           \
    "csv.DictReader(open(sys.argv[1], encoding=\"utf-8-sig\", newline=\"\")" how_                  \
    ")]' IN > OUT.jsonl"

/* Kinds that a command converts. Those that only data has are known by their first bytes or by the
 * end of the file's name. Kinds without a command are named by base/file_kind.h. */
static const struct kind {
    enum file_kind kind; /* FILE_KIND_UNKNOWN: by `start` */
    const char *start;   /* "": by `name` alone */
    const char *name;    /* NULL: any */
    const char *what, *convert;
} kinds[] = {
    /* clang-format off */
    {FILE_KIND_PARQUET, "", NULL, "a Parquet file", BY_PANDAS("read_parquet")},
    {FILE_KIND_UNKNOWN, "ARROW1", NULL, "an Arrow file", BY_PANDAS("read_feather")},
    {FILE_KIND_UNKNOWN, "\xff\xff\xff\xff", NULL, "an Arrow stream",
     "python3 -c 'import datasets, sys; datasets.Dataset.from_file(sys.argv[1])"
     ".to_json(sys.argv[2])' IN OUT.jsonl"},
    {FILE_KIND_ZIP, "", ".xlsx", "an Excel workbook", BY_PANDAS("read_excel")},
    {FILE_KIND_ZIP, "", NULL, "a zip archive", "unzip IN"},
    {FILE_KIND_ZSTD, "", NULL, "a file compressed by zstd", "zstd -d IN -o OUT.jsonl"},
    {FILE_KIND_UNKNOWN, "BZh", NULL, "a file compressed by bzip2", "bunzip2 -k IN"},
    {FILE_KIND_XZ, "", NULL, "a file compressed by xz", "unxz -k IN"},
    {FILE_KIND_UTF16, "", NULL, "UTF-16 text", "iconv -f UTF-16 -t UTF-8 IN > OUT.jsonl"},
    {FILE_KIND_UNKNOWN, "", ".csv", "a CSV file", BY_CSV("")},
    {FILE_KIND_UNKNOWN, "", ".tsv", "a file of values separated by tabs",
     BY_CSV(", delimiter=\"\\t\"")},
    /* clang-format on */
};

static bool ends_with(const char *text, size_t size, const char *end)
{
    size_t n = strlen(end);
    return size >= n && strncasecmp(text + size - n, end, n) == 0;
}

/* `first` is the first byte of the text that is not white space. A .csv file that holds JSON is
 * read all the same. */
static err check_kind(const struct source *s, const char *block, size_t count, char first)
{
    enum file_kind kind = file_kind_of(block, count);
    size_t name = strlen(s->path);
    bool json = first == '{' || first == '[';
    if (s->gzip && ends_with(s->path, name, ".gz")) name -= 3;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct kind *k = &kinds[i];
        size_t n = strlen(k->start);
        bool is = k->kind != FILE_KIND_UNKNOWN ? k->kind == kind
                  : n > 0                      ? count >= n && memcmp(block, k->start, n) == 0
                                               : !json;
        if (!is || (k->name && !ends_with(s->path, name, k->name))) continue;
        return err_make(ERR_INPUT, "%s: is %s, expected JSON Lines; convert it: %s", s->path,
                        k->what, k->convert);
    }
    err e = count ? file_kind_refuse(FILE_KIND_JSON, block, count) : ERR_NONE;
    return err_is(e) ? err_in(e, "%s", s->path) : e;
}

/* ---- rows ---- */

enum list_state { LIST_ROW, LIST_IN_ROW, LIST_BETWEEN, LIST_END };

struct rows {
    const struct source *source;
    const struct data_sink *sink;
    struct bytes text; /* of the unfinished row */
    uint64_t line;     /* the line being read, from 1 */
    uint64_t row_line; /* the line where the unfinished row starts */
    /* Of a JSON list only: */
    bool list;
    enum list_state state;
    bool comma; /* the row follows a comma */
    bool string, escape;
    size_t depth; /* open objects and lists of the row */
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static err append(struct rows *r, const char *text, size_t size)
{
    if (!err_is(bytes_append(&r->text, text, size))) return ERR_NONE;
    return err_make(ERR_INPUT, "%s:%llu: the %s is longer than %u bytes", r->source->path,
                    (unsigned long long)r->row_line, r->list ? "row" : "line", LIMIT_LINE_BYTES);
}

/* Passes on the row that is complete; a blank line is none. */
static err finish_row(struct rows *r)
{
    const char *text = r->text.data ? (const char *)r->text.data : "";
    size_t size = r->text.size, blank = 0;
    while (blank < size && is_space(text[blank]))
        blank++;
    err e = blank == size ? ERR_NONE : r->sink->row(r->sink->object, text, size, r->row_line);
    bytes_clear(&r->text);
    return e;
}

/* A line may span several blocks, up to LIMIT_LINE_BYTES. */
static err take_lines(struct rows *r, const char *at, size_t count)
{
    for (const char *stop = at + count; at < stop;) {
        const char *end = memchr(at, '\n', (size_t)(stop - at));
        size_t size = (size_t)((end ? end : stop) - at);
        r->row_line = r->line;
        TRY(append(r, at, size));
        if (end) {
            TRY(finish_row(r));
            r->line++;
        }
        at += size + 1;
    }
    return ERR_NONE;
}

static err list_error(const struct rows *r, const char *what)
{
    return err_make(ERR_INPUT, "%s:%llu: %s", r->source->path, (unsigned long long)r->line, what);
}

/* One byte of a row in a list. *ended: the row ends with this byte; *beyond: it ended before it.
 * Only strings and nesting are looked at, because the row is parsed as a whole afterwards. */
static void step_row(struct rows *r, char c, bool *ended, bool *beyond)
{
    *ended = *beyond = false;
    if (r->string) {
        if (r->escape)
            r->escape = false;
        else if (c == '\\')
            r->escape = true;
        else if (c == '"')
            r->string = false, *ended = r->depth == 0;
    } else if (c == '"') {
        r->string = true;
    } else if (c == '{' || c == '[') {
        r->depth++;
    } else if (r->depth == 0) {
        *beyond = c == ',' || c == ']' || is_space(c);
    } else if (c == '}' || c == ']') {
        *ended = --r->depth == 0;
    }
}

/* One byte outside of the rows. */
static err step_between(struct rows *r, char c)
{
    if (is_space(c)) return ERR_NONE;
    if (r->state == LIST_END) return list_error(r, "text after the end of the JSON list of rows");
    if (c == ']') {
        if (r->comma) return list_error(r, "the JSON list of rows ends with a comma");
        r->state = LIST_END;
    } else if (c != ',' || r->state != LIST_BETWEEN) {
        return list_error(r, "expected a comma or the end of the JSON list of rows");
    } else {
        r->state = LIST_ROW;
        r->comma = true;
    }
    return ERR_NONE;
}

static err take_list(struct rows *r, const char *at, size_t count)
{
    const char *begin = at, *stop = at + count;
    for (; at < stop; at++) {
        if (r->state == LIST_ROW && !is_space(*at) && *at != ']' && *at != ',') {
            r->state = LIST_IN_ROW;
            r->row_line = r->line;
            begin = at;
        }
        if (r->state == LIST_IN_ROW) {
            bool ended, beyond;
            step_row(r, *at, &ended, &beyond);
            if (ended || beyond) {
                TRY(append(r, begin, (size_t)(at - begin) + ended));
                TRY(finish_row(r));
                r->state = LIST_BETWEEN;
                r->comma = false;
                if (beyond) TRY(step_between(r, *at));
            }
        } else {
            TRY(step_between(r, *at));
        }
        r->line += *at == '\n';
    }
    return r->state == LIST_IN_ROW ? append(r, begin, (size_t)(stop - begin)) : ERR_NONE;
}

/* The first block decides whether the file is a list; a byte order mark is skipped, because editors
 * on Windows write it. *used: the bytes before the first row. */
static err begin(size_t *used, struct rows *r, const char *block, size_t count)
{
    size_t at = count >= 3 && memcmp(block, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0, first = at;
    while (first < count && is_space(block[first]))
        first++;
    TRY(check_kind(r->source, block, count, first < count ? block[first] : 0));
    r->list = first < count && block[first] == '[';
    for (; r->list && at < first; at++)
        r->line += block[at] == '\n';
    *used = r->list ? at + 1 : at;
    return ERR_NONE;
}

static err read_rows(struct rows *r, struct source *s, char *block)
{
    size_t count, used = 0;
    TRY(next_block(&count, block, s));
    TRY(begin(&used, r, block, count));
    while (count > 0) {
        if (r->list)
            TRY(take_list(r, block + used, count - used));
        else
            TRY(take_lines(r, block + used, count - used));
        used = 0;
        TRY(next_block(&count, block, s));
    }
    if (r->list && r->state != LIST_END)
        return list_error(r, "the file ends inside the JSON list of rows");
    return r->list ? ERR_NONE : finish_row(r); /* the last line needs no line feed */
}

err data_file_read(const char *path, const struct data_sink *sink)
{
    struct source s;
    struct rows r = {
        .source = &s, .sink = sink, .text = {.max = LIMIT_LINE_BYTES}, .line = 1, .row_line = 1};
    char *block = malloc(READ_BYTES);
    err e = source_open(&s, path);
    if (!err_is(e) && !block) e = err_sys(ENOMEM, "%s", path);
    if (!err_is(e)) e = read_rows(&r, &s, block);
    source_close(&s);
    bytes_close(&r.text);
    free(block);
    return e;
}
