/* The listening sockets of one "host:port". */
#ifndef PROTO_FRONT_LISTEN_H
#define PROTO_FRONT_LISTEN_H

#include "base/err.h"

#include <stddef.h>

enum { FRONT_LISTENERS = 8 };

struct front_listeners {
    int fd[FRONT_LISTENERS];
    size_t count;
    int port;
};

/* Listens on every address of the host, all with one port; "0" is any free one. `name` is the
 * configured text, for errors. ERR_INPUT: the host cannot be found; ERR_MACHINE with EADDRINUSE:
 * the port is in use. */
err front_listen(struct front_listeners *out, const char *host, const char *port, const char *name);
/* The same for "host:port" as it is configured under `key`, for errors. */
err front_listen_text(struct front_listeners *out, const char *text, const char *key);
void front_listen_close(struct front_listeners *listeners);

#endif
