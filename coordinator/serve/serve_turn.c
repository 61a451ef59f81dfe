/* A member that names no run takes part in all open runs that it belongs to, one after the other.
 * It gets the run whose round has waited for it for the longest time, so that no run starves
 * another one, also after a restart of either side: rounds that are opened again count from the
 * restart. */
#include "base/text.h"
#include "coordinator/serve/serve.h"

#include <string.h>

enum { TURN_UNFIT_MS = 60 * 1000 };

/* False for a run from which the member was dropped, and for one that has refused it lately, for
 * example because of another base model. The member may be started again with other options, so it
 * is asked again from time to time. */
static bool fits(const struct run *run, size_t member, const struct serve_turn *turn)
{
    uint64_t unfit_ms = run->member[member].unfit_ms;
    if (run->round.member[member].gone) return false;
    for (size_t i = 0; i < turn->withouts; i++)
        if (strcmp(turn->without[i], run->config->name) == 0) return false;
    return run->round.member[member].joined || !unfit_ms ||
           text_now_ms() - unfit_ms > TURN_UNFIT_MS;
}

/* True if the run waits for the member, since *since. A run that it has not joined comes first,
 * because joining takes one call and its other members may be waiting for it. So does the end of a
 * run. The member must have called since the coordinator started: it asks for older ends itself. */
static bool waits_for(uint64_t *since, const struct run *run, size_t member, bool ended)
{
    const struct round_member *m = &run->round.member[member];
    *since = 0;
    if (serve_is_over(run))
        return ended && m->joined && m->seen_ms && !run->member[member].told_end;
    if (!m->joined) return true;
    *since = run->round.opened_ms;
    enum round_task task = round_task(&run->round, member);
    return task == ROUND_TASK_TRAIN || task == ROUND_TASK_EVALUATE;
}

err serve_turn(struct run **out, size_t *member, struct rpc_call *call,
               const struct serve_turn *turn)
{
    const struct serve *s = serve_of(call);
    const char *id = rpc_call_peer(call)->id;
    struct run *first = NULL, *waiting = NULL;
    size_t m;
    uint64_t since, least = UINT64_MAX;
    if (*turn->name) return serve_member(out, member, call, turn->name);
    TRY(serve_check_member(call));
    for (struct run *run = s->runs; run; run = run->next) {
        if (!round_find(&m, &run->round, id) || !fits(run, m, turn)) continue;
        if (waits_for(&since, run, m, turn->ended) && since < least) {
            waiting = run;
            least = since;
        }
        if (!first && !serve_is_over(run)) first = run;
    }
    if (!waiting && !first && turn->stay) {
        *out = NULL;
        return ERR_NONE;
    }
    if (!waiting && !first) return err_make(ERR_STATE, "no open run that %s can take part in", id);
    return serve_member(out, member, call, (waiting ? waiting : first)->config->name);
}
