/* The state of a membership as one line for the service manager, which `systemctl status` shows. */
#ifndef CLIENT_SESSION_STATUS_H
#define CLIENT_SESSION_STATUS_H

#include "client/session/session_round.h"

/* Sends the line if it is another one than before; see base/notify.h. */
void session_status(struct session *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
