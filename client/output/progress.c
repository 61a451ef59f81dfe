/* Progress lines of client/output/progress.h. All output is on standard error, because standard
 * output holds the result of the command. */
#include "client/output/progress.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* A terminal can be redrawn often; a log file should not fill with progress. */
enum { PROGRESS_TERMINAL_MS = 100, PROGRESS_PLAIN_MS = 5000, PROGRESS_BYTES_MS = 30000 };

/* shown_ms starts at the current time, so that short work prints no line but the last. */
void progress_begin(struct progress *p, bool quiet, const char *what, const char *unit)
{
    *p = (struct progress){.enabled = !quiet, .unit = unit, .begun_ms = text_now_ms()};
    p->terminal = isatty(STDERR_FILENO) == 1;
    p->shown_ms = p->begun_ms;
    snprintf(p->what, sizeof p->what, "%s", what);
}

void progress_begin_bytes(struct progress *p, bool quiet, const char *what)
{
    progress_begin(p, quiet, what, NULL);
    p->bytes = true;
}

/* Columns of the terminal: from the kernel, else from COLUMNS (a terminal without a size), else 80.
 * Asked for every line, because the user may resize the window. */
static size_t terminal_width(void)
{
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    int64_t width = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    if (columns && err_is(text_parse_int(&width, columns, 1, 10000))) width = 80;
    return (size_t)width;
}

/* Characters and not bytes: details may contain names that are not ASCII. */
static size_t columns_of(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80; /* bytes that begin a UTF-8 character */
    return n;
}

/* Cuts after `width` characters, never inside one. */
static void cut(char *line, size_t width)
{
    for (size_t seen = 0; *line; line++) {
        bool begins = ((unsigned char)*line & 0xc0) != 0x80;
        if (begins && seen++ == width) break;
    }
    *line = 0;
}

/* Name and part done are the most important; the rate is the first to go. */
void progress_fit(char out[PROGRESS_LINE_BYTES], const struct progress_parts *parts, size_t width)
{
    struct progress_parts p = *parts;
    const char **droppable[] = {&p.rate, &p.left, &p.detail};
    for (size_t dropped = 0;; dropped++) {
        snprintf(out, PROGRESS_LINE_BYTES, "%s%s%s%s%s%s%s%s%s", p.what, p.far ? "  " : "",
                 p.far ? p.far : "", p.detail ? "  " : "", p.detail ? p.detail : "",
                 p.rate ? "  " : "", p.rate ? p.rate : "", p.left ? "  " : "",
                 p.left ? p.left : "");
        if (columns_of(out) <= width || dropped == sizeof droppable / sizeof *droppable) break;
        *droppable[dropped] = NULL;
    }
    cut(out, width);
}

/* One column stays free: a line that fills the terminal moves the cursor to the next one, and \r
 * would then return to the wrong line. */
static void draw(struct progress *p, const struct progress_parts *parts)
{
    char line[PROGRESS_LINE_BYTES];
    p->drawn = true;
    progress_fit(line, parts, p->terminal ? terminal_width() - 1 : PROGRESS_LINE_BYTES - 1);
    if (p->terminal)
        fprintf(stderr, "\r%s\033[K", line); /* \033[K erases the rest of a longer line */
    else
        fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

void progress_part(char *out, size_t bytes, uint64_t done, uint64_t total)
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB"};
    char alone[32];
    double by = 1;
    size_t i = 0;
    text_size(alone, sizeof alone, done);
    for (; total / (uint64_t)by >= 1000 && i < 4; i++)
        by *= 1000;
    if (total)
        snprintf(out, bytes, "%.*f of %.*f %s", i > 0, (double)done / by, i > 0, (double)total / by,
                 unit[i]);
    else
        snprintf(out, bytes, "%s", alone);
}

/* "3/12 (25 %)", or "3.1 of 9.8 MB (32 %)" of a transfer. */
static void say_far(char *out, size_t bytes, const struct progress *p, uint64_t done,
                    uint64_t total)
{
    if (p->bytes)
        progress_part(out, bytes, done, total);
    else if (total)
        snprintf(out, bytes, "%" PRIu64 "/%" PRIu64, done, total);
    else
        snprintf(out, bytes, "%" PRIu64, done);
    size_t used = strlen(out);
    if (total)
        snprintf(out + used, bytes - used, " (%.0f %%)", 100.0 * (double)done / (double)total);
}

static void say_rate(char *out, size_t bytes, const struct progress *p, double per_second)
{
    if (p->bytes) {
        char size[32];
        text_size(size, sizeof size, (uint64_t)per_second);
        snprintf(out, bytes, "%s/s", size);
    } else {
        snprintf(out, bytes, "%.*f %s/s", per_second < 10 ? 1 : 0, per_second, p->unit);
    }
}

/* Called after every step or batch, which may be thousands of times a second; the clock decides
 * whether a line is due. The time left assumes that the rest goes as fast as the part done. A
 * transfer that was resumed has done only `units` in the time since it began. */
void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t units,
                     const char *detail)
{
    if (!p->enabled) return;
    uint64_t now = text_now_ms(), spent = now - p->begun_ms, worked = p->bytes ? units : done;
    uint64_t plain = p->bytes ? PROGRESS_BYTES_MS : PROGRESS_PLAIN_MS;
    if (now - p->shown_ms < (p->terminal ? PROGRESS_TERMINAL_MS : plain)) return;
    p->shown_ms = now;
    char far[96], rate[64], left[48], time[24];
    struct progress_parts parts = {.what = p->what, .far = far, .detail = detail};
    say_far(far, sizeof far, p, done, total);
    if (units && spent && (p->unit || p->bytes)) {
        say_rate(rate, sizeof rate, p, (double)units * 1000 / (double)spent);
        parts.rate = rate;
    }
    if (total && worked && done <= total) {
        text_duration(time, sizeof time,
                      (uint64_t)((double)spent * (double)(total - done) / (double)worked));
        snprintf(left, sizeof left, "%s left", time);
        parts.left = left;
    }
    draw(p, &parts);
}

/* A second call prints nothing, so that error paths may call it too. */
void progress_end(struct progress *p, const char *detail)
{
    if (!p->enabled) return;
    p->enabled = false;
    if (p->bytes && !p->drawn) return;
    char time[24];
    text_duration(time, sizeof time, text_now_ms() - p->begun_ms);
    draw(p, &(struct progress_parts){.what = p->what, .detail = detail, .left = time});
    if (p->terminal) fputc('\n', stderr);
}

/* The line of a terminal is erased first; the next update draws it again. */
void progress_note(struct progress *p, const char *text)
{
    if (!p->enabled) return;
    fprintf(stderr, "%s%s\n", p->terminal && p->drawn ? "\r\033[K" : "", text);
    fflush(stderr);
}
