#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

struct unit {
    const char *name;
    uint64_t factor;
};

/* Compared without case, so "mb" is accepted; "MB" is 10^6 and "MiB" 2^20, as in the standards. */
static const struct unit size_units[] = {
    {"", 1},
    {"B", 1},
    {"kB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"KiB", 1ull << 10},
    {"MiB", 1ull << 20},
    {"GiB", 1ull << 30},
    {"TiB", 1ull << 40},
};
static const struct unit duration_units[] = {
    {"", 1000},     {"ms", 1},      {"s", 1000},     {"m", 60000},
    {"min", 60000}, {"h", 3600000}, {"d", 86400000}, {"y", 365ull * 86400000},
};

/* digits[.digits] [spaces] unit. Whole numbers are exact; a fraction is rounded to the smallest
 * unit. False on overflow. */
static bool parse_with_unit(uint64_t *out, const char *text, const struct unit *unit, size_t units)
{
    if (!isdigit((unsigned char)*text)) return false;
    char *end;
    errno = 0;
    uint64_t whole = strtoull(text, &end, 10);
    if (errno) return false;
    double fraction = 0;
    if (*end == '.') {
        double scale = 0.1;
        if (!isdigit((unsigned char)*++end)) return false;
        for (; isdigit((unsigned char)*end); end++, scale /= 10)
            fraction += (*end - '0') * scale;
    }
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < units; i++) {
        if (strcasecmp(end, unit[i].name) != 0) continue;
        uint64_t value, part = (uint64_t)llround(fraction * (double)unit[i].factor);
        if (__builtin_mul_overflow(whole, unit[i].factor, &value) ||
            __builtin_add_overflow(value, part, &value))
            return false;
        *out = value;
        return true;
    }
    return false;
}

err text_parse_size(uint64_t *out, const char *text)
{
    if (parse_with_unit(out, text, size_units, sizeof size_units / sizeof *size_units))
        return ERR_NONE;
    return err_make(ERR_INPUT,
                    "\"%.60s\" is not a size: expected a number such as 512, 40MB or 2GiB", text);
}

err text_parse_duration_ms(uint64_t *out, const char *text)
{
    if (parse_with_unit(out, text, duration_units, sizeof duration_units / sizeof *duration_units))
        return ERR_NONE;
    return err_make(ERR_INPUT,
                    "\"%.60s\" is not a duration: expected a number such as 250ms, 90s, 15m or 2h",
                    text);
}

/* strtoll() skips leading spaces. They are refused here, because they come from a mistake in
 * quoting. */
err text_parse_int(int64_t *out, const char *text, int64_t least, int64_t most)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text))
        return err_make(ERR_INPUT, "\"%.60s\" is not a whole number", text);
    if (errno || value < least || value > most)
        return err_make(ERR_INPUT, "%.60s is out of range: expected %lld to %lld", text,
                        (long long)least, (long long)most);
    *out = value;
    return ERR_NONE;
}

/* strtod() also accepts "nan", "inf" and hexadecimal floats, none of which is a sensible option. */
err text_parse_num(double *out, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text) || !isfinite(value) ||
        strpbrk(text, "xX"))
        return err_make(ERR_INPUT, "\"%.60s\" is not a number", text);
    if (value < least || value > most)
        return err_make(ERR_INPUT, "%.60s is out of range: expected %g to %g", text, least, most);
    *out = value;
    return ERR_NONE;
}

err text_parse_part(double *out, const char *text, double least, double most)
{
    char number[64];
    double value = 0;
    size_t n = strlen(text);
    bool percent = n && text[n - 1] == '%';
    if (percent) n--;
    while (percent && n && text[n - 1] == ' ')
        n--;
    snprintf(number, sizeof number, "%.*s", (int)(n < 63 ? n : 63), text);
    TRY(text_parse_num(&value, number, -1e300, 1e300));
    if (percent) value /= 100;
    if (value < least || value > most)
        return err_make(ERR_INPUT, "%.60s is out of range: expected %g to %g", text, least, most);
    *out = value;
    return ERR_NONE;
}

/* The limit is 999.95, because larger values would be rounded to "1000.0 kB"; they are printed as
 * "1.0 MB". */
void text_size(char *out, size_t bytes, uint64_t n)
{
    static const char *const name[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double value = (double)n;
    size_t i = 0;
    while (value >= 999.95 && i + 1 < sizeof name / sizeof *name) {
        value /= 1000;
        i++;
    }
    if (i == 0)
        snprintf(out, bytes, "%.0f B", value);
    else
        snprintf(out, bytes, "%.1f %s", value, name[i]);
}

void text_duration(char *out, size_t bytes, uint64_t ms)
{
    uint64_t s = ms / 1000;
    if (ms < 10000)
        snprintf(out, bytes, "%.1fs", (double)(ms / 100) / 10);
    else if (s < 60)
        snprintf(out, bytes, "%us", (unsigned)s);
    else if (s < 3600)
        snprintf(out, bytes, "%um%02us", (unsigned)(s / 60), (unsigned)(s % 60));
    else
        snprintf(out, bytes, "%lluh%02um", (unsigned long long)(s / 3600), (unsigned)(s / 60 % 60));
}

/* Edit distance in which a swap of neighbours counts as one edit. Words over 63 bytes are not
 * compared. */
static size_t distance(const char *a, const char *b)
{
    size_t m = strlen(a), n = strlen(b);
    if (m > 63 || n > 63) return 64;
    size_t row[3][64];
    for (size_t j = 0; j <= n; j++)
        row[1][j] = j;
    for (size_t i = 1; i <= m; i++) {
        size_t *now = row[(i + 1) % 3], *last = row[i % 3], *before = row[(i + 2) % 3];
        now[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[(m + 1) % 3][n];
}

/* Ties go to the earlier word, but among words that begin with `word` to the shortest. A word with
 * as many edits as letters has nothing in common with `word`, so it is never suggested. */
const char *text_nearest(const char *word, const char *const *words, size_t count)
{
    const char *nearest = NULL;
    size_t length = strlen(word), most = length / 3 > 1 ? length / 3 : 1;
    for (size_t i = 0; i < count; i++) {
        size_t d = distance(word, words[i]);
        /* An abbreviation ("--adap") counts as one edit. */
        bool completes = length >= 3 && strncmp(word, words[i], length) == 0;
        if (completes && d > 1) d = 1;
        bool shorter = completes && nearest && strncmp(word, nearest, length) == 0 &&
                       strlen(words[i]) < strlen(nearest);
        if ((d <= most || shorter) && d < strlen(words[i])) {
            nearest = words[i];
            most = d ? d - 1 : 0;
            if (d == 0) break;
        }
    }
    return nearest;
}

/* RFC 3629: no overlong forms, no surrogates, at most U+10FFFF. */
const char *text_suggestion(char out[TEXT_SUGGESTION_BYTES], const char *word,
                            const char *const *words, size_t count)
{
    const char *nearest = text_nearest(word, words, count);
    out[0] = 0;
    if (nearest) snprintf(out, TEXT_SUGGESTION_BYTES, "; did you mean %s?", nearest);
    return out;
}

bool text_is_utf8(const void *data, size_t size)
{
    const uint8_t *p = data, *end = p + size;
    while (p < end) {
        uint8_t c = *p++;
        if (c < 0x80) continue;
        size_t more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || (size_t)(end - p) < more) return false;
        if ((c == 0xe0 && p[0] < 0xa0) || (c == 0xed && p[0] > 0x9f) ||
            (c == 0xf0 && p[0] < 0x90) || (c == 0xf4 && p[0] > 0x8f))
            return false;
        for (; more; more--)
            if ((*p++ & 0xc0) != 0x80) return false;
    }
    return true;
}

bool text_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

size_t text_control(const char *text, size_t size)
{
    const unsigned char *p = (const unsigned char *)text;
    if (size == 0) return 0;
    if (p[0] < 0x20 || p[0] == 0x7f) return 1;
    return size > 1 && p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f ? 2 : 0; /* U+0080 to U+009F */
}

/* The number of bytes of the character at p that must not be shown as it is; 0: it is harmless. */
static size_t wild_bytes(const unsigned char *p, bool utf8)
{
    size_t control = text_control((const char *)p, utf8 ? 2 : 1);
    if (control) return control;
    if (!utf8) return p[0] >= 0x80;
    if (p[0] != 0xe2) return 0;
    bool marks = p[1] == 0x80 && (p[2] == 0x8e || p[2] == 0x8f); /* U+200E, U+200F */
    bool lines = p[1] == 0x80 && p[2] >= 0xa8 && p[2] <= 0xae;   /* U+2028 to U+202E */
    bool isolates = p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9;
    return marks || lines || isolates ? 3 : 0;
}

/* Writes only where something changes, because empty fields of messages are constants. */
void text_tame(char *text)
{
    bool utf8 = text_is_utf8(text, strlen(text));
    char *to = text, *p = text;
    while (*p) {
        size_t wild = wild_bytes((const unsigned char *)p, utf8);
        char c = !wild ? *p : *p == '\n' || *p == '\t' || *p == '\r' ? ' ' : '?';
        if (*to != c) *to = c;
        to++;
        p += wild ? wild : 1;
    }
    if (to != p) *to = 0;
}

bool text_is_name(const char *text, size_t bytes_max)
{
    size_t n = strlen(text);
    if (n < 1 || n > bytes_max || *text == '.' || *text == '-') return false;
    for (const char *p = text; *p; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
              *p == '.' || *p == '_' || *p == '-'))
            return false;
    return true;
}

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int text_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

uint64_t text_now_ms(void)
{
    return clock_ms(CLOCK_MONOTONIC);
}
uint64_t text_wall_ms(void)
{
    return clock_ms(CLOCK_REALTIME);
}
