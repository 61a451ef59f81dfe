#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Error texts quote names from files that are not trusted, and control characters in them could
 * rewrite the terminal. */
static void text_clean(char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f) text[i] = '?';
    }
    if (n != ERR_TEXT_BYTES - 1) return;
    /* Cut to size: do not leave part of a UTF-8 sequence at the end. */
    size_t start = n - 1;
    while (start > n - 4 && ((unsigned char)text[start] & 0xc0) == 0x80)
        start--;
    unsigned char lead = (unsigned char)text[start];
    size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (n - start < need) text[start] = 0;
}

/* "what: why". A long `what` is cut at 360 bytes, so that the cause is always visible. */
static void text_join(char out[ERR_TEXT_BYTES], const char *what, const char *why)
{
    int n = snprintf(out, ERR_TEXT_BYTES, "%.360s: %s", what, why);
    if (n >= ERR_TEXT_BYTES) memcpy(out + ERR_TEXT_BYTES - 4, "...", 4);
    text_clean(out);
}

err err_make(enum err_kind kind, const char *format, ...)
{
    err e = {.kind = kind};
    va_list args;
    va_start(args, format);
    vsnprintf(e.text, sizeof e.text, format, args);
    va_end(args);
    text_clean(e.text);
    return e;
}

err err_sys(int sys, const char *format, ...)
{
    char what[ERR_TEXT_BYTES], why[128];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    err e = {.kind = ERR_MACHINE, .sys = sys};
    text_join(e.text, what, strerror_r(sys, why, sizeof why));
    return e;
}

err err_in(err cause, const char *format, ...)
{
    char what[ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    err e = {.kind = cause.kind, .sys = cause.sys};
    text_join(e.text, what, cause.text);
    return e;
}

/* A switch without default, so that the compiler notices a new kind. */
int err_exit_code(err e)
{
    switch (e.kind) {
    case ERR_OK:
        return 0;
    case ERR_INPUT:
        return 2;
    case ERR_REFUSED:
        return 3;
    case ERR_STOPPED:
        return 130;
    case ERR_STATE:
    case ERR_LIMIT:
    case ERR_MACHINE:
        break;
    }
    return 1;
}

void require_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "fedlora: internal error at %s:%d: %s does not hold\n", file, line, what);
    abort();
}
