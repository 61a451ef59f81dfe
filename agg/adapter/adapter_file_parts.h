/* Parts of reading an adapter file, shared by agg/adapter/adapter_file*.c; contract in
 * adapter_file.h. */
#ifndef AGG_ADAPTER_FILE_PARTS_H
#define AGG_ADAPTER_FILE_PARTS_H

#include "agg/adapter/adapter_config.h"

#define ADAPTER_FILE_PREFIX "base_model.model."

/* Makes the modules of file->tensors, sorted by name, and the list of tensors saved whole. config:
 * of a PEFT directory, whose names are read in all spellings; NULL: a file of Fedlora. */
err adapter_file_gather(struct adapter_file *file, const struct adapter_config *config);
int adapter_file_by_name(const void *a, const void *b); /* of modules, for qsort() */

#endif
