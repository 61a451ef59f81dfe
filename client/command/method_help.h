/* The methods and their options for help texts, printed from agg's registry and option table. */
#ifndef CLIENT_METHOD_HELP_H
#define CLIENT_METHOD_HELP_H

#include "base/bytes.h"

/* All methods, those with client-level privacy, and all options: for `run create`. */
err method_help(struct bytes *out);
/* The methods that combine finished adapters: for `aggregate`. */
err method_help_aggregate(struct bytes *out);

#endif
