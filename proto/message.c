#include "proto/message.h"

#include "base/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Small messages are packed on the stack: most replies are a few bytes. */
err message_pack(struct bytes *out, const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message), total;
    if (!size_add(&total, out->size, size) || total > out->max)
        return err_make(ERR_LIMIT, "%s: a message of %zu bytes, at most %zu fit",
                        message->descriptor->name, size, out->max - out->size);
    uint8_t small[512], *packed = size <= sizeof small ? small : malloc(size);
    if (packed == NULL) return err_sys(ENOMEM, "%s: a message", message->descriptor->name);
    protobuf_c_message_pack(message, packed);
    err e = bytes_append(out, packed, size);
    if (packed != small) free(packed);
    return e;
}

static bool accept_message(ProtobufCMessage *message);

static bool accept_field(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    char *base = (char *)message;
    bool is_message = field->type == PROTOBUF_C_TYPE_MESSAGE;
    if (field->type != PROTOBUF_C_TYPE_STRING && !is_message) return true;
    size_t count = 1;
    void *const *values;
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        count = *(const size_t *)(const void *)(base + field->quantifier_offset);
        values = *(void *const *const *)(const void *)(base + field->offset);
    } else {
        bool other =
            (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 &&
            *(const uint32_t *)(const void *)(base + field->quantifier_offset) != field->id;
        if (other) return true;
        values = (void *const *)(const void *)(base + field->offset);
    }
    for (size_t i = 0; i < count; i++) {
        if (values[i] == NULL) continue;
        if (is_message ? !accept_message(values[i]) : !text_is_utf8(values[i], strlen(values[i])))
            return false;
        if (!is_message) text_tame(values[i]);
    }
    return true;
}

/* Fields of other versions are dropped. protobuf-c would write them again as they came, and does
 * not check that it can then read them. */
static void drop_unknown(ProtobufCMessage *message)
{
    for (unsigned i = 0; i < message->n_unknown_fields; i++)
        free(message->unknown_fields[i].data);
    free(message->unknown_fields);
    message->unknown_fields = NULL;
    message->n_unknown_fields = 0;
}

/* protobuf-c accepts any bytes as text, but the wire format promises UTF-8. The recursion is
 * bounded, because no message of fedlora.proto contains itself. */
static bool accept_message(ProtobufCMessage *message)
{
    drop_unknown(message);
    for (unsigned i = 0; i < message->descriptor->n_fields; i++)
        if (!accept_field(message, &message->descriptor->fields[i])) return false;
    return true;
}

err message_unpack(void *out, const ProtobufCMessageDescriptor *type, const void *data, size_t size)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, size, data);
    if (message == NULL)
        return err_make(ERR_INPUT, "%zu bytes received are no %s", size, type->name);
    if (!accept_message(message)) {
        protobuf_c_message_free_unpacked(message, NULL);
        return err_make(ERR_INPUT, "%s: a text field is not UTF-8", type->name);
    }
    memcpy(out, &message, sizeof message);
    return ERR_NONE;
}

static bool take_varint(uint64_t *out, const uint8_t **at, const uint8_t *end)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        *out = value;
        if (byte < 128) return true;
    }
    return false;
}

/* The bytes of a field's value after its tag. */
static bool take_length(uint64_t *out, unsigned wire_type, const uint8_t **at, const uint8_t *end)
{
    enum { VARINT, FIXED_64, LENGTH, FIXED_32 = 5 };
    uint64_t value;
    if (wire_type == VARINT) {
        *out = 0;
        return take_varint(&value, at, end);
    }
    if (wire_type == LENGTH && !take_varint(&value, at, end)) return false;
    if (wire_type == FIXED_64 || wire_type == FIXED_32)
        value = wire_type == FIXED_64 ? 8 : 4;
    else if (wire_type != LENGTH)
        return false;
    *out = value;
    return value <= (uint64_t)(end - *at);
}

/* Ends at bytes that are no field, which protobuf-c will refuse, or above `most`. The recursion is
 * bounded, because no message of fedlora.proto contains itself. */
static size_t count_fields(const ProtobufCMessageDescriptor *type, const uint8_t *at,
                           const uint8_t *end, size_t most)
{
    size_t n = 0;
    uint64_t tag, length;
    while (at < end && n <= most) {
        if (!take_varint(&tag, &at, end) || !take_length(&length, tag & 7, &at, end)) break;
        n++;
        const ProtobufCFieldDescriptor *field =
            tag >> 3 <= UINT32_MAX
                ? protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3))
                : NULL;
        if (field && field->type == PROTOBUF_C_TYPE_MESSAGE && (tag & 7) == 2 && n <= most)
            n += count_fields(field->descriptor, at, at + length, most - n);
        at += length;
    }
    return n;
}

err message_unpack_few(void *out, const ProtobufCMessageDescriptor *type, const void *data,
                       size_t size, size_t fields_max)
{
    const uint8_t *at = data;
    if (size && count_fields(type, at, at + size, fields_max) > fields_max)
        return err_make(ERR_INPUT, "%s: more than %zu fields", type->name, fields_max);
    return message_unpack(out, type, data, size);
}

void message_free(void *message)
{
    if (message != NULL) protobuf_c_message_free_unpacked(message, NULL);
}
