/* For publish.c: the updates of a closed round, before they are combined. Worker thread. */
#ifndef COORDINATOR_PUBLISH_GATHER_H
#define COORDINATOR_PUBLISH_GATHER_H

#include "coordinator/work/publish.h"

/* ERR_INPUT: the state, or a file that belongs to it, is damaged. */
err publish_check_from(const struct publish_job *p, const struct store *store);
/* Sets contribution, contributions and update of the job, and what result says of them. ERR_STATE:
 * some are damaged, and listed in `damaged`. */
err publish_gather(struct publish_job *p, struct store *store);
/* ERR_STATE: updates beyond norm_bound are taken out of the round, and listed in `refused`. Sets
 * result.norm. */
err publish_bound(struct publish_job *p, struct store *store, const struct method_next *next);
/* Adds to the cause why method_next() failed the member whose update is the reason, if it can be
 * found. Writes to `path`. */
err publish_blame(struct publish_job *p, struct store *store, const char *path,
                  const struct method_next *next, err cause);

#endif
