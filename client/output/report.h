/* One result in two forms: as a JSON document, or for people with its single values as aligned
 * lines and its lists of objects as tables. Both are printed from the same JSON value, so they
 * agree. */
#ifndef CLIENT_REPORT_H
#define CLIENT_REPORT_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* How to print a report. */
struct report_options {
    bool json;
    size_t rows_max; /* of each table for people; 0: all */
};
/* Prints one JSON document and a newline on standard output. */
err report_json(const json_t *value);
/* Takes over the reference to `document`, an object; NULL counts as out of memory, so that callers
 * can pass the result of json_pack() unchecked. */
err report_print(json_t *document, const struct report_options *options);

#endif
