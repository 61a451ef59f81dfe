/* protobuf-c messages to and from bytes, with this project's errors. Generated types:
 * "fedlora.pb-c.h". */
#ifndef PROTO_MESSAGE_H
#define PROTO_MESSAGE_H

#include "base/bytes.h"
#include "base/err.h"

#include <protobuf-c/protobuf-c.h>

err message_pack(struct bytes *out, const ProtobufCMessage *message); /* appends */
/* *out is to be freed by message_free(). ERR_INPUT for bytes that are no such message or text that
 * is no UTF-8. Text fields that are absent are "", never NULL. */
err message_unpack(void *out /* Message ** */, const ProtobufCMessageDescriptor *type,
                   const void *data, size_t size);
void message_free(void *message); /* NULL is fine */

#endif
