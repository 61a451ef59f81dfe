/* The conversion reads the descriptors that protobuf-c generates, so that a field added to the
 * .proto file appears in --json without any code here. */
#include "client/command/remote_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *json_of_message(const ProtobufCMessage *message);

/* Digests, keys and seeds are printed as hex in every other place too. */
static json_t *json_of_bytes(const ProtobufCBinaryData *data)
{
    static const char digit[] = "0123456789abcdef";
    char *text = malloc(2 * data->len + 1);
    if (text == NULL) return NULL;
    for (size_t i = 0; i < data->len; i++) {
        text[2 * i] = digit[data->data[i] >> 4];
        text[2 * i + 1] = digit[data->data[i] & 15];
    }
    json_t *value = json_stringn(text, 2 * data->len);
    free(text);
    return value;
}

/* A field *_json that does not parse is shown as the text it is: this is a display, not a check. */
static json_t *json_of_text(const ProtobufCFieldDescriptor *field, const char *text)
{
    size_t length = strlen(field->name);
    bool holds_json = length > 5 && strcmp(field->name + length - 5, "_json") == 0 && text[0] != 0;
    json_t *value = holds_json ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    return value != NULL ? value : json_string(text);
}

/* The size of an element in the array of a repeated field, by which protobuf-c lays it out. */
static size_t element_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    default:
        return 4;
    }
}

/* One value at `at`, which is a field or an element of a repeated field. Values are copied out with
 * memcpy(), because `at` is untyped. JSON has no infinity or NaN, so those become null. */
static json_t *json_of_value(const ProtobufCFieldDescriptor *field, const void *at)
{
    const void *pointer = NULL;
    uint64_t u64 = 0;
    uint32_t u32 = 0;
    double number = 0;
    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
        memcpy(&pointer, at, sizeof pointer);
        return json_of_text(field, pointer == NULL ? "" : pointer);
    case PROTOBUF_C_TYPE_MESSAGE:
        memcpy(&pointer, at, sizeof pointer);
        return pointer == NULL ? json_null() : json_of_message(pointer);
    case PROTOBUF_C_TYPE_BYTES:
        return json_of_bytes(at);
    case PROTOBUF_C_TYPE_DOUBLE:
        memcpy(&number, at, sizeof number);
        return isfinite(number) ? json_real(number) : json_null();
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_INT64:
        memcpy(&u64, at, sizeof u64);
        return json_integer((json_int_t)u64);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)at);
    default:
        memcpy(&u32, at, sizeof u32);
        return json_integer(u32);
    }
}

/* In protobuf-c the quantifier of a repeated field is its count, and the field a pointer to
 * elements. */
static json_t *json_of_list(const ProtobufCFieldDescriptor *field, const char *base)
{
    size_t count = 0;
    const char *first = NULL;
    memcpy(&count, base + field->quantifier_offset, sizeof count);
    memcpy(&first, base + field->offset, sizeof first);
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(
                list, json_of_value(field, first + i * element_size(field->type))) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* Only the field of a oneof that is set is printed; the oneof's quantifier holds its number. */
static json_t *json_of_message(const ProtobufCMessage *message)
{
    json_t *object = json_object();
    const char *base = (const char *)message;
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        uint32_t set = field->id;
        if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
            memcpy(&set, base + field->quantifier_offset, sizeof set);
        if (set != field->id) continue;
        json_t *value = field->label == PROTOBUF_C_LABEL_REPEATED
                            ? json_of_list(field, base)
                            : json_of_value(field, base + field->offset);
        if (json_object_set_new(object, field->name, value) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

err remote_json(json_t **out, const ProtobufCMessage *message)
{
    json_t *value = json_of_message(message);
    if (value == NULL)
        return err_make(ERR_MACHINE, "%s: cannot be converted to JSON", message->descriptor->name);
    *out = value;
    return ERR_NONE;
}
