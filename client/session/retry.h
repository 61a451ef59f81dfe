/* Retries with growing pauses. A pause is chosen at random between half and all of its length, so
 * that many members do not come back at the same moment after a restart of the coordinator.
 * Retries end when a stated time has passed since the last success. The first failure prints a
 * line, and after that one an hour or a new cause of failure, so that an outage of days leaves a
 * short log. */
#ifndef CLIENT_RETRY_H
#define CLIENT_RETRY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { RETRY_SAY_MS = 60 * 60 * 1000, RETRY_SAY_NEW_MS = 60 * 1000, RETRY_SAY_FIRST = 4 };
#define RETRY_FOR_EVER UINT64_MAX

/* One per connection; zeroed except for the first two members. */
struct retry {
    uint64_t give_up_ms; /* longest time without success; 0: no retry */
    bool quiet;          /* print nothing */
    unsigned attempt;    /* failures since the last success */
    uint64_t since_ms;   /* time of the first of them */
    uint64_t said_ms;    /* time of the newest line about them; 0: none since the last answer */
    unsigned said_lines; /* since the last answer */
    char said[ERR_TEXT_BYTES];
};

/* The longest pause before attempt n (from 1): 500 ms, doubled each time, at most 30 s. */
uint64_t retry_backoff_ms(unsigned attempt);
/* True for errors that time may cure: ERR_MACHINE, ERR_LIMIT, ERR_STATE. */
bool retry_may_help(err cause);
/* Waits and returns success, or returns an error: `cause` itself if a retry cannot help or too much
 * time has passed, ERR_STOPPED when the user interrupts. `whom` is named in the message: "the
 * coordinator". */
err retry_wait(struct retry *retry, err cause, const char *whom);
/* The other side has answered, which is printed after failures; it may still refuse the call. */
void retry_answered(struct retry *retry);
/* Call it after each success; the next failure starts with a short pause again. */
void retry_ok(struct retry *retry);
/* Sleeps in short slices; ERR_STOPPED when the user interrupts. */
err retry_sleep(uint64_t ms);

#endif
