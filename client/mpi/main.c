/* fedlora-mpi: fedlora on several ranks of MPI. Rank 0 runs the command; the other ranks train
 * members for `fedlora-mpi simulate` (sim/farm.h). */
#include "client/command/command.h"
#include "client/command/spin.h"
#include "sim/farm.h"

#include <mpi.h>
#include <stdio.h>
#include <time.h>

/* MPI counts bytes in an int, so a message is its size and then pieces. */
enum { PIECE = 1 << 30, TAG_SIZE = 1, TAG_PIECE = 2 };

static err check(int status, const char *what)
{
    return status == MPI_SUCCESS ? ERR_NONE : err_make(ERR_MACHINE, "MPI: %s failed", what);
}

static err mpi_send(int to, const void *data, size_t bytes)
{
    uint64_t size = bytes;
    const char *at = data;
    TRY(check(MPI_Send(&size, 1, MPI_UINT64_T, to, TAG_SIZE, MPI_COMM_WORLD), "sending"));
    for (size_t n; bytes; at += n, bytes -= n) {
        n = bytes < PIECE ? bytes : PIECE;
        TRY(check(MPI_Send(at, (int)n, MPI_BYTE, to, TAG_PIECE, MPI_COMM_WORLD), "sending"));
    }
    return ERR_NONE;
}

/* MPI_Recv() keeps a core busy while it waits, which another rank may need. If a rank ends early,
 * mpirun ends the others, so the wait has an end. */
static err await(int from)
{
    const struct timespec moment = {.tv_nsec = 500000};
    for (int here = 0;;) {
        TRY(check(MPI_Iprobe(from, TAG_SIZE, MPI_COMM_WORLD, &here, MPI_STATUS_IGNORE), "waiting"));
        if (here) return ERR_NONE;
        nanosleep(&moment, NULL);
    }
}

static err mpi_receive(struct bytes *out, int from)
{
    static const char zeros[1 << 16];
    uint64_t size = 0;
    TRY(await(from));
    TRY(check(MPI_Recv(&size, 1, MPI_UINT64_T, from, TAG_SIZE, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
              "receiving"));
    bytes_clear(out);
    for (size_t n; out->size < size;) {
        n = size - out->size < sizeof zeros ? size - out->size : sizeof zeros;
        TRY(bytes_append(out, zeros, n));
    }
    for (size_t n, at = 0; at < size; at += n) {
        n = size - at < PIECE ? size - at : PIECE;
        TRY(check(MPI_Recv(out->data + at, (int)n, MPI_BYTE, from, TAG_PIECE, MPI_COMM_WORLD,
                           MPI_STATUS_IGNORE),
                  "receiving"));
    }
    return ERR_NONE;
}

/* MPI_Abort() ends the other ranks too, which would wait for this one for ever. */
static int serve(void)
{
    err e = farm_serve();
    if (!err_is(e)) return 0;
    fprintf(stderr, "fedlora-mpi: rank %d: %s\n", ranks.own, e.text);
    MPI_Abort(MPI_COMM_WORLD, err_exit_code(e));
    return 1;
}

int main(int argc, char **argv)
{
    int status = 0, level = 0;
    spin_briefly(argv);
    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS) {
        fprintf(stderr, "fedlora-mpi: MPI does not start; run it as mpirun -n 2 fedlora-mpi ...\n");
        return 1;
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &ranks.own);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks.count);
    ranks.send = mpi_send;
    ranks.receive = mpi_receive;
    if (ranks.own == 0) {
        status = command_main(argc, argv);
        farm_end();
    } else {
        status = serve();
    }
    MPI_Finalize();
    return status;
}
