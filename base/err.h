/* Errors by value: what went wrong, who acts next, and a short text made where the cause is known.
 *
 * A function that can fail returns `err`; its outputs are untouched on failure. ERR_OK is zero, so
 * `err e = {0}` means success. The text names the thing and what was expected. Libraries never log:
 * they pass errors up, and whoever can name the peer, file or run puts that in front with err_in().
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

enum err_kind {
    ERR_OK = 0,
    ERR_INPUT,   /* the sender: wrong bytes; do not retry                      exit 2 */
    ERR_STATE,   /* the sender: wrong moment; refresh and try again            exit 1 */
    ERR_LIMIT,   /* time: a stated limit is full; back off                     exit 1 */
    ERR_MACHINE, /* the operator: disk, GPU, network, memory                   exit 1 */
    ERR_REFUSED, /* the other side said no, and will say no again              exit 3 */
    ERR_STOPPED, /* the user interrupted                                       exit 130 */
};

enum { ERR_TEXT_BYTES = 504 };

typedef struct [[nodiscard]] err {
    enum err_kind kind;
    int sys; /* errno where one was the cause, else 0 */
    char text[ERR_TEXT_BYTES];
} err;

#define ERR_NONE ((err){0})

/* printf-style; the text is cut at ERR_TEXT_BYTES, control characters in it become '?'. */
err err_make(enum err_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As err_make with kind ERR_MACHINE (ENOMEM, ENOSPC, EIO, ... all are) and ": strerror(sys)"
 * appended. */
err err_sys(int sys, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "format: " in front of the text of `cause`; kind and sys are kept. */
err err_in(err cause, const char *format, ...) __attribute__((format(printf, 2, 3)));

int err_exit_code(err e);

static inline bool err_is(err e)
{
    return e.kind != ERR_OK;
}

/* Returns from the calling function when `call` fails; only where nothing is held. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        err try_err_ = (call);                                                                     \
        if (try_err_.kind != ERR_OK) return try_err_;                                              \
    } while (0)

/* Stores the result in `e` and goes to `out` when `call` fails. */
#define TRY_OUT(e, call)                                                                           \
    do {                                                                                           \
        (e) = (call);                                                                              \
        if ((e).kind != ERR_OK) goto out;                                                          \
    } while (0)

/* Our own mistakes only; on in release builds; prints the place and aborts. */
#define REQUIRE(x) ((x) ? (void)0 : require_failed(#x, __FILE__, __LINE__))
_Noreturn void require_failed(const char *what, const char *file, int line);

#endif
