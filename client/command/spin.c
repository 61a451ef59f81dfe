#include "client/command/spin.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

/* OpenMP threads spin for a long time by default while they wait for each other. With several
 * processes on few cores (four members on two cores, for example) the spinning costs more than the
 * arithmetic. The library reads its settings before main(), so the program starts itself once more
 * with a short spin time, unless the user has chosen one. */
void spin_briefly(char **argv)
{
    char self[PATH_MAX];
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0 || setenv("GOMP_SPINCOUNT", "500", 1) != 0) return;
    self[length] = 0;
    /* Returns only on failure; then the program runs with the default spin time. */
    execv(self, argv);
}
