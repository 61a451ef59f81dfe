#include "client/output/progress.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { PROGRESS_TERMINAL_MS = 100, PROGRESS_PLAIN_MS = 5000, PROGRESS_LINE = 400 };

void progress_begin(struct progress *p, bool quiet, const char *what, const char *unit)
{
    *p = (struct progress){.enabled = !quiet, .unit = unit, .begun_ms = text_now_ms()};
    p->terminal = isatty(STDERR_FILENO) == 1;
    p->shown_ms = p->begun_ms;
    snprintf(p->what, sizeof p->what, "%s", what);
}

/* Cut to the terminal's width, so that the line stays one line; never inside a character. */
static void draw(struct progress *p, char *line)
{
    if (!p->terminal) {
        fprintf(stderr, "%s\n", line);
        return;
    }
    struct winsize size;
    size_t width = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 10) width = size.ws_col;
    if (strlen(line) >= width) {
        size_t cut = width - 1;
        while (cut > 0 && ((unsigned char)line[cut] & 0xc0) == 0x80)
            cut--;
        line[cut] = 0;
    }
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    p->drawn = true;
}

void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t units,
                     const char *detail)
{
    if (!p->enabled) return;
    uint64_t now = text_now_ms(), spent = now - p->begun_ms;
    uint64_t pause = p->terminal ? PROGRESS_TERMINAL_MS : PROGRESS_PLAIN_MS;
    if (now - p->shown_ms < pause) return;
    p->shown_ms = now;
    char far[64], rate[64] = "", left[48] = "", line[PROGRESS_LINE];
    if (total)
        snprintf(far, sizeof far, "%" PRIu64 "/%" PRIu64 " (%.0f %%)", done, total,
                 100.0 * (double)done / (double)total);
    else
        snprintf(far, sizeof far, "%" PRIu64, done);
    if (units && spent && p->unit)
        snprintf(rate, sizeof rate, "  %.*f %s/s", units * 1000 / spent < 10 ? 1 : 0,
                 (double)units * 1000 / (double)spent, p->unit);
    if (total && done && done <= total) {
        char time[24];
        text_duration(time, sizeof time,
                      (uint64_t)((double)spent * (double)(total - done) / (double)done));
        snprintf(left, sizeof left, "  %s left", time);
    }
    snprintf(line, sizeof line, "%s  %s%s%.120s%s%s", p->what, far, detail ? "  " : "",
             detail ? detail : "", rate, left);
    draw(p, line);
}

void progress_end(struct progress *p, const char *detail)
{
    if (!p->enabled) return;
    char line[PROGRESS_LINE], time[24];
    text_duration(time, sizeof time, text_now_ms() - p->begun_ms);
    snprintf(line, sizeof line, "%s  %.200s%s%s", p->what, detail ? detail : "", detail ? "  " : "",
             time);
    draw(p, line);
    if (p->terminal) fputc('\n', stderr);
    p->enabled = false;
}
