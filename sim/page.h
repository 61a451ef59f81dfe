/* The report of a simulation as one HTML file that needs no script and no network. It is made from
 * the files of the folder alone, so it can be made again at any time. */
#ifndef SIM_PAGE_H
#define SIM_PAGE_H

#include "base/err.h"

enum { PAGE_SPLIT_BYTES = 1 << 20 };

/* Reads rounds.jsonl, updates.csv, result.json and, if they exist, settings.json (an object whose
 * members are shown as a table) and split.txt. Writes report.html. */
err page_write(const char *dir);

#endif
