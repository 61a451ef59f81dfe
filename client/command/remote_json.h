/* Protobuf messages as JSON, for --json. Keys are the field names of the .proto file; bytes
 * become lower-case hex; fields whose names end in _json contain JSON already and are inserted as
 * values. */
#ifndef CLIENT_REMOTE_JSON_H
#define CLIENT_REMOTE_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

/* The caller frees *out with json_decref(). ERR_MACHINE without memory. */
err remote_json(json_t **out, const ProtobufCMessage *message);

#endif
