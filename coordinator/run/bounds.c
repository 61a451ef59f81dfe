#include "coordinator/run/bounds.h"

#include "base/digest.h"
#include "base/limits.h"
#include "coordinator/store/store.h"
#include "fedlora.pb-c.h"

#include <float.h>
#include <stdint.h>
#include <string.h>

#define HELLO &fedlora__v1__hello_request__descriptor
#define SUBMIT &fedlora__v1__submit_header__descriptor
#define REPORT &fedlora__v1__report_request__descriptor

enum { TEXT_BYTES_MAX = 1024 };
static const double tokens_max = 1e15, seconds_max = 1e9; /* 30 years */

/* clang-format off */
static const struct bound bounds[] = {
    {HELLO,  "software",          0, TEXT_BYTES_MAX},
    {HELLO,  "protocol",          0, UINT32_MAX},
    {HELLO,  "run",               0, LIMIT_NAME_BYTES},
    {HELLO,  "base_digest",       0, DIGEST_BYTES},
    {HELLO,  "modules",           1, LIMIT_MODULES},
    {HELLO,  "rank",              0, LIMIT_RANK},
    {HELLO,  "memory_bytes",      0, DBL_MAX},
    {HELLO,  "examples",          0, LIMIT_ROWS},
    {HELLO,  "libraries",         0, TEXT_BYTES_MAX},
    {HELLO,  "eval_rows",         0, LIMIT_ROWS},
    {HELLO,  "session",           0, LIMIT_SESSION_BYTES},
    {HELLO,  "epoch",             0, STORE_EPOCH_BYTES},
    {HELLO,  "without",           0, BOUNDS_WITHOUT},
    {HELLO,  "look",              0, 1},
    {SUBMIT, "run",               0, LIMIT_NAME_BYTES},
    {SUBMIT, "round",             0, LIMIT_ROUNDS},
    {SUBMIT, "digest",            0, DIGEST_BYTES},
    {SUBMIT, "size",              1, LIMIT_BLOB_BYTES},
    {SUBMIT, "offset",            0, LIMIT_BLOB_BYTES},
    {SUBMIT, "examples",          0, LIMIT_ROWS},
    {SUBMIT, "train_loss",        0, FLT_MAX},
    {SUBMIT, "seconds",           0, seconds_max},
    {SUBMIT, "tokens",            0, tokens_max},
    {REPORT, "run",               0, LIMIT_NAME_BYTES},
    {REPORT, "round",             0, LIMIT_ROUNDS},
    {REPORT, "step",              0, UINT32_MAX},
    {REPORT, "steps",             0, UINT32_MAX},
    {REPORT, "loss",              0, FLT_MAX},
    {REPORT, "tokens_per_second", 0, tokens_max},
    {REPORT, "eval_rows",         0, LIMIT_ROWS},
    {REPORT, "eval_loss",         0, FLT_MAX},
    {REPORT, "eval_accuracy",    -1, 1}, /* negative: these rows have none */
    {REPORT, "trouble",           0, 480},
    {REPORT, "cannot_train",      0, 480},
    {REPORT, "held",              0, 480},
    {REPORT, "undecided",         0, 1},
    {REPORT, "for_now",           0, 1},
};
/* clang-format on */
enum { BOUNDS = sizeof bounds / sizeof *bounds };

const struct bound *bounds_find(const ProtobufCMessageDescriptor *message, const char *field)
{
    for (size_t i = 0; i < BOUNDS; i++)
        if (bounds[i].message == message && !strcmp(bounds[i].field, field)) return &bounds[i];
    return NULL;
}

/* The number that the bound is about, and its unit. */
static double value_of(const char **unit, const ProtobufCFieldDescriptor *f,
                       const ProtobufCMessage *message)
{
    const char *at = (const char *)message + f->offset;
    size_t count;
    *unit = "";
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        *unit = " entries";
        memcpy(&count, (const char *)message + f->quantifier_offset, sizeof count);
        return (double)count;
    }
    switch (f->type) {
    case PROTOBUF_C_TYPE_UINT32:
        return *(const uint32_t *)(const void *)at;
    case PROTOBUF_C_TYPE_BOOL:
        return *(const protobuf_c_boolean *)(const void *)at;
    case PROTOBUF_C_TYPE_UINT64:
        return (double)*(const uint64_t *)(const void *)at;
    case PROTOBUF_C_TYPE_DOUBLE:
        return *(const double *)(const void *)at;
    case PROTOBUF_C_TYPE_STRING:
        *unit = " bytes";
        return (double)strlen(*(const char *const *)(const void *)at);
    case PROTOBUF_C_TYPE_BYTES:
        *unit = " bytes";
        return (double)((const ProtobufCBinaryData *)(const void *)at)->len;
    default:
        return -DBL_MAX; /* a type without a row in this switch is refused */
    }
}

/* Written so that NaN fails. */
err bounds_check(const ProtobufCMessage *message)
{
    for (size_t i = 0; i < BOUNDS; i++) {
        const struct bound *b = &bounds[i];
        const char *unit;
        if (b->message != message->descriptor) continue;
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field_by_name(message->descriptor, b->field);
        double value = value_of(&unit, f, message);
        if (value >= b->least && value <= b->most) continue;
        return err_make(ERR_INPUT, "%s: %s is %.9g%s, expected %.9g to %.9g",
                        message->descriptor->short_name, b->field, value, unit, b->least, b->most);
    }
    return ERR_NONE;
}
