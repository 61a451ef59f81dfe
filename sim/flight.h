/* The tasks that are on their way when a round is published, in the file `flight` of a simulation's
 * folder. A simulation that was interrupted starts again with them at the end of its last published
 * round, so late updates and members that dropped out are the same as without the interruption. */
#ifndef SIM_FLIGHT_H
#define SIM_FLIGHT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct flight {
    uint32_t published;     /* the round */
    uint64_t updates_bytes; /* size of updates.csv then */
    const void *item;       /* (count) structs without valid pointers */
    size_t item_bytes, count;
};
/* Replaces the file. */
err flight_save(const char *dir, const struct flight *f);
/* *item: an array to free. The rest of updates.csv is cut off. *found is false, and nothing is
 * changed, if the file is of another round or was written by another version of this program. */
err flight_load(bool *found, void **item, size_t *count, const char *dir, const struct flight *f);

#endif
