/* The report of a simulation as one HTML file that needs no script and no network. It is made from
 * the files of the folder alone, so it can be made again at any time. */
#ifndef SIM_PAGE_H
#define SIM_PAGE_H

#include "base/err.h"

#include <stddef.h>

enum { PAGE_SPLIT_BYTES = 1 << 20 };

/* Writes report.html into the folder of a simulation or a sweep. Of a simulation it reads
 * rounds.jsonl, updates.csv, result.json and, if they exist, settings.json (an object whose members
 * are shown as a table) and split.txt; of a sweep see sim/outcome.h. */
err page_write(const char *dir);
/* One page of several folders; of one folder it is the page of page_write(). */
err page_write_file(const char *path, const char *const *dir, size_t dirs);

#endif
