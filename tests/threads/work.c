/* The worker's queue: one thread pushes and takes back, the worker runs batches; then a close
 * while jobs wait. */
#include "coordinator/work/work.h"

#include "tests/threads/threads.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { JOBS = 2000, QUEUE_MAX = 64, BATCH_MAX = 8 };

struct numbered {
    struct work_job job;
    int input, output; /* the worker writes `output`; no lock but the queue's protects it */
};

static struct numbered jobs[JOBS];
static atomic_int wakes;
static int done, stopped;

static void run_batch(struct work_job *batch, struct store *store)
{
    (void)store;
    for (struct work_job *job = batch; job; job = job->next) {
        struct numbered *n = (struct numbered *)(void *)job;
        n->output = 2 * n->input;
        job->result = ERR_NONE;
    }
}

static void wake(void *context)
{
    (void)context;
    atomic_fetch_add(&wakes, 1);
}

static void finished(struct work_job *job)
{
    struct numbered *n = (struct numbered *)(void *)job;
    if (err_is(job->result))
        stopped++;
    else
        CHECK(n->output == 2 * n->input);
    done++;
}

int main(void)
{
    char dir[] = "/tmp/fedlora-threads-XXXXXX", command[64];
    struct work *w = NULL;
    CHECK(mkdtemp(dir) != NULL);
    CHECK_OK(work_open(&w, &(struct work_options){.name = "test",
                                                  .place = {.dir = dir},
                                                  .queue_max = QUEUE_MAX,
                                                  .batch_max = BATCH_MAX,
                                                  .run = run_batch,
                                                  .wake = wake}));
    for (int i = 0; i < JOBS;) {
        jobs[i].input = i;
        jobs[i].job.done = finished;
        err e = work_push(w, &jobs[i].job);
        if (err_is(e))
            CHECK(e.kind == ERR_LIMIT); /* full: take some back and try again */
        else
            i++;
        work_take(w);
    }
    work_close(w);
    CHECK(done == JOBS && stopped < JOBS && atomic_load(&wakes) > 0);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    printf("%d jobs, %d of them stopped by the close\n", done, stopped);
    return 0;
}
