/* The end of a run's life: archived, then deleted. Contract in run.h. */
#include "coordinator/run/run.h"

#include "base/text.h"
#include "coordinator/store/store_retain.h"

/* A failed run is not over: an operator may resume it. */
static bool is_over(const struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    return phase == ROUND_FINISHED || phase == ROUND_STOPPED;
}

/* Archived and deleted are no phases of the state machine, which has ended by then. */
const char *run_phase_name(const struct run *run)
{
    return run->deleted       ? "deleted"
           : run->archived_ms ? "archived"
                              : round_phase_name(round_phase(&run->round));
}

/* Files of an open run are needed by its next round. */
static err check_over(const struct run *run, const char *what)
{
    if (is_over(run)) return ERR_NONE;
    return err_make(ERR_STATE, "run %s is %s; stop it before it is %s (fedlora run stop %s)",
                    run->config->name, run_phase_name(run), what, run->config->name);
}

/* Only the mark is made here, in one small transaction; the files follow with the sweep, which
 * a crash does not stop for good. */
err run_archive(struct run *run)
{
    TRY(check_over(run, "archived"));
    if (run->archived_ms) return ERR_NONE;
    TRY(store_archive(&run->archived_ms, run->shop->store, run->id, run->shop->by));
    LOG(LOG_INFO, "run.archived", LOG_STR("run", run->config->name), LOG_STR("by", run->shop->by));
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

/* The name is free as soon as the row is a tombstone, so this struct must never be found by it
 * again. Its blobs are forgotten, because nothing may be fetched any more. */
err run_delete(struct run *run)
{
    TRY(check_over(run, "deleted"));
    TRY(store_delete(run->shop->store, run->id, run->shop->by));
    LOG(LOG_WARN, "run.deleted", LOG_STR("run", run->config->name), LOG_STR("by", run->shop->by));
    run->deleted = true;
    run->newest = (struct publish_blobs){0};
    trouble_drop_run(run->shop->troubles, run->config->name);
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

/* A clock that was stepped back makes a run look as if it ended in the future. */
bool run_is_due(const struct run *run, uint64_t now_wall_ms)
{
    uint64_t keep = run->shop->config->keep_finished_ms;
    return keep && run->ended_ms && !run->archived_ms && is_over(run) &&
           now_wall_ms > run->ended_ms && now_wall_ms - run->ended_ms > keep;
}
