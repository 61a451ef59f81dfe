/* One result, two forms: a JSON document as it is, or for people: its single values as aligned
 * lines, its lists of objects as tables. */
#ifndef CLIENT_REPORT_H
#define CLIENT_REPORT_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct report_options {
    bool json;
    size_t rows_max; /* of each table for people; 0: all */
};
/* One JSON document and a newline on standard output. */
err report_json(const json_t *value);
/* Takes over the reference to `document`, an object; NULL counts as out of memory. */
err report_print(json_t *document, const struct report_options *options);

#endif
