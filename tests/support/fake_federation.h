/* Certificates and a real fedlorad process on this machine, for tests and measurements. */
#ifndef TESTS_SUPPORT_FAKE_FEDERATION_H
#define TESTS_SUPPORT_FAKE_FEDERATION_H

#include "base/err.h"

#include <stdbool.h>
#include <sys/types.h>

struct fake_federation {
    char dir[512]; /* certs/, store/, fedlorad.ini, fedlorad.log */
    char certs[560], store[560], log[560], address[32];
    int port;
    pid_t coordinator; /* 0: none running */
};

int fake_federation_free_port(void);
/* Makes certificates for the listed members m0 .. m(n-1), for "stranger", who is not listed, and
 * for the operator "ops". `more` is added to the configuration file (may be "").
 * FEDLORA_CERTS in the environment names a folder of certificates made before, because those of
 * thousands of members take minutes. */
err fake_federation_open(struct fake_federation *out, const char *dir, int members,
                         const char *more);
/* Starts fedlorad and returns once it listens. */
err fake_federation_start(struct fake_federation *f);
/* Sends the signal and waits. Returns the exit status, or -1 when the process was killed by a
 * signal. */
int fake_federation_stop(struct fake_federation *f, int signal_number);
/* Kills the coordinator and starts it again, `times` times, a moment later each time. ERR_MACHINE:
 * it does not start, or it had ended by itself. */
err fake_federation_kill(struct fake_federation *f, int times);
/* Runs fedlorad with one more option until it ends by itself. Returns its exit status. */
int fake_federation_try(const struct fake_federation *f, const char *option);
bool fake_federation_logged(const struct fake_federation *f, const char *part);
long fake_federation_peak_kb(const struct fake_federation *f); /* VmHWM */
void fake_federation_close(struct fake_federation *f);

#endif
