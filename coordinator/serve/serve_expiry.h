/* Lines in the log before certificates end. */
#ifndef COORDINATOR_SERVE_EXPIRY_H
#define COORDINATOR_SERVE_EXPIRY_H

#include <stdint.h>

struct serve;

/* Logs each certificate that has come within 30, 14, 7 or 1 days of its end since the last look; at
 * the first look all within these days. Loop thread. */
void serve_expiry_look(struct serve *s);
/* For tests: which of these days a certificate with left_s seconds has come within. 0: none. Days
 * of more than most_s seconds are left out. */
int64_t serve_expiry_reached(int64_t left_s, int64_t most_s);

#endif
