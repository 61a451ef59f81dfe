/* Messages to a service manager: a socket made here receives what systemd would. */
#include "base/notify.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char got[2 * NOTIFY_BYTES];

/* Binds the name as the variable has it; '@' stands for the zero of an abstract name. */
static int listen_at(const char *name)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    snprintf(at.sun_path, sizeof at.sun_path, "%s", name);
    if (*name == '@') at.sun_path[0] = 0;
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    cr_assert_eq(bind(fd, (struct sockaddr *)&at, length), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static const char *receive(int fd)
{
    ssize_t n = recv(fd, got, sizeof got - 1, 0);
    got[n < 0 ? 0 : n] = 0;
    return got;
}

Test(notify, a_message_reaches_a_socket_with_a_path)
{
    char dir[SUPPORT_PATH_BYTES], name[SUPPORT_PATH_BYTES + 8];
    support_dir_make(dir);
    snprintf(name, sizeof name, "%s/n", dir);
    int fd = listen_at(name);
    cr_expect(notify_send("READY=1"));
    cr_expect_str_eq(receive(fd), "READY=1");
    close(fd);
    support_dir_remove(dir);
}

Test(notify, a_message_reaches_an_abstract_socket)
{
    char name[64];
    snprintf(name, sizeof name, "@fedlora-notify-%d", getpid());
    int fd = listen_at(name);
    cr_expect(notify_status("serving %d runs", 2));
    cr_expect_str_eq(receive(fd), "STATUS=serving 2 runs");
    close(fd);
}

Test(notify, a_status_is_one_line_of_a_bounded_length)
{
    char name[64], text[4 * NOTIFY_BYTES];
    snprintf(name, sizeof name, "@fedlora-notify-%d", getpid());
    int fd = listen_at(name);
    cr_expect(notify_status("%s", "run a\nREADY=1"));
    cr_expect_str_eq(receive(fd), "STATUS=run a READY=1");
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    cr_expect(notify_status("%s", text));
    cr_expect_lt(strlen(receive(fd)), NOTIFY_BYTES);
    cr_expect(notify_reloading());
    cr_expect_eq(strncmp(receive(fd), "RELOADING=1\nMONOTONIC_USEC=", 27), 0);
    close(fd);
}

Test(notify, without_a_socket_nothing_happens)
{
    unsetenv("NOTIFY_SOCKET");
    cr_expect_not(notify_send("READY=1"));
    setenv("NOTIFY_SOCKET", "relative", 1);
    cr_expect_not(notify_send("READY=1"));
    setenv("NOTIFY_SOCKET", "/nowhere/at/all", 1);
    cr_expect_not(notify_send("READY=1"));
}

Test(notify, only_the_watched_process_has_a_watchdog)
{
    char pid[32];
    unsetenv("WATCHDOG_PID");
    unsetenv("WATCHDOG_USEC");
    cr_expect_eq(notify_watchdog_ms(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    cr_expect_eq(notify_watchdog_ms(), 30000);
    setenv("WATCHDOG_PID", "1", 1);
    cr_expect_eq(notify_watchdog_ms(), 0);
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("WATCHDOG_PID", pid, 1);
    cr_expect_eq(notify_watchdog_ms(), 30000);
    setenv("WATCHDOG_USEC", "soon", 1);
    cr_expect_eq(notify_watchdog_ms(), 0);
}
