/* The limits of runs and rounds under way: limits.open_runs and limits.rounds_at_once.
 *
 * A run that is paused or has failed holds no place, so that it cannot keep others out for ever.
 * When it is resumed it goes on at once, even if that is one more than the limit. */
#include "coordinator/run/run.h"

/* A run that is held or over takes no part in the queue. */
static bool is_live(const struct run *run)
{
    return run->round.hold == ROUND_WAITING && run->round.stage != ROUND_FINISHED;
}

/* Its first state is not made yet. A run that waits only for a turn is inside. */
static bool is_outside(const struct run *run)
{
    return is_live(run) && round_phase(&run->round) == ROUND_QUEUED &&
           !round_wants_turn(&run->round);
}

/* The time in which a round costs memory, disk and the worker. */
static bool has_round(const struct run *run)
{
    return is_live(run) &&
           (run->round.stage == ROUND_TRAINING || run->round.stage == ROUND_AGGREGATING);
}

/* An operator who watches a run sees why it does not begin, and when it does. Not for each
 * turn, which would be two events a round. */
static void say_queued(struct run *run, bool queued)
{
    struct store_event event = {.event = queued ? "run.queued" : "run.entered"};
    if (run->said_queued == queued) return;
    run->said_queued = queued;
    LOG(LOG_INFO, event.event, LOG_STR("run", run->config->name),
        LOG_INT("ahead", run->round.ahead));
    err e = store_event_add(run->shop->store, run->id, &event);
    (void)e; /* the log has it */
    run->shop->changed(run, run->shop->context);
}

/* In order of creation. */
static void let_in(struct run *first, const struct config *config)
{
    size_t open = 0, most = (size_t)config->open_runs;
    for (const struct run *run = first; run; run = run->next)
        open += is_live(run) && !is_outside(run);
    for (struct run *run = first; run; run = run->next) {
        if (!is_outside(run)) continue;
        bool enters = !most || open < most;
        run->round.ahead = open++;
        say_queued(run, !enters);
        if (enters) run_apply_member(run, ROUND_ON_ENTER, 0);
    }
}

/* The run that has waited longest for its turn. */
static struct run *next_in_line(struct run *first)
{
    struct run *next = NULL;
    for (struct run *run = first; run; run = run->next)
        if (round_wants_turn(&run->round) && (!next || run->queue_number < next->queue_number))
            next = run;
    return next;
}

/* A run gets its number when it is first seen without a turn, so rounds are opened in turn. */
static void give_turns(struct run *first, const struct config *config)
{
    size_t rounds = 0, most = (size_t)config->rounds_at_once;
    for (struct run *run = first; run; run = run->next) {
        rounds += has_round(run);
        if (!round_wants_turn(&run->round))
            run->queue_number = 0;
        else if (!run->queue_number)
            run->queue_number = ++run->shop->queue_numbers;
    }
    for (struct run *run; (!most || rounds < most) && (run = next_in_line(first)); rounds++)
        run_apply_member(run, ROUND_ON_TURN, 0);
    for (struct run *run = first; run; run = run->next) {
        if (!round_wants_turn(&run->round)) continue;
        run->round.ahead = rounds;
        for (const struct run *other = first; other; other = other->next)
            run->round.ahead +=
                round_wants_turn(&other->round) && other->queue_number < run->queue_number;
    }
}

/* Runs that were created under a limit must be let in after it was taken away (SIGHUP). */
static bool any_queues(const struct run *first)
{
    for (const struct run *run = first; run; run = run->next)
        if (run->round.rules.queues) return true;
    return false;
}

/* Cheap without limits, because it is called in every turn of the loop. */
void run_queue_turn(struct run *first)
{
    if (!any_queues(first)) return;
    let_in(first, first->shop->config);
    give_turns(first, first->shop->config);
}
