#include "coordinator/serve/signer_command.h"

#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VARIABLES_MAX = 64, VARIABLE_BYTES = 512, OURS = 5 };

extern char **environ;

struct variables {
    char text[OURS][VARIABLE_BYTES];
    char *list[VARIABLES_MAX + OURS + 1];
};

/* Tokens and addresses of known signers are in such variables. Nothing else of this process is the
 * command's business. */
static bool is_passed_on(const char *variable)
{
    static const char *const names[] = {"PATH=", "HOME=", "VAULT_", "STEP", "FEDLORA_"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strncmp(variable, names[i], strlen(names[i]))) return true;
    return false;
}

/* Names are safe in an environment and in a shell, because text_is_name() has passed them. */
static void fill_variables(struct variables *v, const struct certificate_order *o)
{
    size_t n = 0;
    const char *role = rpc_role_name(o->role);
    snprintf(v->text[0], VARIABLE_BYTES, "FEDLORA_URI=fl://%s/%s/%s", o->federation, role, o->id);
    snprintf(v->text[1], VARIABLE_BYTES, "FEDLORA_ROLE=%s", role);
    snprintf(v->text[2], VARIABLE_BYTES, "FEDLORA_ID=%s", o->id);
    snprintf(v->text[3], VARIABLE_BYTES, "FEDLORA_FEDERATION=%s", o->federation);
    snprintf(v->text[4], VARIABLE_BYTES, "FEDLORA_LIFE=%lld", (long long)o->life_s);
    for (; n < OURS; n++)
        v->list[n] = v->text[n];
    for (char **e = environ; *e && n < VARIABLES_MAX + OURS; e++)
        if (is_passed_on(*e)) v->list[n++] = *e;
    v->list[n] = NULL;
}

struct child {
    pid_t pid;
    int in, out; /* our ends: its standard input and output; -1: closed */
};

static void close_fd(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Signals are as in a fresh process: SIGPIPE is ignored here and must not be there. */
static int spawn(struct child *out, int in_end, int out_end, const struct signer_command *command)
{
    struct variables variables;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t all, none;
    char *argv[] = {(char *)(uintptr_t)command->path, NULL};
    fill_variables(&variables, command->order);
    sigfillset(&all);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&actions, in_end, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out_end, STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setsigmask(&attributes, &none);
    /* A group of its own, so that its own children are killed with it. */
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETPGROUP);
    int code = posix_spawn(&out->pid, command->path, &actions, &attributes, argv, variables.list);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return code;
}

/* Our ends do not block, so that a command that neither reads nor writes can be timed out. */
static err start(struct child *out, const struct signer_command *command)
{
    int in[2] = {-1, -1}, back[2] = {-1, -1};
    err e = ERR_NONE;
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0) {
        e = err_sys(errno, "%s: a pipe", command->path);
    } else {
        int code = spawn(out, in[0], back[1], command);
        if (code != 0) e = err_sys(code, "%s", command->path);
    }
    close_fd(&in[0]);
    close_fd(&back[1]);
    if (err_is(e)) {
        close_fd(&in[1]);
        close_fd(&back[0]);
        return e;
    }
    out->in = in[1];
    out->out = back[0];
    (void)fcntl(out->in, F_SETFL, O_NONBLOCK);
    (void)fcntl(out->out, F_SETFL, O_NONBLOCK);
    return ERR_NONE;
}

/* A request is smaller than a pipe's buffer, but a command may start to read late or not at all. */
static void feed(struct child *c, size_t *sent, const struct bytes *request)
{
    ssize_t n = write(c->in, request->data + *sent, request->size - *sent);
    if (n > 0) *sent += (size_t)n;
    bool failed = n < 0 && errno != EAGAIN && errno != EINTR; /* it need not read all of it */
    if (failed || *sent == request->size) close_fd(&c->in);
}

/* The output is bounded, because a broken command may print without end. */
static err drain(struct bytes *out, struct child *c, const char *path)
{
    char part[4096];
    ssize_t n = read(c->out, part, sizeof part);
    if (n > 0 && err_is(bytes_append(out, part, (size_t)n)))
        return err_make(ERR_MACHINE, "%s printed more than %zu bytes", path, out->max);
    bool failed = n < 0 && errno != EAGAIN && errno != EINTR;
    if (n == 0 || failed) close_fd(&c->out);
    return ERR_NONE;
}

/* Until it has closed its standard output. */
static err talk(struct bytes *out, struct child *c, const struct signer_command *command,
                uint64_t until_ms)
{
    size_t sent = 0;
    while (c->out >= 0) {
        uint64_t now = text_now_ms();
        struct pollfd fd[2] = {{.fd = c->out, .events = POLLIN}, {.fd = c->in, .events = POLLOUT}};
        if (now >= until_ms)
            return err_make(ERR_MACHINE, "%s took longer than %llu ms (enroll.signer_timeout)",
                            command->path, (unsigned long long)command->timeout_ms);
        if (poll(fd, 2, (int)(until_ms - now < 1000 ? until_ms - now : 1000)) < 0 && errno != EINTR)
            return err_sys(errno, "%s", command->path);
        if (c->in >= 0 && fd[1].revents) feed(c, &sent, command->request);
        if (fd[0].revents) TRY(drain(out, c, command->path));
    }
    return ERR_NONE;
}

/* A command that has closed its output and does not end gets the rest of its time, too. */
static err reap(struct child *c, const struct signer_command *command, err e, uint64_t until_ms)
{
    int status = 0;
    close_fd(&c->in);
    close_fd(&c->out);
    while (!err_is(e) && waitpid(c->pid, &status, WNOHANG) == 0) {
        if (text_now_ms() < until_ms) {
            (void)poll(NULL, 0, 10);
            continue;
        }
        e = err_make(ERR_MACHINE, "%s took longer than %llu ms (enroll.signer_timeout)",
                     command->path, (unsigned long long)command->timeout_ms);
    }
    if (err_is(e)) {
        (void)kill(-c->pid, SIGKILL);
        (void)waitpid(c->pid, &status, 0);
        return e;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return ERR_NONE;
    return err_make(ERR_MACHINE, "%s ended with %s %d", command->path,
                    WIFEXITED(status) ? "status" : "signal",
                    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

/* One deadline for all of it: start, conversation and end. */
err signer_command_run(struct bytes *out, const struct signer_command *command)
{
    struct child child = {.in = -1, .out = -1};
    uint64_t until_ms = text_now_ms() + command->timeout_ms;
    TRY(start(&child, command));
    err e = talk(out, &child, command, until_ms);
    return reap(&child, command, e, until_ms);
}
