#include "proto/message.h"

#include "fedlora.pb-c.h"

#include <criterion/criterion.h>
#include <string.h>

static err unpack(Fedlora__V1__RunName **out, const void *data, size_t size)
{
    return message_unpack(out, &fedlora__v1__run_name__descriptor, data, size);
}

Test(message, comes_back_as_it_was_sent)
{
    Fedlora__V1__RunName name = FEDLORA__V1__RUN_NAME__INIT, *back = NULL;
    struct bytes packed = {.max = 1000};
    name.run = (char *)(uintptr_t) "triage";
    cr_assert_eq(message_pack(&packed, &name.base).kind, ERR_OK);
    cr_assert_eq(unpack(&back, packed.data, packed.size).kind, ERR_OK);
    cr_assert_str_eq(back->run, "triage");
    message_free(back);
    bytes_close(&packed);
}

Test(message, absent_text_is_empty)
{
    Fedlora__V1__RunName *back = NULL;
    cr_assert_eq(unpack(&back, "", 0).kind, ERR_OK);
    cr_assert_str_eq(back->run, "");
    message_free(back);
}

Test(message, refuses_bytes_that_are_no_message_and_text_that_is_no_utf_8)
{
    Fedlora__V1__RunName *back = NULL;
    const char *bad[] = {"\x0a\x05"
                         "ab",
                         "\x0a\x02\xff\xfe"};
    const size_t size[] = {4, 4};
    for (size_t i = 0; i < 2; i++) {
        err e = unpack(&back, bad[i], size[i]);
        cr_assert_eq(e.kind, ERR_INPUT);
        cr_assert(strstr(e.text, "fedlora.v1.RunName") != NULL, "%s", e.text);
        cr_assert_null(back);
    }
}

Test(message, tames_its_texts)
{
    static const uint8_t packed[] = {0x12, 0x04, 'a', 0x1b, '[', 'm'}; /* WaitTask.reason */
    Fedlora__V1__WaitTask *back = NULL;
    cr_assert_eq(
        message_unpack(&back, &fedlora__v1__wait_task__descriptor, packed, sizeof packed).kind,
        ERR_OK);
    cr_expect_str_eq(back->reason, "a?[m");
    message_free(back);
}

/* Field 15 of HelloRequest, and field 15 of a module within it. */
Test(message, drops_fields_that_it_does_not_know)
{
    static const uint8_t known[] = {0x2a, 0x03, 0x0a, 0x01, 'q'};
    static const uint8_t more[] = {0x2a, 0x07, 0x0a, 0x01, 'q', 0x7a, 0x02, 1, 2, 0x7a, 0x01, 3};
    Fedlora__V1__HelloRequest *back = NULL;
    struct bytes packed = {.max = 100};
    cr_assert_eq(
        message_unpack(&back, &fedlora__v1__hello_request__descriptor, more, sizeof more).kind,
        ERR_OK);
    cr_expect_eq(back->base.n_unknown_fields, 0);
    cr_assert_eq(message_pack(&packed, &back->base).kind, ERR_OK);
    cr_expect(packed.size == sizeof known && !memcmp(packed.data, known, sizeof known));
    message_free(back);
    bytes_close(&packed);
}

Test(message, looks_for_utf_8_in_messages_within_and_in_lists)
{
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT, *back = NULL;
    Fedlora__V1__ModuleShape good = FEDLORA__V1__MODULE_SHAPE__INIT, bad = good;
    Fedlora__V1__ModuleShape *list[] = {&good, &bad};
    struct bytes packed = {.max = 1000};
    good.name = (char *)(uintptr_t) "model.layers.0";
    bad.name = (char *)(uintptr_t) "\xc3(";
    hello.modules = list;
    hello.n_modules = 1;
    cr_assert_eq(message_pack(&packed, &hello.base).kind, ERR_OK);
    cr_assert_eq(
        message_unpack(&back, &fedlora__v1__hello_request__descriptor, packed.data, packed.size)
            .kind,
        ERR_OK);
    message_free(back);
    back = NULL;
    hello.n_modules = 2;
    bytes_clear(&packed);
    cr_assert_eq(message_pack(&packed, &hello.base).kind, ERR_OK);
    cr_assert_eq(
        message_unpack(&back, &fedlora__v1__hello_request__descriptor, packed.data, packed.size)
            .kind,
        ERR_INPUT);
    cr_assert_null(back);
    bytes_close(&packed);
}

Test(message, does_not_look_into_the_other_parts_of_a_oneof)
{
    Fedlora__V1__SubmitPart part = FEDLORA__V1__SUBMIT_PART__INIT, *back = NULL;
    struct bytes packed = {.max = 1000};
    part.part_case = FEDLORA__V1__SUBMIT_PART__PART_DATA;
    part.data = (ProtobufCBinaryData){4, (uint8_t *)(uintptr_t) "\xff\xfe\x00\x01"};
    cr_assert_eq(message_pack(&packed, &part.base).kind, ERR_OK);
    cr_assert_eq(
        message_unpack(&back, &fedlora__v1__submit_part__descriptor, packed.data, packed.size).kind,
        ERR_OK);
    cr_assert_eq(back->data.len, 4);
    message_free(back);
    bytes_close(&packed);
}

/* Two bytes a field: a module without a name, and in it a field that is not known. */
Test(message, counts_its_fields_before_it_is_unpacked)
{
    uint8_t flat[200], nested[201] = {0x2a, 0x80 | (198 & 127), 198 >> 7}; /* 99 fields */
    Fedlora__V1__HelloRequest *hello = NULL;
    const ProtobufCMessageDescriptor *type = &fedlora__v1__hello_request__descriptor;
    for (size_t i = 0; i < sizeof flat; i += 2) {
        flat[i] = 0x2a;
        flat[i + 1] = 0;
    }
    for (size_t i = 3; i + 1 < sizeof nested; i += 2) {
        nested[i] = 0x78; /* number 15, a varint */
        nested[i + 1] = 1;
    }
    cr_expect_eq(message_unpack_few(&hello, type, flat, sizeof flat, 100).kind, ERR_OK);
    cr_expect_eq(hello->n_modules, 100);
    message_free(hello);
    err e = message_unpack_few(&hello, type, flat, sizeof flat, 99);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "more than 99 fields"), "%s", e.text);
    cr_expect_eq(message_unpack_few(&hello, type, nested, sizeof nested, 100).kind, ERR_OK);
    cr_expect_eq(hello->n_modules, 1);
    message_free(hello);
    cr_expect_eq(message_unpack_few(&hello, type, nested, sizeof nested, 99).kind, ERR_INPUT);
    cr_expect_eq(message_unpack_few(&hello, type, "\xff\xff", 2, 99).kind, ERR_INPUT, "no message");
}

Test(message, does_not_outgrow_its_buffer)
{
    Fedlora__V1__RunName name = FEDLORA__V1__RUN_NAME__INIT;
    struct bytes packed = {.max = 5};
    name.run = (char *)(uintptr_t) "triage";
    cr_assert_eq(message_pack(&packed, &name.base).kind, ERR_LIMIT);
    cr_assert_eq(packed.size, 0);
    bytes_close(&packed);
}
