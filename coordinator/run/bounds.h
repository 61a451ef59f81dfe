/* Bounds of all that a member states about itself in Hello, Submit and Report. One table; a field
 * without a row fails tests/unit/bounds.c. They are checked before anything else looks at the
 * message. A statement that is bounded by another one (rows of an update by those of Hello) is
 * checked where both are known. */
#ifndef COORDINATOR_BOUNDS_H
#define COORDINATOR_BOUNDS_H

#include "base/err.h"

#include <protobuf-c/protobuf-c.h>

/* Runs that a member may name which it cannot take part in. */
enum { BOUNDS_WITHOUT = 64 };

/* Of a number, of the bytes of a text, or of the entries of a list. */
struct bound {
    const ProtobufCMessageDescriptor *message;
    const char *field;
    double least, most;
};
/* NULL: the table has no such row. */
const struct bound *bounds_find(const ProtobufCMessageDescriptor *message, const char *field);
/* ERR_INPUT names the first field that is out of its bounds, its value and the bounds. */
err bounds_check(const ProtobufCMessage *message);

#endif
