#include "coordinator/work/admit.h"

#include "base/file.h"
#include "base/text.h"

#include <sys/stat.h>

static struct admit_job *admit_of(struct work_job *job)
{
    return (struct admit_job *)(void *)job;
}

bool admit_is_slow(struct admit_job *job)
{
    bool accounts = job->epsilon > 0;
    job->job.cost = accounts ? ADMIT_QUICK_BYTES : job->update.blob.size;
    return accounts || job->update.blob.size > ADMIT_QUICK_BYTES;
}

/* Errors go to the sender, so they name the upload and not its path in the spool. A wrong digest
 * after a resumed upload is ERR_STATE, because its pieces may not fit together, so sending all of
 * it again can help. In one piece it is ERR_INPUT. */
static err check_bytes(const struct admit_job *a)
{
    struct digest digest;
    struct stat st;
    char is[DIGEST_TEXT_BYTES], said[DIGEST_TEXT_BYTES];
    if (stat(a->part, &st) != 0)
        return err_make(ERR_STATE, "the upload is gone; send it again from the start");
    if ((uint64_t)st.st_size != a->update.blob.size)
        return err_make(ERR_STATE, "the upload has %llu of %llu bytes; continue it",
                        (unsigned long long)st.st_size, (unsigned long long)a->update.blob.size);
    if (a->digested) return ERR_NONE;
    TRY(digest_of_file(&digest, a->part));
    if (digest_equal(&digest, &a->update.blob.digest)) return ERR_NONE;
    digest_text(is, &digest);
    digest_text(said, &a->update.blob.digest);
    return err_make(
        a->resumed ? ERR_STATE : ERR_INPUT,
        "the bytes received have digest %.16s, not %.16s as announced: damaged on the way%s", is,
        said, a->resumed ? "; send them again from the start" : "");
}

/* The rank of an admitted update. Every module of a member is pruned to the same rank, so the
 * largest is the rank of all. */
static err read_rank(uint32_t *out, const char *path)
{
    struct adapter_file update = {0};
    TRY(adapter_file_map(&update, path));
    uint32_t most = 0;
    for (size_t i = 0; i < update.count; i++)
        if (update.module[i].rank > most) most = update.module[i].rank;
    adapter_file_close(&update);
    *out = most;
    return ERR_NONE;
}

/* Before anything is parsed, because a long header costs memory and time. */
static err check_header(const struct admit_job *a)
{
    err e = safetensors_check_header(a->part, a->header_max);
    if (e.kind != ERR_INPUT) return e;
    return err_make(ERR_INPUT,
                    "update: its header has more than the %llu bytes that the modules of this run "
                    "can need",
                    (unsigned long long)a->header_max);
}

static err check_update(struct admit_job *a, const char *data_dir)
{
    struct adapter_file state = {0};
    TRY(check_header(a));
    struct blob_path path = blob_path(data_dir, &a->state);
    err e = adapter_file_map(&state, path.text);
    /* If the coordinator's own state cannot be read, that is not the sender's fault. */
    if (err_is(e)) {
        a->damage = blob_check(data_dir, &a->state, "the state");
        return err_make(ERR_MACHINE, "%s", e.text);
    }
    struct method_expect expect = a->expect;
    expect.state = &state;
    expect.member = a->member;
    e = method_check_update(a->method, a->part, &expect);
    adapter_file_close(&state);
    uint32_t rank = expect.rank;
    if (!err_is(e) && a->method->prunes) e = read_rank(&rank, a->part);
    if (!err_is(e) && rank < expect.rank) a->update.pruned = rank;
    return e;
}

/* The epsilon of releases, as an upper bound. The small grid is off by some per cent after very
 * many releases, so it can show that a promise is kept, or far from kept. Between them the grid is
 * as fine as that of the member's own accounting. For promises above `coarse`, where that takes
 * seconds, the cells grow with the promise, and `slack` is more than that costs. */
static err account(double *epsilon, double *slack, const struct admit_job *a,
                   const struct account_event *event, size_t count)
{
    static const double coarse = 20, cells = 1e5, coarse_slack = 1e-3, far = 2;
    struct account_options options = {.rough = true};
    struct account_spent spent;
    *slack = 1e-9; /* sums are rounded */
    TRY(account_epsilon(&spent, event, count, a->delta, &options));
    *epsilon = spent.epsilon;
    if (spent.epsilon <= a->epsilon || spent.epsilon > far * a->epsilon) return ERR_NONE;
    options = (struct account_options){0};
    if (a->epsilon > coarse) {
        options.interval = a->epsilon / cells;
        *slack = coarse_slack;
    }
    TRY(account_epsilon(&spent, event, count, a->delta, &options));
    *epsilon = spent.epsilon;
    return ERR_NONE;
}

/* Releases of this run, as the member's ledger states them, must fit the budget that the run
 * promises for its records. A plan has two kinds of releases, those of its rounds and of a basis,
 * and a second plan doubles that. Each kind costs time, so more are refused. */
static err check_promise(const struct admit_job *a, const struct account_event *event, size_t count)
{
    double epsilon, slack;
    if (count > ADMIT_KINDS_MAX)
        return err_make(ERR_INPUT,
                        "the ledger of %s has %zu kinds of releases for this run, at most %d",
                        a->member, count, ADMIT_KINDS_MAX);
    TRY(account(&epsilon, &slack, a, event, count));
    if (epsilon <= a->epsilon * (1 + slack)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "the ledger of %s charges epsilon %.6g for this run, which promises %.6g at "
                    "delta %.3g",
                    a->member, epsilon, a->epsilon, a->delta);
}

/* The member sends its ledger lines before its update. An update that is missing there was not
 * charged, so it must not be counted. */
static err check_charged(const struct admit_job *a, struct store *store)
{
    struct arena arena = {0};
    struct account_event *event = NULL;
    size_t count = 0;
    bool found = false;
    err e = store_copies_charged(&found, &event, &count, store, &a->update, &arena);
    if (!err_is(e) && !found)
        e = err_make(ERR_INPUT,
                     "the copy of the ledger of %s has no release of this update for round %u: "
                     "send its line first",
                     a->member, a->update.trained_round);
    if (!err_is(e)) e = check_promise(a, event, count);
    arena_close(&arena);
    return e;
}

/* The order puts cheap checks before expensive ones, and durability last, because only a file that
 * passed every check becomes a blob. */
static err admit_one(struct admit_job *a, struct store *store)
{
    a->update.member = a->member;
    TRY(check_bytes(a));
    if (a->epsilon > 0) TRY(check_charged(a, store));
    if (a->method) TRY(check_update(a, store->dir));
    return blob_adopt(store->dir, a->part, &a->update.blob.digest);
}

/* A wrong upload is deleted, so that the member starts again from byte 0. One that only the disk
 * refused is kept for the next try. */
static void drop_refused(const struct admit_job *a)
{
    enum err_kind kind = a->job.result.kind;
    if (kind == ERR_INPUT || kind == ERR_STATE) file_disk.unlink(a->part);
}

/* One transaction, and so one flush of the disk, for the rows of all good uploads of the batch.
 * If it fails, none of them counts, and their blobs are removed at the next start unless they
 * are sent again. */
void admit_run(struct work_job *batch, struct store *store)
{
    struct store_update update[ADMIT_BATCH_MAX];
    struct work_job *good[ADMIT_BATCH_MAX];
    size_t count = 0;
    for (struct work_job *job = batch; job; job = job->next) {
        struct admit_job *a = admit_of(job);
        job->result = admit_one(a, store);
        drop_refused(a);
        if (err_is(job->result)) continue;
        if (!a->method) {
            job->result = store_pin(store, &a->update.blob, ADMIT_PINS_MAX);
            continue;
        }
        REQUIRE(count < ADMIT_BATCH_MAX);
        good[count] = job;
        update[count++] = a->update;
    }
    if (count == 0) return;
    err e = store_receipts(store, update, count);
    for (size_t i = 0; i < count; i++)
        good[i]->result = e;
}
