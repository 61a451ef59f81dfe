/* The methods and their options as help texts show them, from agg's own tables. */
#ifndef CLIENT_METHOD_HELP_H
#define CLIENT_METHOD_HELP_H

#include "base/bytes.h"

err method_help(struct bytes *out);

#endif
