#include "coordinator/work/work.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdatomic.h>
#include <unistd.h>

struct counted {
    struct work_job job;
    int number;
};

static atomic_int started, batches;
static atomic_bool hold;
static int order[64], done;

static void run(struct work_job *batch, struct store *store)
{
    (void)store;
    atomic_fetch_add(&batches, 1);
    for (struct work_job *job = batch; job; job = job->next) {
        atomic_fetch_add(&started, 1);
        while (atomic_load(&hold))
            usleep(100);
        job->result = ERR_NONE;
    }
}
static void wake(void *context)
{
    (void)context;
}
static void finished(struct work_job *job)
{
    order[done++] = err_is(job->result) ? -1 : ((struct counted *)(void *)job)->number;
}

static struct work *open_work(const char *dir, size_t queue, size_t batch)
{
    struct work *w = NULL;
    struct work_options options = {.name = "test",
                                   .data_dir = dir,
                                   .queue_max = queue,
                                   .batch_max = batch,
                                   .run = run,
                                   .wake = wake};
    ok(work_open(&w, &options));
    return w;
}

Test(work, gives_jobs_back_in_order_and_in_batches)
{
    char dir[SUPPORT_PATH_BYTES];
    struct counted job[20] = {0};
    support_dir_make(dir);
    struct work *w = open_work(dir, 64, 8);
    atomic_store(&hold, true);
    for (int i = 0; i < 20; i++) {
        job[i].number = i;
        job[i].job.done = finished;
        ok(work_push(w, &job[i].job));
    }
    cr_expect_eq(work_pending(w), 20);
    atomic_store(&hold, false);
    while (done < 20)
        work_take(w);
    for (int i = 0; i < 20; i++)
        cr_expect_eq(order[i], i);
    cr_expect_lt(atomic_load(&batches), 20);
    cr_expect_eq(work_pending(w), 0);
    work_close(w);
    support_dir_remove(dir);
}

Test(work, refuses_what_its_queue_cannot_hold_and_returns_all_when_closed)
{
    char dir[SUPPORT_PATH_BYTES];
    struct counted job[5] = {0};
    support_dir_make(dir);
    struct work *w = open_work(dir, 3, 1);
    atomic_store(&hold, true);
    for (int i = 0; i < 5; i++)
        job[i] = (struct counted){.number = i, .job.done = finished};
    ok(work_push(w, &job[0].job));
    while (atomic_load(&started) == 0)
        usleep(100);
    for (int i = 1; i < 4; i++)
        ok(work_push(w, &job[i].job));
    refused(work_push(w, &job[4].job), ERR_LIMIT, "come back later");
    atomic_store(&hold, false);
    work_close(w);
    cr_expect_eq(done, 4, "every job comes back");
    cr_expect_eq(order[0], 0);
    support_dir_remove(dir);
}
