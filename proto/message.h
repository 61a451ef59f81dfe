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
/* The same for a message of a peer: ERR_INPUT before anything is allocated if it has more fields,
 * counting those of messages within, than its type can need. A field of two bytes takes up to 150
 * times as much memory when it is unpacked. */
enum { MESSAGE_FEW = 64 }; /* for messages without lists */
err message_unpack_few(void *out, const ProtobufCMessageDescriptor *type, const void *data,
                       size_t size, size_t fields_max);
void message_free(void *message); /* NULL is fine */

#endif
