/* Messages as JSON by their field names, for --json: bytes as lower-case hex, text that is itself
 * JSON (fields that end in _json) as what it holds. */
#ifndef CLIENT_REMOTE_JSON_H
#define CLIENT_REMOTE_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

err remote_json(json_t **out, const ProtobufCMessage *message); /* json_decref() it */

#endif
