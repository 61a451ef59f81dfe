#include "lineage/audit_verify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 3, 4))) static void report(struct audit_verify *v, uint64_t seq,
                                                         const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    v->findings++;
    if (v->found) v->found(v->context, seq, v->line.file, v->line.row, text);
}

/* A head names its key, but only the auditor can say that it is the right one. */
static bool is_known(const struct audit_verify *v, const uint8_t key[32])
{
    for (size_t i = 0; i < v->keys; i++)
        if (!memcmp(v->key[i], key, 32)) return true;
    return false;
}

/* A head proves all lines before it only if none of them is in question. */
static void judge_head(struct audit_verify *v, const struct audit_line_read *r)
{
    v->heads++;
    if (!r->signature) {
        report(v, r->seq, "the signature of this head is wrong");
    } else if (!is_known(v, r->key)) {
        report(v, r->seq, "this head is signed by another key than the one given");
    } else if (!v->findings) {
        v->proven = r->seq;
        memcpy(v->proven_time, r->time, sizeof v->proven_time);
    }
}

static void report_missing(struct audit_verify *v, uint64_t from, uint64_t to)
{
    if (from == to)
        report(v, from, "this line is missing; line %" PRIu64 " is in its place", to + 1);
    else
        report(v, from, "the lines %" PRIu64 " to %" PRIu64 " are missing", from, to);
}

/* Where the line stands, by its number and that of the next one (0: there is none). True: it is in
 * its place, possibly after lines that are missing.
 *
 * A line that is too early is in its place if the one after it follows it, because then the lines
 * before it were removed. Otherwise it was moved, and the places of the others are as before. */
static bool judge_place(struct audit_verify *v, uint64_t seq, uint64_t next)
{
    uint64_t expected = v->expected;
    if (seq == expected) return true;
    v->trusted = false;
    if (seq > expected && (!next || next == seq + 1)) {
        report_missing(v, expected, seq - 1);
        v->expected = seq;
        return true;
    }
    if (seq < expected && next == expected) {
        report(v, seq, "this line is there twice");
        v->expected--; /* it takes the place of no other line */
    } else {
        report(v, seq, "this line stands in the place of line %" PRIu64, expected);
    }
    return false;
}

/* Of a line whose predecessor is missing or was changed nothing can be said, and that one was
 * reported. */
static void judge_link(struct audit_verify *v, const struct audit_line_read *r)
{
    static const struct digest none;
    if (r->seq == 1 && !digest_equal(&r->prev, &none))
        report(v, 1, "this line follows another line, so it is not the first");
    else if (r->seq > 1 && v->trusted && !digest_equal(&r->prev, &v->hash))
        report(v, r->seq - 1, "this line was replaced: line %" PRIu64 " follows another one",
               r->seq);
}

/* A line in a wrong place is checked for itself too, because it may also have been changed. */
static void judge_readable(struct audit_verify *v, const struct audit_line_read *r, uint64_t next)
{
    bool placed = judge_place(v, r->seq, next);
    if (!r->whole) report(v, r->seq, "this line was changed: its hash is not that of its content");
    if (placed && r->whole) judge_link(v, r);
    if (r->whole && r->signs) judge_head(v, r);
    v->trusted = placed && r->whole;
    v->hash = r->hash;
    if (v->wanted && r->whole && digest_equal(v->wanted, &r->hash)) v->has_wanted = true;
    if (placed && r->seq > v->last) v->last = r->seq;
}

/* Judges the line that waits. `after`: the line behind it; not .any: there is none. */
static void judge(struct audit_verify *v, const struct audit_verify_line *after)
{
    const struct audit_verify_line *line = &v->line;
    uint64_t next = after->any && after->readable ? after->read.seq : 0;
    if (!line->any) return;
    if (!v->expected) {
        v->expected = line->readable ? line->read.seq : next > 1 ? next - 1 : 1;
        v->first = v->expected;
    }
    v->lines++;
    if (!line->readable) {
        v->trusted = false;
        if (line->cut)
            report(v, v->expected, "this line is cut off");
        else
            report(v, v->expected, "this line was changed: it is not a line of an audit log");
        if (next == v->expected) return; /* a line that was put in */
    } else {
        judge_readable(v, &line->read, next);
    }
    if (!line->readable && v->expected > v->last) v->last = v->expected;
    v->expected++;
}

/* Files are one sequence: the first line of a month follows the last one of the month before. */
void audit_verify_add(struct audit_verify *v, const char *name, const char *text, size_t size)
{
    size_t row = 0;
    for (size_t at = 0; at < size;) {
        struct audit_verify_line line = {.any = true, .row = ++row};
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - (text + at)) : size - at;
        snprintf(line.file, sizeof line.file, "%s", name);
        err e = audit_line_parse(&line.read, text + at, n);
        line.cut = !end;
        line.readable = end && !err_is(e);
        judge(v, &line);
        v->line = line;
        at += n + 1;
    }
}

void audit_verify_end(struct audit_verify *v)
{
    judge(v, &(struct audit_verify_line){0});
    v->line.any = false;
    if (v->wanted && !v->has_wanted)
        report(v, v->last + 1,
               "no line has the hash that was given: lines were removed from here on");
}
