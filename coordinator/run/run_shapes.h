/* The shapes of a run's modules: their origin, and the sizes of files that follow from them.
 *
 * An operator may give the shapes with the run. Otherwise members decide: the list of modules that
 * enough of them have said in their Hello becomes the run's, and those that said another one must
 * say Hello again, and are refused with the first module that differs. No member alone decides,
 * unless the run's quorum is 1. */
#ifndef COORDINATOR_RUN_SHAPES_H
#define COORDINATOR_RUN_SHAPES_H

#include "coordinator/run/run.h"

/* Shapes given by the operator; none is no error. ERR_INPUT: they do not fit the run. */
err run_shapes_given(struct run *run);
/* A member's list. Sets run->modules once enough members agree; until then the member's own list
 * decides what run_hello_reply() says. ERR_INPUT: the list is wrong, or too large. */
err run_shapes_said(struct run *run, size_t member, const Fedlora__V1__HelloRequest *hello);
/* Forgets shapes that members agreed on, and all that was made from them: the start state and
 * updates of the first round. Ends a hold. All members must say Hello again. ERR_STATE: a round is
 * published; ERR_LIMIT: work is under way; ERR_INPUT: this run's shapes are fixed. */
err run_shapes_forget(struct run *run);
/* After the quorum has changed: the members that have said Hello may now be enough. */
void run_shapes_settle(struct run *run);
/* After a member has left the run. */
void run_shapes_left(struct run *run, size_t member);
void run_shapes_close(struct run *run);
/* As round_waiting_for(), and who said which shapes while members do not agree. */
void run_waiting_for(char *out, size_t bytes, const struct run *run);

struct run_sizes { /* upper bounds, in bytes */
    uint64_t header, file;
};
/* Of this member's update for a round. Before the shapes are known both are 0. */
void run_update_sizes(struct run_sizes *out, const struct run *run, size_t member, uint32_t round);

#endif
