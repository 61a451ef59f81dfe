/* One row of a data file as JSON. Rows come from tables with columns that nobody reads here, so
 * values in such columns that jansson cannot hold (integers beyond 64 bits, reals beyond a double,
 * U+0000, lists nested thousands deep, NaN and Infinity as Python writes them) do not make a row
 * unreadable. */
#ifndef ENGINE_DATA_JSON_H
#define ENGINE_DATA_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* Whether a member is read: of a row, or of a message in it. */
struct data_json_known {
    bool (*row)(const char *name);
    bool (*message)(const char *name);
};

/* *out is to be freed with json_decref(). Duplicate names are refused, since readers disagree about
 * which one counts. A value that jansson cannot hold becomes null if its member is not read, else
 * the row is refused. The text of errors starts with "not JSON: " or names the value. */
err data_json_parse(json_t **out, const char *text, size_t size,
                    const struct data_json_known *known);

#endif
