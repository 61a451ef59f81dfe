/* The copy of an archived run outside of the store (keep.h). */
#ifndef COORDINATOR_KEEP_RECORD_H
#define COORDINATOR_KEEP_RECORD_H

#include "coordinator/store/store.h"

/* Makes `dir`/NAME.ID, whole or not at all; nothing if it exists. ERR_STOPPED: goes_on() was false
 * while a state was copied, for example because the service stops. */
struct keep_record {
    const char *dir, *name;
    int64_t run;
    bool (*goes_on)(const void *context); /* NULL: always true */
    const void *context;
};
err keep_record_make(const struct keep_record *what, struct store *store);

#endif
