#include "base/log.h"

#include "base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOG_LINE_BYTES = 4096 };

/* Set once by log_init() before threads start, so reading them needs no lock. */
static enum log_level log_least = LOG_INFO;
static bool log_json;
static bool log_to_journal; /* standard error is the journal's stream */
static atomic_uint_least64_t log_lost_lines;
static atomic_int log_lost_why;
static const char *const log_level_name[] = {"debug", "info", "warn", "error"};

struct line {
    char text[LOG_LINE_BYTES];
    size_t size; /* always leaves room for the newline */
};

/* JOURNAL_STREAM names the device and inode of the stream that the journal reads. It is inherited,
 * so it is compared with standard error, which may be another file by now. */
static bool is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char is[64];
    struct stat st;
    if (!stream || fstat(STDERR_FILENO, &st) != 0) return false;
    snprintf(is, sizeof is, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(is, stream) == 0;
}

void log_init(enum log_level least, bool json)
{
    log_least = least;
    log_json = json;
    log_to_journal = is_journal();
}

/* A longer line is cut, because one event must stay one write(2) to be atomic. */
static void line_add(struct line *l, const char *text, size_t size)
{
    size_t room = LOG_LINE_BYTES - 2 - l->size;
    if (size > room) size = room;
    memcpy(l->text + l->size, text, size);
    l->size += size;
}

static void line_text(struct line *l, const char *text)
{
    line_add(l, text, strlen(text));
}

/* Prints the value bare if that is unambiguous, else quoted with the escapes \" \\ and \xNN, so
 * that an event stays one line even if a name has control characters. */
static void line_value(struct line *l, const char *value)
{
    bool bare = *value != 0;
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == '"' || *p == '=' || *p == '\\' || *p == 0x7f)
            bare = false;
    if (bare) {
        line_text(l, value);
        return;
    }
    line_text(l, "\"");
    for (const char *p = value; *p; p++) {
        char escaped[8];
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", c);
        else if (c < ' ' || c == 0x7f)
            snprintf(escaped, sizeof escaped, "\\x%02x", c);
        else
            snprintf(escaped, sizeof escaped, "%c", c);
        line_text(l, escaped);
    }
    line_text(l, "\"");
}

/* UTC with milliseconds, because logs of several machines are compared. */
static void time_text(char out[32])
{
    uint64_t ms = text_wall_ms();
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    char day[24];
    strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, 32, "%s.%03uZ", day, (unsigned)(ms % 1000));
}

static void format_logfmt(struct line *l, const struct log_field *field, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char number[40];
        line_text(l, " ");
        line_text(l, field[i].key);
        line_text(l, "=");
        switch (field[i].kind) {
        case LOG_FIELD_STR:
            line_value(l, field[i].str ? field[i].str : "");
            continue;
        case LOG_FIELD_INT:
            snprintf(number, sizeof number, "%" PRId64, field[i].integer);
            break;
        case LOG_FIELD_NUM:
            snprintf(number, sizeof number, "%.6g", field[i].num);
            break;
        }
        line_text(l, number);
    }
}

/* NULL (no memory, or a text that is not UTF-8) becomes null: logging must never make work fail. */
static json_t *field_json(const struct log_field *f)
{
    json_t *value = NULL;
    if (f->kind == LOG_FIELD_STR) value = json_string(f->str ? f->str : "");
    if (f->kind == LOG_FIELD_INT) value = json_integer(f->integer);
    if (f->kind == LOG_FIELD_NUM && isfinite(f->num)) value = json_real(f->num);
    return value ? value : json_null();
}

static json_t *event_json(const char *time, enum log_level level, const char *event)
{
    return json_pack("{s:s, s:s, s:s}", "time", time, "level", log_level_name[level], "event",
                     event);
}

/* A line that is cut would not be JSON. An event that is too long is logged without its fields and
 * with "cut": true. */
static void format_json(struct line *l, json_t *object, const struct log_field *field, size_t count)
{
    for (size_t i = 0; i < count; i++)
        json_object_set_new(object, field[i].key, field_json(&field[i]));
    char *text = json_dumps(object, JSON_COMPACT);
    if (text && strlen(text) > LOG_LINE_BYTES - 2 - l->size) {
        free(text);
        for (size_t i = 0; i < count; i++)
            json_object_del(object, field[i].key);
        json_object_set_new(object, "cut", json_true());
        text = json_dumps(object, JSON_COMPACT);
    }
    if (text) line_text(l, text);
    free(text);
}

void log_event(enum log_level level, const char *event, const struct log_field *field, size_t count)
{
    if (level < log_least) return;
    struct line l = {.size = 0};
    char time[32];
    static const char *const priority[] = {"<7>", "<6>", "<4>", "<3>"}; /* of syslog */
    time_text(time);
    if (log_to_journal) line_text(&l, priority[level]);
    if (log_json) {
        json_t *object = event_json(time, level, event);
        if (object) format_json(&l, object, field, count);
        json_decref(object);
    } else {
        line_text(&l, "time=");
        line_text(&l, time);
        line_text(&l, " level=");
        line_text(&l, log_level_name[level]);
        line_text(&l, " event=");
        line_value(&l, event);
        format_logfmt(&l, field, count);
    }
    l.text[l.size++] = '\n';
    /* A failure cannot be logged, but others can ask for it. */
    if (write(STDERR_FILENO, l.text, l.size) < 0) {
        atomic_store(&log_lost_why, errno);
        atomic_fetch_add(&log_lost_lines, 1);
    }
}

uint64_t log_lost(int *why)
{
    *why = atomic_load(&log_lost_why);
    return atomic_load(&log_lost_lines);
}
