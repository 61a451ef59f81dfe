/* Packs and unpacks protobuf-c messages, with this project's errors. The generated types are in
 * "fedlora.pb-c.h". */
#ifndef PROTO_MESSAGE_H
#define PROTO_MESSAGE_H

#include "base/bytes.h"
#include "base/err.h"

#include <protobuf-c/protobuf-c.h>

err message_pack(struct bytes *out, const ProtobufCMessage *message); /* appends */
/* The caller frees *out with message_free(). ERR_INPUT: the bytes are not such a message, or a text
 * field is not UTF-8. Text fields that are absent are "", never NULL. */
err message_unpack(void *out /* Message ** */, const ProtobufCMessageDescriptor *type,
                   const void *data, size_t size);
void message_free(void *message); /* NULL is fine */

#endif
