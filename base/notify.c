#include "base/notify.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The address of the socket, and its length. A name that starts with '@' is abstract: its first
 * byte is then a zero, and the length ends the name. 0: there is none that can be used. */
static socklen_t address_of(struct sockaddr_un *out)
{
    const char *name = getenv("NOTIFY_SOCKET");
    size_t length = name ? strlen(name) : 0;
    if (length < 2 || length >= sizeof out->sun_path || (name[0] != '/' && name[0] != '@'))
        return 0;
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(out->sun_path, name, length);
    if (name[0] == '@') out->sun_path[0] = 0;
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
}

/* The socket is opened for each message: they are rare, and a manager that was restarted has bound
 * a new one. A full socket loses the message instead of blocking the caller. */
bool notify_send(const char *message)
{
    struct sockaddr_un to;
    socklen_t length = address_of(&to);
    if (!length) return false;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    size_t size = strlen(message);
    if (size >= NOTIFY_BYTES) size = NOTIFY_BYTES - 1;
    ssize_t sent = sendto(fd, message, size, MSG_NOSIGNAL, (const struct sockaddr *)&to, length);
    (void)close(fd);
    return sent == (ssize_t)size;
}

/* A line end in the text would start another assignment, so the text is made one line. */
bool notify_status(const char *format, ...)
{
    static const char name[] = "STATUS=";
    char text[NOTIFY_BYTES - sizeof name], line[NOTIFY_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text_tame(text);
    snprintf(line, sizeof line, "%s%s", name, text);
    return notify_send(line);
}

bool notify_reloading(void)
{
    char line[96];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(line, sizeof line, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
             (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
    return notify_send(line);
}

/* WATCHDOG_PID names the process that is watched: a child inherits the variables, but is not. */
uint64_t notify_watchdog_ms(void)
{
    const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    int64_t us = 0, watched = 0;
    if (!usec || err_is(text_parse_int(&us, usec, 1, INT64_MAX))) return 0;
    if (pid && (err_is(text_parse_int(&watched, pid, 1, INT64_MAX)) || watched != getpid()))
        return 0;
    return us < 1000 ? 1 : (uint64_t)us / 1000;
}
