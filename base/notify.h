/* Messages to the service manager that started this process (the sd_notify protocol of systemd).
 *
 *   notify_send("READY=1\nSTATUS=serving 2 runs");
 *
 * One datagram to the socket that NOTIFY_SOCKET names, a path or an abstract name. Without that
 * variable nothing happens, so a program calls this wherever it runs. Failures are not reported,
 * because no work may depend on a service manager. Any thread. */
#ifndef BASE_NOTIFY_H
#define BASE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

enum { NOTIFY_BYTES = 512 }; /* longest message, with its zero; more is cut */

/* `message` has lines of NAME=VALUE. False: no socket is set, or it did not take the message. */
bool notify_send(const char *message);
/* The same with "STATUS=" and one formatted line, which `systemctl status` shows. */
bool notify_status(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* "RELOADING=1" with the time that Type=notify-reload needs; send READY=1 when it is done. */
bool notify_reloading(void);
/* The longest time between two "WATCHDOG=1" that the service manager tolerates (WatchdogSec), for
 * this process. 0: it does not watch. */
uint64_t notify_watchdog_ms(void);

#endif
