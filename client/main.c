/* fedlora: the client's one program. The commands are in client/command_*.c. */
#include "client/command/command.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

/* By default OpenMP's threads spin for long where they wait for each other. Beside other work, four
 * members on two cores say, that costs more than all the arithmetic. The library reads its settings
 * before main(), so the program starts itself once more with a short spin, unless the user chose.
 */
static void spin_briefly(char **argv)
{
    char self[PATH_MAX];
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0 || setenv("GOMP_SPINCOUNT", "500", 1) != 0) return;
    self[length] = 0;
    execv(self, argv); /* where it fails, it is as fast as it was */
}

int main(int argc, char **argv)
{
    spin_briefly(argv);
    return command_main(argc, argv);
}
