/* The journal of sent data: no line can be changed, moved, added or cut unseen, and a crash or a
 * full disk at any call leaves a journal that can be continued. */
#include "client/session/session_sent.h"

#include "base/file.h"
#include "base/safetensors.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINES = 7 };
static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 32];

static err add(struct session_sent *sent, uint32_t round)
{
    const struct session_sent_call call = {.kind = "update",
                                           .run = "r",
                                           .round = round,
                                           .bytes = 100 + round,
                                           .digest = digest_of(&round, sizeof round),
                                           .has_rows = true,
                                           .rows = 8,
                                           .tensors = 4,
                                           .norm = 0.1 * round};
    return session_sent_add(sent, &call);
}

static void begin(void)
{
    struct session_sent sent = {0};
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/sent.jsonl", dir);
    ok(session_sent_open(&sent, dir, NULL));
    for (uint32_t i = 1; i <= LINES; i++)
        ok(add(&sent, i));
    session_sent_close(&sent);
}

static err count(void *context, const json_t *line)
{
    (void)line;
    ++*(size_t *)context;
    return ERR_NONE;
}

static err verify(size_t *lines)
{
    const struct session_sent_reader reader = {.take = count, .context = lines, .verify = true};
    *lines = 0;
    return session_sent_read(dir, &reader);
}

/* The text of the journal as lines. */
static char *lines_of(char *line[LINES + 1], size_t *size)
{
    char *text = NULL;
    ok(file_read_all(&text, size, path, 1 << 20));
    char *at = text;
    for (size_t i = 0; i <= LINES; i++) {
        line[i] = at;
        at = i < LINES ? strchr(at, '\n') + 1 : at;
    }
    return text;
}

/* The first line of the journal that is wrong is `line`. */
static void expect_named(size_t line, const char *what)
{
    char name[32];
    size_t lines;
    err e = verify(&lines);
    snprintf(name, sizeof name, "sent.jsonl:%zu: ", line);
    cr_expect_eq(e.kind, ERR_INPUT, "%s of line %zu was not seen", what, line);
    cr_expect(strstr(e.text, name), "%s: \"%s\" does not name %s", what, e.text, name);
}

static void put(const char *text, size_t size)
{
    ok(file_write(path, text, size, true));
}

Test(session_sent, names_every_line_that_was_changed_cut_or_moved)
{
    char *line[LINES + 1];
    size_t size, lines;
    begin();
    char *text = lines_of(line, &size), *work = malloc(2 * size);
    ok(verify(&lines));
    cr_expect_eq(lines, LINES);
    for (size_t i = 0; i < LINES; i++) {
        size_t at = (size_t)(line[i] - text), length = (size_t)(line[i + 1] - line[i]);
        memcpy(work, text, size); /* a digit of its bytes */
        work[at + 9] = (char)(work[at + 9] == '1' ? '2' : '1');
        put(work, size);
        expect_named(i + 1, "a change");
        memcpy(work, text, at); /* cut */
        memcpy(work + at, text + at + length, size - at - length);
        put(work, size - length);
        expect_named(i + 1 < LINES ? i + 1 : i, "a cut");
        memcpy(work, text, at + length); /* twice */
        memcpy(work + at + length, text + at, size - at);
        put(work, size + length);
        expect_named(i + 2, "a copy");
        if (i + 1 == LINES) continue;
        size_t next = (size_t)(line[i + 2 <= LINES ? i + 2 : LINES] - line[i + 1]); /* swap */
        memcpy(work, text, size);
        memcpy(work + at, line[i + 1], next);
        memcpy(work + at + next, line[i], length);
        put(work, size);
        expect_named(i + 1, "a swap");
    }
    put(text, size);
    ok(verify(&lines));
    free(text);
    free(work);
    support_dir_remove(dir);
}

/* Every byte of a line, each replaced by another one, or a space added. */
Test(session_sent, sees_every_changed_byte_of_a_line)
{
    char *line[LINES + 1];
    size_t size;
    begin();
    char *text = lines_of(line, &size), *work = malloc(size + 1);
    for (char *at = line[3]; at < line[4] - 1; at++) {
        memcpy(work, text, size);
        work[at - text] ^= 1;
        put(work, size);
        size_t lines;
        cr_expect_eq(verify(&lines).kind, ERR_INPUT, "byte %zd", at - line[3]);
    }
    size_t at = (size_t)(line[3] - text) + 1;
    memcpy(work, text, at);
    work[at] = ' ';
    memcpy(work + at + 1, text + at, size - at);
    put(work, size + 1);
    expect_named(4, "a space");
    free(text);
    free(work);
    support_dir_remove(dir);
}

Test(session_sent, continues_after_an_incomplete_line)
{
    struct session_sent sent = {0};
    char *line[LINES + 1];
    size_t size, lines;
    begin();
    char *text = lines_of(line, &size);
    for (size_t torn = 1; torn < (size_t)(line[1] - line[0]); torn += 7) {
        char *work = malloc(size + torn);
        memcpy(work, text, size);
        memcpy(work + size, text, torn);
        put(work, size + torn);
        free(work);
        ok(session_sent_open(&sent, dir, NULL));
        cr_expect_eq(sent.lines, LINES);
        session_sent_close(&sent);
        ok(verify(&lines));
    }
    ok(session_sent_open(&sent, dir, NULL));
    ok(add(&sent, 99));
    session_sent_close(&sent);
    ok(verify(&lines));
    cr_expect_eq(lines, LINES + 1);
    free(text);
    support_dir_remove(dir);
}

Test(session_sent, does_not_continue_a_journal_whose_end_was_cut_or_changed)
{
    struct session_sent sent = {0};
    char *line[LINES + 1];
    size_t size;
    begin();
    char *text = lines_of(line, &size);
    put(text, (size_t)(line[LINES - 1] - text));
    err e = session_sent_open(&sent, dir, NULL);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "sent.head knows 7 lines") && strstr(e.text, "move"), "%s", e.text);
    line[LINES - 1][9] ^= 1;
    put(text, size);
    cr_expect_eq(session_sent_open(&sent, dir, NULL).kind, ERR_INPUT);
    put("", 0);
    cr_expect_eq(session_sent_open(&sent, dir, NULL).kind, ERR_INPUT);
    free(text);
    support_dir_remove(dir);
}

/* ---- a disk that fails */

static struct file_disk real;
static int calls, fail_at;

static bool failing(void)
{
    errno = ENOSPC;
    return ++calls == fail_at;
}
static ssize_t half_write(int fd, const void *data, size_t size)
{
    if (failing()) { /* half of it reaches the disk */
        ssize_t n = real.write(fd, data, size / 2);
        (void)n;
        errno = ENOSPC;
        return -1;
    }
    return real.write(fd, data, size);
}
static int failing_fsync(int fd)
{
    return failing() ? -1 : real.fsync(fd);
}
static int failing_rename(const char *from, const char *to)
{
    return failing() ? -1 : real.rename(from, to);
}

Test(session_sent, a_call_without_a_durable_line_is_refused_whatever_fails)
{
    bool any = true;
    for (int at = 1; any; at++) {
        struct session_sent sent = {0};
        size_t lines;
        begin();
        ok(session_sent_open(&sent, dir, NULL));
        real = file_disk;
        calls = 0;
        fail_at = at;
        file_disk.write = half_write;
        file_disk.fsync = failing_fsync;
        file_disk.rename = failing_rename;
        err e = add(&sent, 50);
        any = calls >= at;
        cr_expect_eq(err_is(e), any, "call %d of the disk", at);
        file_disk = real;
        ok(add(&sent, 51));
        session_sent_close(&sent);
        ok(verify(&lines));
        cr_expect(lines == LINES + 1 || lines == LINES + 2, "%zu lines", lines);
        support_dir_remove(dir);
    }
}

/* ---- files */

Test(session_sent, has_the_norm_and_the_number_of_tensors_of_a_file_and_keeps_it)
{
    static const float a[] = {3, 4}, b[] = {12};
    struct tensor tensor[] = {{.name = "a",
                               .dtype = DTYPE_F32,
                               .dims = 1,
                               .shape = {2},
                               .count = 2,
                               .size = 8,
                               .data = a},
                              {.name = "b",
                               .dtype = DTYPE_F32,
                               .dims = 1,
                               .shape = {1},
                               .count = 1,
                               .size = 4,
                               .data = b}};
    struct bytes text = {.max = 10000};
    struct session_sent sent = {0};
    char file[SUPPORT_PATH_BYTES + 32], keep[SUPPORT_PATH_BYTES + 32],
        kept[SUPPORT_PATH_BYTES + 128], hex[65];
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/sent.jsonl", dir);
    snprintf(file, sizeof file, "%s/u", dir);
    snprintf(keep, sizeof keep, "%s/kept", dir);
    ok(safetensors_write(&text, tensor, 2, NULL, 0));
    ok(file_write(file, text.data, text.size, false));
    const struct session_sent_call call = {.kind = "update",
                                           .run = "r",
                                           .round = 3,
                                           .bytes = text.size,
                                           .digest = digest_of(text.data, text.size)};
    ok(session_sent_open(&sent, dir, keep));
    ok(session_sent_file(&sent, &call, file));
    session_sent_close(&sent);
    char *line = NULL;
    size_t size;
    ok(file_read_all(&line, &size, path, 10000));
    cr_expect(strstr(line, "\"norm\":13") && strstr(line, "\"tensors\":2"), "%s", line);
    free(line);
    digest_text(hex, &call.digest);
    snprintf(kept, sizeof kept, "%s/r.3.%.16s.safetensors", keep, hex);
    struct digest have;
    ok(digest_of_file(&have, kept));
    cr_expect(digest_equal(&have, &call.digest));
    bytes_close(&text);
    support_dir_remove(dir);
}
