/* Trying again: waits that grow, jittered so that many members do not come back at once, with one
 * line that says so, until a stated time has passed since things last worked. */
#ifndef CLIENT_RETRY_H
#define CLIENT_RETRY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct retry {
    uint64_t give_up_ms; /* after so long without success; 0: at once */
    bool quiet;
    unsigned attempt; /* since the last success */
    uint64_t since_ms;
};

/* The wait before attempt n (from 1), without jitter: 500 ms, doubling, at most 30 s. */
uint64_t retry_backoff_ms(unsigned attempt);
/* True for what time may cure: ERR_MACHINE, ERR_LIMIT, ERR_STATE. */
bool retry_may_help(err cause);
/* Waits, or returns an error: `cause` itself when trying again cannot help or it has been too long,
 * ERR_STOPPED when the user interrupts. `whom` is waited for: "coordinator". */
err retry_wait(struct retry *retry, err cause, const char *whom);
void retry_ok(struct retry *retry); /* it worked */
/* Sleeps in short slices; ERR_STOPPED when the user interrupts. */
err retry_sleep(uint64_t ms);

#endif
