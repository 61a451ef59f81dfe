/* How long this machine has trained today, in the file `day` of the work directory: the local date
 * and milliseconds. A file that is missing, damaged or of another day counts as no time. */
#ifndef CLIENT_SESSION_DAY_H
#define CLIENT_SESSION_DAY_H

#include "base/err.h"

#include <stdint.h>
#include <time.h>

uint64_t session_day_used_ms(const char *work, const struct tm *now);
/* Failures are ignored by the caller only if it does not limit the time. */
err session_day_add(const char *work, const struct tm *now, uint64_t ms);

#endif
