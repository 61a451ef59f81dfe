#include "coordinator/work/admit.h"

#include "tests/support/store_fixture.h"

static struct admit_job job;
static char digit = 'a';

/* A ledger of one release each of these kinds, and the update that the last of them accounts for.
 * Without a method the file itself is not read. */
static err admit(const struct account_event *kind, size_t kinds, double epsilon)
{
    char run_name[2] = {digit++, 0}, line[32];
    struct store_copy copy[16] = {0};
    struct digest digest = digest_of("update", 6);
    int64_t run = add_run(run_name);
    for (size_t i = 0; i < kinds; i++) {
        snprintf(line, sizeof line, "%zu\n", i);
        copy[0] = (struct store_copy){.text = line,
                                      .size = strlen(line),
                                      .ours = true,
                                      .round = (uint32_t)i + 1,
                                      .released = digest,
                                      .charged = kind[i]};
        ok(store_copies_add(&store, run, "a", i + 1, copy, 1));
    }
    job = (struct admit_job){.digested = true, .member = "a", .epsilon = epsilon, .delta = 1e-5};
    job.update = (struct store_update){
        .run = run, .trained_round = (uint32_t)kinds, .blob = {digest, strlen("update")}};
    ok(file_join(job.part, sizeof job.part, dir, "spool/part"));
    ok(file_write(job.part, "update", 6, true));
    admit_run(&job.job, &store);
    return job.job.result;
}

static struct account_event kind_of(double noise, uint64_t count)
{
    return (struct account_event){.noise = noise, .sampling = 0.01, .count = count};
}

/* Epsilon of 1,000 releases at noise 1 is 1.82824 on the grid of the member's own accounting, and
 * 1.83003 on the small one: between them only the first can decide. */
Test(admit, accepts_a_ledger_exactly_up_to_the_promise)
{
    const struct account_event kind[] = {kind_of(1, 1000)};
    begin();
    ok(admit(kind, 1, 5));
    ok(admit(kind, 1, 1.8283));
    refused(admit(kind, 1, 1.828), ERR_INPUT, "the ledger of a charges epsilon 1.82824");
    refused(admit(kind, 1, 0.5), ERR_INPUT, "which promises 0.5 at delta 1e-05");
    end();
}

Test(admit, refuses_more_kinds_of_releases_than_one_run_has)
{
    struct account_event kind[ADMIT_KINDS_MAX + 1];
    for (int i = 0; i <= ADMIT_KINDS_MAX; i++)
        kind[i] = kind_of(2 + i, 10);
    begin();
    ok(admit(kind, ADMIT_KINDS_MAX, 5));
    refused(admit(kind, ADMIT_KINDS_MAX + 1, 5), ERR_INPUT,
            "the ledger of a has 5 kinds of releases for this run, at most 4");
    end();
}

Test(admit, large_files_and_accounting_go_to_the_worker_for_slow_receipts)
{
    struct admit_job small = {.update.blob.size = ADMIT_QUICK_BYTES}, large = small,
                     private = small;
    large.update.blob.size++;
    private.epsilon = 1;
    cr_expect(!admit_is_slow(&small));
    cr_expect(admit_is_slow(&large));
    cr_expect(admit_is_slow(&private));
    cr_expect_eq(private.job.cost, ADMIT_QUICK_BYTES, "alone in its batch");
}
