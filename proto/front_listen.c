#include "proto/front_listen.h"

#include "proto/rpc.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LISTEN_BACKLOG = 4096, LISTEN_TRIES = 5 };

static void set_port(struct sockaddr_storage *address, int port)
{
    if (address->ss_family == AF_INET6)
        ((struct sockaddr_in6 *)address)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)address)->sin_port = htons((uint16_t)port);
}

static int port_of(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0) return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

/* Returns 0 or errno. The port of the first socket is used for all. */
static int listen_one(struct front_listeners *l, const struct addrinfo *a)
{
    struct sockaddr_storage address = {0};
    int yes = 1, no = 0;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0) return errno;
    memcpy(&address, a->ai_addr, a->ai_addrlen);
    if (l->count > 0) set_port(&address, l->port);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (a->ai_family == AF_INET6) /* "::" serves IPv4 too */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (bind(fd, (struct sockaddr *)&address, a->ai_addrlen) != 0 ||
        listen(fd, LISTEN_BACKLOG) != 0) {
        int code = errno;
        close(fd);
        return code;
    }
    if (l->count == 0) l->port = port_of(fd);
    l->fd[l->count++] = fd;
    return 0;
}

/* True for an address that this machine does not have, for example where IPv6 is switched off. */
static bool is_absent(int code)
{
    return code == EAFNOSUPPORT || code == EADDRNOTAVAIL || code == EPROTONOSUPPORT;
}

static int listen_all(struct front_listeners *out, const struct addrinfo *found)
{
    struct front_listeners l = {0};
    int absent = EADDRNOTAVAIL;
    for (const struct addrinfo *a = found; a != NULL && l.count < FRONT_LISTENERS; a = a->ai_next) {
        int code = listen_one(&l, a);
        if (is_absent(code)) {
            absent = code;
        } else if (code != 0) {
            front_listen_close(&l);
            return code;
        }
    }
    if (l.count == 0) return absent;
    *out = l;
    return 0;
}

err front_listen(struct front_listeners *out, const char *host, const char *port, const char *name)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE},
                    *found = NULL;
    int result = 0;
    /* "0.0.0.0" has always served IPv6 too. */
    if (strcmp(host, "0.0.0.0") == 0 && getaddrinfo("::", port, &hints, &found) == 0) {
        result = listen_all(out, found);
        freeaddrinfo(found);
        if (result == 0) return ERR_NONE;
    }
    int code = getaddrinfo(host, port, &hints, &found);
    if (code != 0)
        return err_make(ERR_INPUT, "listen = %s: %s: %s", name, host, gai_strerror(code));
    /* A free port of the first address may be taken on the second. */
    for (int i = 0; i < LISTEN_TRIES; i++) {
        result = listen_all(out, found);
        if (result != EADDRINUSE || strcmp(port, "0") != 0) break;
    }
    freeaddrinfo(found);
    if (result == EADDRINUSE)
        return err_sys(EADDRINUSE, "cannot listen on %s: another program has this port", name);
    if (result != 0) return err_sys(result, "cannot listen on %s", name);
    return ERR_NONE;
}

err front_listen_text(struct front_listeners *out, const char *text, const char *key)
{
    char host[256], port[6];
    TRY(rpc_wire_split(host, sizeof host, port, text, key));
    err e = front_listen(out, host, port, text);
    return err_is(e) ? err_in(e, "%s", key) : e;
}

void front_listen_close(struct front_listeners *l)
{
    for (size_t i = 0; i < l->count; i++)
        close(l->fd[i]);
    l->count = 0;
}
