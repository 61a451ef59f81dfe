/* The copy of an archived run outside of the store (keep.h). */
#ifndef COORDINATOR_KEEP_RECORD_H
#define COORDINATOR_KEEP_RECORD_H

#include "coordinator/store/store.h"

/* Makes `dir`/NAME.ID, whole or not at all; nothing if it exists. */
err keep_record(const char *dir, struct store *store, const char *name, int64_t run);

#endif
