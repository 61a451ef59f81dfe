#include "proto/training_wire.h"

#include "proto/message.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE_BYTES = 64 };

struct field {
    const struct option_row *row;
    const char *name; /* of the field, and of the option without "no_" */
    const ProtobufCFieldDescriptor *type;
    bool inverted; /* the field is no_NAME */
};

static struct field field_of(const struct option_row *row)
{
    const ProtobufCMessageDescriptor *message = &fedlora__v1__training__descriptor;
    struct field f = {.row = row, .name = strchr(row->key, '.') + 1};
    char no[VALUE_BYTES];
    f.type = protobuf_c_message_descriptor_get_field_by_name(message, f.name);
    if (f.type != NULL) return f;
    snprintf(no, sizeof no, "no_%s", f.name);
    f.type = protobuf_c_message_descriptor_get_field_by_name(message, no);
    f.inverted = true;
    REQUIRE(f.type != NULL); /* a row without a field: see training_options.h */
    return f;
}

/* Fields in which zero is a value and does not mean "absent". */
static bool zero_is_a_value(const struct field *f)
{
    return strcmp(f->name, "clip") == 0 || strcmp(f->name, "epochs") == 0;
}

/* ---- from the wire ---- */

/* The field's value in the text form that option.h reads. False: it is zero or "". */
static bool value_text(char out[VALUE_BYTES], const struct field *f, const void *message)
{
    const void *at = (const char *)message + f->type->offset;
    switch (f->type->type) {
    case PROTOBUF_C_TYPE_UINT32:
        snprintf(out, VALUE_BYTES, "%" PRIu32, *(const uint32_t *)at);
        return *(const uint32_t *)at != 0;
    case PROTOBUF_C_TYPE_UINT64:
        snprintf(out, VALUE_BYTES, "%" PRIu64, *(const uint64_t *)at);
        return *(const uint64_t *)at != 0;
    case PROTOBUF_C_TYPE_DOUBLE:
        snprintf(out, VALUE_BYTES, "%.17g", *(const double *)at);
        return *(const double *)at != 0;
    case PROTOBUF_C_TYPE_BOOL:
        snprintf(out, VALUE_BYTES, "%s",
                 !*(const protobuf_c_boolean *)at == f->inverted ? "yes" : "no");
        return *(const protobuf_c_boolean *)at != 0;
    case PROTOBUF_C_TYPE_STRING:
        snprintf(out, VALUE_BYTES, "%.60s", *(const char *const *)at);
        return **(const char *const *)at != 0;
    default:
        break;
    }
    REQUIRE(!"a field of a type that options do not have");
    return false;
}

err training_wire_read(struct training_options *out, const Fedlora__V1__Training *from)
{
    struct training_options o = *out;
    const struct option_set *set = training_options_set();
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)) != NULL; i++) {
        struct field f = field_of(row);
        char value[VALUE_BYTES], assignment[2 * VALUE_BYTES];
        if (!value_text(value, &f, from) && !zero_is_a_value(&f)) continue;
        snprintf(assignment, sizeof assignment, "%s=%s", row->key, value);
        TRY(option_assign(&o, set, assignment, /*arena: no row has text*/ NULL));
    }
    if (o.steps == 0 && o.epochs == 0)
        return err_make(ERR_INPUT, "train.steps and train.epochs are both 0, expected one of them");
    *out = o;
    return ERR_NONE;
}

/* ---- to the wire ---- */

static void put_number(void *at, const ProtobufCFieldDescriptor *type, double value)
{
    if (type->type == PROTOBUF_C_TYPE_UINT32)
        *(uint32_t *)at = (uint32_t)value;
    else if (type->type == PROTOBUF_C_TYPE_UINT64)
        *(uint64_t *)at = (uint64_t)value; /* at most 2^53: training_options.c */
    else if (type->type == PROTOBUF_C_TYPE_DOUBLE)
        *(double *)at = value;
    else
        REQUIRE(!"a field of a type that options do not have");
}

static err put(Fedlora__V1__Training *to, const struct field *f,
               const struct training_options *from)
{
    void *at = (char *)to + f->type->offset;
    const void *value = (const char *)from + f->row->at;
    if (f->row->kind == OPTION_FLAG) {
        *(protobuf_c_boolean *)at = *(const bool *)value != f->inverted;
        return ERR_NONE;
    }
    if (f->row->kind == OPTION_CHOICE) {
        char *copy = strdup(f->row->choices[*(const int *)value]);
        if (copy == NULL) return err_sys(ENOMEM, "training options");
        *(char **)at = copy;
        return ERR_NONE;
    }
    double number =
        f->row->kind == OPTION_INT ? (double)*(const int64_t *)value : *(const double *)value;
    /* lr 0 is sent on purpose: the coordinator chooses the rate. */
    if (number == 0 && strtod(f->row->fallback, NULL) != 0 && !zero_is_a_value(f) &&
        strcmp(f->name, "lr") != 0)
        return err_make(ERR_INPUT, "--%s 0: a run reads 0 as the default %s, expected more than 0",
                        f->row->flag, f->row->fallback);
    put_number(at, f->type, number);
    return ERR_NONE;
}

err training_wire_make(Fedlora__V1__Training **out, const struct training_options *from)
{
    const struct option_set *set = training_options_set();
    const struct option_row *row;
    Fedlora__V1__Training *made = malloc(sizeof *made);
    if (made == NULL) return err_sys(ENOMEM, "training options");
    fedlora__v1__training__init(made);
    err e = ERR_NONE;
    for (size_t i = 0; (row = option_row_at(set, i)) != NULL && !err_is(e); i++) {
        struct field f = field_of(row);
        e = put(made, &f, from);
    }
    if (err_is(e))
        message_free(made);
    else
        *out = made;
    return e;
}
