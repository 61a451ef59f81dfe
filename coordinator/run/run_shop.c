/* The store and the workers that all runs share. */
#include "coordinator/run/run.h"
#include "coordinator/store/db_sqlite.h"
#include "coordinator/work/keep.h"

#include "base/processor.h"
#include "base/version.h"

#include <cblas.h>
#include <errno.h>
#include <gnu/libc-version.h>
#include <stdlib.h>

enum { RECEIPTS_QUEUE = 4 * LIMIT_MEMBERS };

struct store_place run_shop_place(const struct config *config)
{
    return (struct store_place){.dir = config->path, .database = config->database};
}

static struct store_place place_of(const struct run_shop *shop)
{
    struct store_place place = run_shop_place(shop->config);
    if (shop->simulated) place.care = DB_UNFLUSHED;
    return place;
}

/* Three queues, because a receipt must not wait behind a long aggregation, or behind an admission
 * that takes seconds. Mathematics is done one job at a time, because one job uses all threads.
 * Receipts are done in batches, because one flush of the disk serves a batch. */
static err open_workers(struct run_shop *shop)
{
    struct work_options maths = {.name = "maths",
                                 .place = place_of(shop),
                                 .queue_max = 4 * LIMIT_RUNS,
                                 .batch_max = 1,
                                 .run = publish_run,
                                 .wake = shop->wake,
                                 .context = shop->context,
                                 .in_caller = shop->simulated};
    struct work_options receipts = maths;
    receipts.name = "receipts";
    receipts.queue_max = RECEIPTS_QUEUE;
    receipts.batch_max = ADMIT_BATCH_MAX;
    receipts.cost_max = ADMIT_QUICK_BYTES;
    receipts.run = admit_run;
    struct work_options slow = receipts;
    slow.name = "slow-receipts";
    TRY(work_open(&shop->maths, &maths));
    struct work_options keeper = maths;
    keeper.name = "keeper";
    keeper.run = keep_run;
    if (!shop->simulated) TRY(work_open(&shop->keeper, &keeper));
    TRY(work_open(&shop->receipts, &receipts));
    return work_open(&shop->slow_receipts, &slow);
}

/* Equal bytes are promised only for one type of processor and one set of library versions, so the
 * lineage of each state has those it was combined with. */
static void describe_software(struct run_shop *shop)
{
    char processor[128];
    processor_name(processor, sizeof processor);
    snprintf(shop->software, sizeof shop->software, "fedlorad %s; %s; %.128s, glibc %s, SQLite %s",
             version_text(), processor, openblas_get_config(), gnu_get_libc_version(),
             sqlite3_libversion());
}

err run_shop_admit(struct run_shop *shop, struct admit_job *job, const struct run *run)
{
    job->job.lane = run;
    bool slow = admit_is_slow(job);
    return work_push(slow ? shop->slow_receipts : shop->receipts, &job->job);
}

err run_shop_open(struct run_shop *shop)
{
    struct store *store = calloc(1, sizeof *store);
    if (!store) return err_sys(ENOMEM, "the store");
    const struct store_place place = place_of(shop);
    err e = store_open_at(store, &place);
    if (!err_is(e)) e = db_claim(&store->db);
    if (!err_is(e)) e = troubles_open(&shop->troubles);
    if (err_is(e)) {
        store_close(store);
        free(store);
        return e;
    }
    shop->store = store;
    describe_software(shop);
    return open_workers(shop);
}

void run_shop_turn(struct run_shop *shop)
{
    work_take(shop->receipts);
    work_take(shop->slow_receipts);
    work_take(shop->maths);
    if (shop->keeper) work_take(shop->keeper);
}

void run_shop_stop(struct run_shop *shop)
{
    work_close(shop->receipts);
    work_close(shop->slow_receipts);
    work_close(shop->maths);
    work_close(shop->keeper);
    shop->receipts = shop->slow_receipts = shop->maths = shop->keeper = NULL;
}

void run_shop_close(struct run_shop *shop)
{
    if (!shop->store) return;
    store_close(shop->store);
    free(shop->store);
    free(shop->aside);
    troubles_close(shop->troubles);
    shop->store = NULL;
    shop->troubles = NULL;
    shop->aside = NULL;
    shop->asides = 0;
}
