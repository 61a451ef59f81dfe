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
static atomic_bool hold, background_may_end;
static int order[64], done;

static void run(struct work_job *batch, struct store *store)
{
    (void)store;
    atomic_fetch_add(&batches, 1);
    for (struct work_job *job = batch; job; job = job->next) {
        bool done_with = true;
        atomic_fetch_add(&started, 1);
        while (atomic_load(&hold))
            usleep(100);
        while (job->in_background && !atomic_load(&background_may_end) && done_with) {
            done_with = !work_gives_way(job);
            usleep(100);
        }
        job->result = done_with ? ERR_NONE : err_make(ERR_STOPPED, "gives way");
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

static struct work *open_worker(const char *dir, size_t queue, size_t batch, bool in_caller)
{
    struct work *w = NULL;
    struct work_options options = {.name = "test",
                                   .place = {.dir = dir},
                                   .queue_max = queue,
                                   .batch_max = batch,
                                   .run = run,
                                   .wake = wake,
                                   .in_caller = in_caller};
    ok(work_open(&w, &options));
    return w;
}

static struct work *open_work(const char *dir, size_t queue, size_t batch)
{
    return open_worker(dir, queue, batch, false);
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
    atomic_store(&hold, false);
    while (done < 20)
        work_take(w);
    for (int i = 0; i < 20; i++)
        cr_expect_eq(order[i], i);
    cr_expect_lt(atomic_load(&batches), 20);
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

/* Lane a pushes three jobs before lane b pushes its first, and the worker is busy meanwhile. */
Test(work, lanes_take_turns_and_a_batch_stops_at_its_cost)
{
    static const char lane[] = "ab";
    static const struct {
        int lane;
        uint64_t cost;
    } pushed[] = {{0, 1}, {0, 60}, {0, 500}, {0, 40}, {1, 50}, {1, 40}};
    static const int turns[] = {0, 1, 4, 2, 5, 3};
    char dir[SUPPORT_PATH_BYTES];
    struct counted job[6] = {0};
    support_dir_make(dir);
    struct work *w = NULL;
    const struct work_options options = {.name = "test",
                                         .place = {.dir = dir},
                                         .queue_max = 8,
                                         .batch_max = 8,
                                         .cost_max = 110,
                                         .run = run,
                                         .wake = wake};
    ok(work_open(&w, &options));
    atomic_store(&hold, true);
    for (int i = 0; i < 6; i++) {
        job[i] = (struct counted){.number = i, .job.done = finished};
        job[i].job.lane = &lane[pushed[i].lane];
        job[i].job.cost = pushed[i].cost;
        ok(work_push(w, &job[i].job));
        while (i == 0 && atomic_load(&started) == 0)
            usleep(100);
    }
    atomic_store(&hold, false);
    while (done < 6)
        work_take(w);
    for (int i = 0; i < 6; i++)
        cr_expect_eq(order[i], turns[i], "place %d has job %d", i, order[i]);
    cr_expect_eq(atomic_load(&batches), 4, "the first; 60 + 50; 500; 40 + 40");
    work_close(w);
    support_dir_remove(dir);
}

static void wait_until_started(int count)
{
    while (atomic_load(&started) < count)
        usleep(100);
}

Test(work, a_background_job_gives_way_to_others_and_runs_again)
{
    char dir[SUPPORT_PATH_BYTES];
    struct counted job[3];
    for (int i = 0; i < 3; i++)
        job[i] = (struct counted){.number = i, .job.done = finished};
    support_dir_make(dir);
    struct work *w = open_work(dir, 8, 8);
    ok(work_push_background(w, &job[0].job));
    wait_until_started(1);
    ok(work_push(w, &job[1].job));
    wait_until_started(3); /* the background job for the second time */
    while (done < 1)
        work_take(w);
    cr_expect_eq(order[0], 1, "the other job came first");
    atomic_store(&background_may_end, true);
    while (done < 2)
        work_take(w);
    cr_expect_eq(order[1], 0);
    atomic_store(&background_may_end, false);
    ok(work_push_background(w, &job[2].job));
    wait_until_started(4);
    work_abandon(&job[2].job);
    while (done < 3)
        work_take(w);
    cr_expect_eq(order[2], -1, "an abandoned job comes back stopped");
    work_close(w);
    support_dir_remove(dir);
}

Test(work, an_abandoned_background_job_that_has_not_begun_comes_back_at_once)
{
    char dir[SUPPORT_PATH_BYTES];
    struct counted job[4];
    for (int i = 0; i < 4; i++)
        job[i] = (struct counted){.number = i, .job.done = finished};
    support_dir_make(dir);
    struct work *w = open_work(dir, 3, 1);
    ok(work_push_background(w, &job[0].job));
    wait_until_started(1);
    for (int i = 1; i < 4; i++)
        ok(work_push_background(w, &job[i].job));
    work_abandon(&job[3].job);
    work_abandon(&job[1].job);
    cr_expect_eq(work_take(w), 2, "although the worker is busy");
    cr_assert_eq(done, 2);
    cr_expect(order[0] == -1 && order[1] == -1);
    ok(work_push_background(w, &job[3].job)); /* the queue has room again, and is in order */
    atomic_store(&background_may_end, true);
    while (done < 5)
        work_take(w);
    cr_expect(order[2] == 0 && order[3] == 2 && order[4] == 3);
    cr_expect_eq(atomic_load(&started), 3, "what was abandoned did not begin");
    work_close(w);
    support_dir_remove(dir);
}

static struct work *worker_in_caller;
static struct counted second; /* pushed when the first one is done */

static void push_second(struct work_job *job)
{
    finished(job);
    ok(work_push(worker_in_caller, &second.job));
}

Test(work, in_the_caller_all_work_is_done_by_work_take_in_the_order_of_a_thread)
{
    char dir[SUPPORT_PATH_BYTES];
    struct counted first = {.job.done = push_second, .number = 1};
    struct counted report = {.job.done = finished, .number = 3};
    struct counted left = {.job.done = finished, .number = 4};
    second = (struct counted){.job.done = finished, .number = 2};
    atomic_store(&background_may_end, true);
    support_dir_make(dir);
    struct work *w = worker_in_caller = open_worker(dir, 4, 1, true);
    ok(work_push_background(w, &report.job));
    ok(work_push(w, &first.job));
    cr_expect_eq(atomic_load(&started), 0, "nothing runs before work_take()");
    cr_expect_eq(work_take(w), 3);
    cr_expect_eq(order[0], 1);
    cr_expect_eq(order[1], 2, "work that `done` pushes comes before a report");
    cr_expect_eq(order[2], 3);
    ok(work_push(w, &left.job));
    work_close(w);
    cr_expect_eq(order[3], -1, "what was not done comes back when the worker closes");
    support_dir_remove(dir);
}
