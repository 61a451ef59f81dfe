#include "coordinator/work/keep.h"

#include "coordinator/store/store_retain.h"
#include "coordinator/work/keep_record.h"

#include <time.h>

enum { PAUSE_MS = 5, SHRINK_PAGES = 64 };

/* SQLite gives its write lock to whichever thread asks next, so a pause lets the others in. */
static bool goes_on(const void *context)
{
    const struct keep_job *k = context;
    const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000 * 1000};
    nanosleep(&pause, NULL);
    return !work_gives_way(&k->job);
}

/* Before anything is removed. Runs that have been swept already are not found again, so a copy
 * is made once. */
static err copy_archived(struct keep_job *k, struct store *store)
{
    const char *name = NULL;
    int64_t run = 0;
    err e = ERR_NONE;
    if (!*k->archive) return ERR_NONE;
    do {
        struct arena arena = {0};
        e = store_retain_next(&run, &name, store, &arena);
        const struct keep_record what = {k->archive, name, run, goes_on, k};
        if (!err_is(e) && name) e = keep_record_make(&what, store);
        arena_close(&arena);
    } while (!err_is(e) && name && goes_on(k));
    return err_is(e) ? err_in(e, "store.archive") : e;
}

/* Rows first, then files, then pages: each step makes room for the next. The log of SQLite is
 * emptied last, because all of them write to it. */
static err sweep(struct keep_job *k, struct store *store)
{
    struct store_retain at = {.events_before_ms = k->events_before_ms};
    bool done = false, more = k->shrinks;
    TRY(copy_archived(k, store));
    for (k->steps = 0; !done && goes_on(k); k->steps++)
        TRY(store_retain_step(&done, store, &at));
    TRY(store_trim(store));
    while (more && goes_on(k))
        TRY(db_shrink(&more, &store->db, SHRINK_PAGES));
    db_give_room(&store->db);
    return ERR_NONE;
}

/* A sweep that gave way is no error: the next one continues, because the store says what is
 * left. */
void keep_run(struct work_job *batch, struct store *store)
{
    for (struct work_job *job = batch; job; job = job->next)
        job->result = sweep((struct keep_job *)(void *)job, store);
}
