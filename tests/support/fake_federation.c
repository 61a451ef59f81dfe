#include "tests/support/fake_federation.h"

#include "base/bytes.h"
#include "base/file.h"
#include "base/text.h"
#include "tests/support/database.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_MS = 20000, LOG_BYTES_MAX = 64 << 20 };

int fake_federation_free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0), port = 0;
    if (bind(fd, (struct sockaddr *)&address, size) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &size) == 0)
        port = ntohs(address.sin_port);
    close(fd);
    return port;
}

static err make_certs(const struct fake_federation *f, int members)
{
    struct bytes command = {.max = 1 << 20};
    const char *made = getenv("FEDLORA_CERTS");
    if (made) {
        TRY(bytes_printf(&command, "cp -r %s %s", made, f->certs));
        int code = system((char *)command.data);
        bytes_close(&command);
        return code == 0 ? ERR_NONE : err_make(ERR_MACHINE, "%s cannot be copied", made);
    }
    TRY(bytes_printf(&command, "%s/deploy/make-certs.sh %s --federation test --admin ops stranger",
                     FEDLORA_SOURCE_DIR, f->certs));
    for (int i = 0; i < members; i++)
        TRY(bytes_printf(&command, " m%d", i));
    TRY(bytes_printf(&command, " >%s/certs.log 2>&1", f->dir));
    int status = system((char *)command.data);
    bytes_close(&command);
    return status == 0 ? ERR_NONE
                       : err_make(ERR_MACHINE, "make-certs.sh: see %s/certs.log", f->dir);
}

static err write_config(const struct fake_federation *f, int members, const char *more)
{
    struct bytes text = {.max = 1 << 20};
    char path[600], database[DATABASE_BYTES];
    snprintf(path, sizeof path, "%s/fedlorad.ini", f->dir);
    TRY(bytes_printf(&text,
                     "[server]\nlisten = %s\nca = %s/ca.pem\ncert = %s/server.pem\nkey = "
                     "%s/server.key\n[store]\npath = %s\n",
                     f->address, f->certs, f->certs, f->certs, f->store));
    if (*support_database(database, f->store))
        TRY(bytes_printf(&text, "database = %s\n", database));
    TRY(bytes_printf(&text, "[federation]\nname = test\nmembers = "));
    for (int i = 0; i < members; i++)
        TRY(bytes_printf(&text, i ? ",m%d" : "m%d", i));
    TRY(bytes_printf(&text, "\n%s\n", more));
    err e = file_write(path, text.data, text.size, true);
    bytes_close(&text);
    return e;
}

err fake_federation_open(struct fake_federation *out, const char *dir, int members,
                         const char *more)
{
    struct fake_federation f = {.port = fake_federation_free_port()};
    snprintf(f.dir, sizeof f.dir, "%s", dir);
    snprintf(f.certs, sizeof f.certs, "%s/certs", f.dir);
    snprintf(f.store, sizeof f.store, "%s/store", f.dir);
    snprintf(f.log, sizeof f.log, "%s/fedlorad.log", f.dir);
    snprintf(f.address, sizeof f.address, "127.0.0.1:%d", f.port);
    TRY(make_certs(&f, members));
    TRY(write_config(&f, members, more));
    *out = f;
    return ERR_NONE;
}

static pid_t spawn(const struct fake_federation *f, const char *option)
{
    char program[600], config[600];
    snprintf(program, sizeof program, "%s/fedlorad", FEDLORA_BUILD_DIR);
    snprintf(config, sizeof config, "%s/fedlorad.ini", f->dir);
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int log = open(f->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(log, 1);
    dup2(log, 2);
    execl(program, "fedlorad", "--config", config, option, (char *)NULL);
    _exit(127);
}

/* The start first tries the address and closes it again, which ends connections made just then. A
 * server keeps them and waits for the first byte. */
static bool listens(const struct fake_federation *f)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)f->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct pollfd ended = {.fd = fd, .events = POLLIN};
    bool yes =
        connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && poll(&ended, 1, 20) == 0;
    close(fd);
    return yes;
}

err fake_federation_start(struct fake_federation *f)
{
    uint64_t until = text_now_ms() + START_MS;
    f->coordinator = spawn(f, NULL);
    while (!listens(f)) {
        int status;
        if (waitpid(f->coordinator, &status, WNOHANG) == f->coordinator || text_now_ms() > until) {
            f->coordinator = 0;
            return err_make(ERR_MACHINE, "fedlorad does not start; see %s", f->log);
        }
        usleep(5000);
    }
    return ERR_NONE;
}

static int wait_for(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int fake_federation_stop(struct fake_federation *f, int signal_number)
{
    if (f->coordinator == 0) return 0;
    kill(f->coordinator, signal_number);
    int status = wait_for(f->coordinator);
    f->coordinator = 0;
    return status;
}

err fake_federation_kill(struct fake_federation *f, int times)
{
    for (int i = 0; i < times; i++) {
        usleep(30000 + 17000 * (unsigned)i);
        if (fake_federation_stop(f, SIGKILL) != -1)
            return err_make(ERR_MACHINE, "fedlorad had ended by itself; see %s", f->log);
        TRY(fake_federation_start(f));
    }
    return ERR_NONE;
}

int fake_federation_try(const struct fake_federation *f, const char *option)
{
    return wait_for(spawn(f, option));
}

bool fake_federation_logged(const struct fake_federation *f, const char *part)
{
    char *text = NULL;
    size_t size;
    if (err_is(file_read_all(&text, &size, f->log, LOG_BYTES_MAX))) return false;
    bool found = strstr(text, part);
    free(text);
    return found;
}

long fake_federation_peak_kb(const struct fake_federation *f)
{
    char path[64], line[256];
    long kb = -1;
    snprintf(path, sizeof path, "/proc/%d/status", (int)f->coordinator);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "VmHWM:", 6)) kb = strtol(line + 6, NULL, 10);
    if (file) fclose(file);
    return kb;
}

void fake_federation_close(struct fake_federation *f)
{
    fake_federation_stop(f, SIGKILL);
}
