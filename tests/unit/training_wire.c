#include "proto/training_wire.h"

#include "proto/message.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

static bool has_row(const char *field)
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(training_options_set(), i)) != NULL; i++) {
        const char *name = row->key + strlen("train.");
        if (strcmp(field, name) == 0) return true;
        if (strncmp(field, "no_", 3) == 0 && strcmp(field + 3, name) == 0) return true;
    }
    return false;
}

Test(training_wire, every_field_has_a_row_and_every_row_a_field)
{
    const ProtobufCMessageDescriptor *message = &fedlora__v1__training__descriptor;
    size_t rows = 0;
    while (option_row_at(training_options_set(), rows) != NULL)
        rows++;
    for (unsigned i = 0; i < message->n_fields; i++)
        cr_expect(has_row(message->fields[i].name), "field %s of Training has no row",
                  message->fields[i].name);
    cr_expect_eq(rows, message->n_fields);
}

/* Another value than the default for every row, there and back. */
Test(training_wire, carries_every_option)
{
    struct training_options sent, received;
    Fedlora__V1__Training *message = NULL;
    struct bytes packed = {.max = 1 << 10};
    memset(&sent, 0, sizeof sent);
    training_options_defaults(&sent);
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(training_options_set(), i)) != NULL; i++) {
        void *at = (char *)&sent + row->at;
        if (row->kind == OPTION_FLAG) *(bool *)at = !*(bool *)at;
        if (row->kind == OPTION_INT) *(int64_t *)at += 1 + (int64_t)i;
        if (row->kind == OPTION_NUM) *(double *)at = row->least + 0.0078125 * (double)(i + 1);
        if (row->kind == OPTION_CHOICE) *(int *)at = row->choices[2] ? 2 : 1;
    }
    OK(training_wire_make(&message, &sent));
    OK(message_pack(&packed, &message->base));
    message_free(message);
    OK(message_unpack(&message, &fedlora__v1__training__descriptor, packed.data, packed.size));
    memset(&received, 0, sizeof received);
    training_options_defaults(&received);
    OK(training_wire_read(&received, message));
    for (size_t i = 0; (row = option_row_at(training_options_set(), i)) != NULL; i++) {
        size_t size = row->kind == OPTION_FLAG     ? sizeof(bool)
                      : row->kind == OPTION_CHOICE ? sizeof(int)
                                                   : sizeof(double);
        cr_expect_eq(memcmp((char *)&sent + row->at, (char *)&received + row->at, size), 0, "%s",
                     row->key);
    }
    message_free(message);
    bytes_close(&packed);
}

Test(training_wire, an_absent_field_keeps_the_default_that_the_caller_chose)
{
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    struct training_options o;
    training_options_defaults(&o);
    o.lr = 3e-3; /* as a method may want it */
    t.steps = 9;
    OK(training_wire_read(&o, &t));
    cr_expect_eq(o.steps, 9);
    cr_expect_eq(o.lr, 3e-3);
    cr_expect_eq(o.batch, 4);
    cr_expect_eq(o.schedule, TRAINING_LINEAR);
    cr_expect_eq(o.clip, 0, "0 is off");
    cr_expect_eq(o.epochs, 0, "steps count");
    cr_expect(o.shuffle && o.eos);
}

static void refused(const Fedlora__V1__Training *t, const char *why)
{
    struct training_options o;
    training_options_defaults(&o);
    err e = training_wire_read(&o, t);
    cr_expect_eq(e.kind, ERR_INPUT, "%s", why);
    cr_expect(strstr(e.text, why) != NULL, "\"%s\", expected \"%s\"", e.text, why);
}

Test(training_wire, refuses_what_is_out_of_range_by_name)
{
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    refused(&t, "train.steps and train.epochs are both 0");
    t.steps = 1;
    t.lr = 20;
    refused(&t, "train.lr: ");
    t.lr = NAN;
    refused(&t, "train.lr: ");
    t.lr = -1;
    refused(&t, "train.lr: ");
    t.lr = 0;
    t.beta2 = 1;
    refused(&t, "train.beta2: ");
    t.beta2 = 0;
    t.schedule = (char *)(uintptr_t) "sometimes";
    refused(&t, "train.schedule: \"sometimes\": expected one of constant, linear, cosine");
    t.schedule = (char *)(uintptr_t) "";
    t.seq = LIMIT_SEQUENCE + 1;
    refused(&t, "train.seq: ");
}

Test(training_wire, does_not_send_a_zero_that_would_be_read_as_a_default)
{
    struct training_options o;
    Fedlora__V1__Training *message = NULL;
    training_options_defaults(&o);
    o.beta1 = 0;
    cr_expect_eq(training_wire_make(&message, &o).kind, ERR_INPUT);
    o.beta1 = 0.9;
    o.clip = 0;
    OK(training_wire_make(&message, &o));
    message_free(message);
}
