/* Errors by value: the kind tells who acts next, the text names the thing and what was expected.
 *
 * A function that can fail returns `err`; its outputs are untouched on failure. Libraries never
 * log. They pass errors up, and the caller that knows the peer, the file or the run adds its name
 * with err_in(). */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

enum err_kind {
    ERR_OK = 0,  /* success                                                         exit 0   */
    ERR_INPUT,   /* wrong bytes or values; the sender corrects them, no retry       exit 2   */
    ERR_STATE,   /* right bytes at the wrong moment; refresh, then retry            exit 1   */
    ERR_LIMIT,   /* a stated limit is reached; retry later                          exit 1   */
    ERR_MACHINE, /* disk, GPU, network or memory; the operator acts                 exit 1   */
    ERR_REFUSED, /* the other side refused and would refuse again                   exit 3   */
    ERR_STOPPED, /* the user interrupted                                            exit 130 */
};

enum { ERR_TEXT_BYTES = 504 };

typedef struct [[nodiscard]] err {
    enum err_kind kind;
    int sys;                   /* errno if a system call was the cause, else 0 */
    char text[ERR_TEXT_BYTES]; /* zero-terminated; the bytes behind the zero are not set */
} err;

/* Success. A compound literal would zero all 512 bytes, which costs more than many of the functions
 * that return it; this writes 9 bytes into the caller's return slot. */
static inline err err_none(void)
{
    err e;
    e.kind = ERR_OK;
    e.sys = 0;
    e.text[0] = 0;
    return e;
}
#define ERR_NONE err_none()

/* printf-style; the text is cut at ERR_TEXT_BYTES, control characters in it become '?'. */
err err_make(enum err_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* err_make() of kind ERR_MACHINE (ENOMEM, ENOSPC, EIO, ...) with ": strerror(sys)" appended. */
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

/* For mistakes in this program only, never for input. Stays on in release builds; prints the place
 * and aborts. */
#define REQUIRE(x) ((x) ? (void)0 : require_failed(#x, __FILE__, __LINE__))
void require_failed(const char *what, const char *file, int line) __attribute__((noreturn));

#endif
