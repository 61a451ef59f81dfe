#include "tests/support/capture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

void capture(char *out, size_t bytes, int fd, void (*write)(void))
{
    int pipes[2], kept = dup(fd);
    fflush(stdout);
    cr_assert(kept >= 0 && pipe(pipes) == 0);
    dup2(pipes[1], fd);
    write();
    fflush(stdout);
    dup2(kept, fd);
    close(kept);
    close(pipes[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < bytes && (n = read(pipes[0], out + used, bytes - 1 - used)) > 0;)
        used += (size_t)n;
    out[used] = 0;
    close(pipes[0]);
}
