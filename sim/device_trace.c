/* The trace of devices: sim/device.h. */
#include "base/file.h"
#include "base/text.h"
#include "sim/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 6 };
static const char head[] = "member,tokens_per_s,up,down,on_from,on_to";

struct line {
    struct device_trace trace;
    struct online_span span;
    size_t number; /* in the file, from 1 */
};

static int by_member(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    int order = strcmp(x->trace.member, y->trace.member);
    if (order) return order;
    return x->span.from < y->span.from ? -1 : x->span.from > y->span.from;
}

static err parse_line(struct line *out, char *text, struct arena *arena)
{
    char *field[COLUMNS], *next = text;
    struct line l = {.trace = {.speed = -1, .up = -1, .down = -1}, .number = out->number};
    for (size_t i = 0; i < COLUMNS; i++) {
        if (!next) return err_make(ERR_INPUT, "%zu fields, expected %d: %s", i, COLUMNS, head);
        field[i] = strsep(&next, ",");
    }
    if (next) return err_make(ERR_INPUT, "more than %d fields: expected %s", COLUMNS, head);
    if (!text_is_name(field[0], LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "\"%.60s\" is not the name of a member", field[0]);
    TRY(arena_text(&l.trace.member, arena, field[0], strlen(field[0])));
    if (*field[1]) TRY(text_parse_num(&l.trace.speed, field[1], 1e-3, 1e12));
    if (*field[2]) TRY(device_parse_bits(&l.trace.up, field[2]));
    if (*field[3]) TRY(device_parse_bits(&l.trace.down, field[3]));
    if (*field[4] || *field[5]) {
        TRY(text_parse_duration_ms(&l.span.from, field[4]));
        TRY(text_parse_duration_ms(&l.span.to, field[5]));
        if (l.span.to <= l.span.from)
            return err_make(ERR_INPUT, "on_to %s is not after on_from %s", field[5], field[4]);
    }
    *out = l;
    return ERR_NONE;
}

static err read_lines(struct line **out, size_t *count, char *text, struct arena *arena)
{
    size_t most = 1;
    char *next = text;
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        most++;
    TRY(arena_take(out, arena, most, sizeof **out));
    for (size_t number = 1; next && *next; number++) {
        struct line *l = &(*out)[*count];
        char *line = strsep(&next, "\n");
        line[strcspn(line, "\r")] = 0;
        if (number == 1 && strcmp(line, head) != 0)
            return err_make(ERR_INPUT, "the first line is \"%.60s\": expected %s", line, head);
        if (number == 1 || !*line) continue;
        l->number = number;
        err e = parse_line(l, line, arena);
        if (err_is(e)) return err_in(e, "line %zu", number);
        ++*count;
    }
    return *count ? ERR_NONE : err_make(ERR_INPUT, "no line of a member");
}

/* A member without times has one line; the times of the others do not overlap. */
static err check_order(const struct line *l, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        if (strcmp(l[i - 1].trace.member, l[i].trace.member) != 0) continue;
        if (l[i - 1].span.to && l[i].span.to && l[i].span.from >= l[i - 1].span.to) continue;
        return err_make(ERR_INPUT, "line %zu: the times of %s overlap those of line %zu",
                        l[i].number, l[i].trace.member, l[i - 1].number);
    }
    return ERR_NONE;
}

static err take_lines(struct devices *d, struct line *l, size_t count, struct arena *arena)
{
    struct device_trace *trace = NULL;
    struct online_span *span = NULL;
    qsort(l, count, sizeof *l, by_member);
    TRY(check_order(l, count));
    TRY(arena_take(&trace, arena, count, sizeof *trace));
    TRY(arena_take(&span, arena, count, sizeof *span));
    for (size_t i = 0; i < count; i++) {
        trace[i] = l[i].trace;
        span[i] = l[i].span;
        if (span[i].to > d->trace_ms) d->trace_ms = span[i].to;
    }
    d->trace = trace;
    d->span = span;
    d->traces = count;
    return ERR_NONE;
}

err devices_trace(struct devices *out, const char *path, struct arena *arena)
{
    char *text = NULL;
    struct line *line = NULL;
    size_t size = 0, count = 0;
    TRY(file_read_all(&text, &size, path, SIZE_MAX / 2));
    err e = read_lines(&line, &count, text, arena);
    if (!err_is(e)) e = take_lines(out, line, count, arena);
    free(text);
    return err_is(e) ? err_in(e, "%s", path) : e;
}
