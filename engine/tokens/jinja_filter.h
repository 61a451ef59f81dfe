/* Filters that work on sequences: rows of the table in jinja_filter.c. */
#ifndef ENGINE_JINJA_FILTER_H
#define ENGINE_JINJA_FILTER_H

#include "engine/tokens/jinja_parts.h"

#define JINJA_FILTER(name)                                                                         \
    err jinja_filter_##name(struct jinja_value *out, struct jinja_run *r,                          \
                            const struct jinja_value *value, const struct jinja_call *call)
JINJA_FILTER(batch);
JINJA_FILTER(dictsort);
JINJA_FILTER(first);
JINJA_FILTER(items);
JINJA_FILTER(join);
JINJA_FILTER(last);
JINJA_FILTER(list);
JINJA_FILTER(map);
JINJA_FILTER(minmax);
JINJA_FILTER(reverse);
JINJA_FILTER(select);
JINJA_FILTER(slice);
JINJA_FILTER(sort);
JINJA_FILTER(sum);
JINJA_FILTER(unique);

#endif
