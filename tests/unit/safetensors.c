/* The reader against the reference reader's verdicts, the writer against the reference writer's
 * bytes. */
#include "base/safetensors.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFORMANCE "data/safetensors-conformance"

static err parse(struct safetensors *st, const char *header, const char *data, size_t data_size,
                 struct bytes *file)
{
    uint64_t length = strlen(header);
    *file = (struct bytes){.max = 1 << 20};
    TRY(bytes_append(file, &length, 8)); /* the tests run on little-endian machines */
    TRY(bytes_append(file, header, length));
    TRY(bytes_append(file, data, data_size));
    return safetensors_parse(st, file->data, file->size);
}

static void expect_reject(const char *header, const char *verdict)
{
    struct safetensors st = {0};
    struct bytes file;
    err e = parse(&st, header, "0123456789abcdef", 16, &file);
    cr_expect_eq(e.kind, ERR_INPUT, "%s: accepted, expected %s", header, verdict);
    cr_expect(strncmp(e.text, verdict, strlen(verdict)) == 0, "%s: \"%s\", expected %s", header,
              e.text, verdict);
    cr_expect_eq(st.count, 0, "the output was touched");
    bytes_close(&file);
}

Test(safetensors, gives_the_reference_readers_verdict_on_every_conformance_file)
{
    char path[4096];
    support_shared(path, sizeof path, CONFORMANCE "/expected.tsv");
    FILE *list = fopen(path, "r");
    cr_assert_not_null(list);
    char line[1024];
    int files = 0;
    while (fgets(line, sizeof line, list)) {
        char name[256], expected[256], file[1400];
        if (sscanf(line, "%255[^\t]\t%*[^\t]\t%255[^\t]", name, expected) != 2) continue;
        if (strcmp(name, "file") == 0) continue;
        snprintf(file, sizeof file, CONFORMANCE "/%s", name);
        support_shared(path, sizeof path, file);
        struct safetensors st = {0};
        err e = safetensors_open(&st, path);
        if (strcmp(expected, "ok") == 0) {
            cr_expect(!err_is(e), "%s: %s", name, e.text);
        } else {
            char want[512];
            snprintf(want, sizeof want, ": %s:", expected + strlen("reject:"));
            cr_expect_eq(e.kind, ERR_INPUT, "%s", name);
            cr_expect(strstr(e.text, want) != NULL, "%s: \"%s\", expected \"%s\"", name, e.text,
                      want);
        }
        safetensors_close(&st);
        files++;
    }
    fclose(list);
    cr_expect_geq(files, 23);
}

static void expect_file(const struct bytes *made, const char *name)
{
    char path[4096];
    support_shared(path, sizeof path, name);
    char *want = NULL;
    size_t size = 0;
    ok(file_read_all(&want, &size, path, 1 << 20));
    cr_assert_eq(made->size, size, "%s: %zu bytes, expected %zu", name, made->size, size);
    cr_assert(memcmp(made->data, want, size) == 0, "%s: other bytes", name);
    free(want);
}

Test(safetensors, writes_the_bytes_the_reference_writer_writes)
{
    struct bytes out = {.max = 4096};
    const float six[6] = {0, 1, 2, 3, 4, 5};
    struct tensor t = {.name = "attn.0",
                       .dtype = DTYPE_F32,
                       .dims = 3,
                       .shape = {1, 2, 3},
                       .size = sizeof six,
                       .data = six};
    ok(safetensors_write(&out, &t, 1, NULL, 0));
    expect_file(&out, CONFORMANCE "/test_serialization_expected_bytes1.safetensors");
    bytes_clear(&out);
    t = (struct tensor){
        .name = "attn.0", .dtype = DTYPE_F4, .dims = 2, .shape = {1, 2}, .size = 1, .data = ""};
    ok(safetensors_write(&out, &t, 1, NULL, 0));
    expect_file(&out, CONFORMANCE "/test_serialization_fp4_expected_bytes1.safetensors");
    bytes_clear(&out);
    ok(safetensors_write(&out, NULL, 0, NULL, 0));
    expect_file(&out, CONFORMANCE "/test_empty_expected_bytes1.safetensors");
    bytes_clear(&out);
    ok(safetensors_write(&out, NULL, 0, &(struct metadata){"framework", "pt"}, 1));
    expect_file(&out, CONFORMANCE "/test_empty_expected_bytes2.safetensors");
    bytes_close(&out);
}

Test(safetensors, any_order_of_inputs_gives_the_same_bytes_and_reads_back)
{
    const float a[2] = {1.5f, -2};
    const uint16_t b[3] = {1, 2, 3};
    struct tensor forward[3] = {
        {.name = "a", .dtype = DTYPE_F32, .dims = 1, .shape = {2}, .size = 8, .data = a},
        {.name = "b\"\\\n\xc3\xa9",
         .dtype = DTYPE_BF16,
         .dims = 2,
         .shape = {3, 1},
         .size = 6,
         .data = b},
        {.name = "empty", .dtype = DTYPE_F32, .dims = 2, .shape = {0, 7}},
    };
    struct tensor backward[3] = {forward[2], forward[1], forward[0]};
    struct metadata meta[2] = {{"k", "v\t1"}, {"j", ""}}, reversed[2] = {meta[1], meta[0]};
    struct bytes x = {.max = 4096}, y = {.max = 4096};
    ok(safetensors_write(&x, forward, 3, meta, 2));
    ok(safetensors_write(&y, backward, 3, reversed, 2));
    cr_assert_eq(x.size, y.size);
    cr_assert(memcmp(x.data, y.data, x.size) == 0);
    uint64_t header;
    memcpy(&header, x.data, 8);
    cr_assert_eq(header % 8, 0);

    struct safetensors st = {0};
    ok(safetensors_parse(&st, x.data, x.size));
    cr_assert_eq(st.count, 3);
    cr_assert_eq(st.metadata_count, 2);
    cr_assert_str_eq(safetensors_metadata(&st, "k"), "v\t1");
    cr_assert_str_eq(safetensors_metadata(&st, "j"), "");
    cr_assert_null(safetensors_metadata(&st, "none"));
    const struct tensor *found = safetensors_find(&st, "b\"\\\n\xc3\xa9");
    cr_assert_not_null(found);
    cr_assert_eq(found->count, 3);
    cr_assert(memcmp(found->data, b, sizeof b) == 0);
    found = safetensors_find(&st, "empty");
    cr_assert_eq(found->size, 0);
    cr_assert_null(found->data);
    cr_assert_null(safetensors_find(&st, "c"));
    safetensors_close(&st);
    bytes_close(&x);
    bytes_close(&y);
}

Test(safetensors, rejects_headers_that_lie)
{
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
                  "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
                  "InvalidHeaderDeserialization"); /* stricter than the reference: a name twice */
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[4.0],\"data_offsets\":[0,16]}}",
                  "InvalidHeaderDeserialization");
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}",
                  "InvalidHeaderDeserialization");
    expect_reject("{\"a\":{\"dtype\":\"Q4_0\",\"shape\":[32],\"data_offsets\":[0,16]}}",
                  "InvalidHeaderDeserialization");
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0]}}",
                  "InvalidHeaderDeserialization");
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
                  "InvalidOffset");
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                  "InvalidOffset");
    expect_reject("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,16]}}",
                  "MisalignedSlice");
    expect_reject(
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,16]}}",
        "ValidationOverflow");
    expect_reject("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
                  "\"__metadata__\":{\"x\":1}}",
                  "InvalidHeaderDeserialization");
    expect_reject("[]", "InvalidHeaderDeserialization");
    expect_reject("{}", "MetadataIncompleteBuffer");
}

/* Neither is a valid header, so the error shows whether it was parsed before it was refused. */
Test(safetensors, refuses_a_header_of_too_many_values_or_long_names_before_it_is_parsed)
{
    static const char *const unit[] = {"[],", "{},", "1,"};
    struct bytes header = {.max = 8 << 20};
    struct safetensors st = {0};
    for (size_t i = 0; i < sizeof unit / sizeof *unit; i++) {
        bytes_clear(&header);
        ok(bytes_append(&header, "\0\0\0\0\0\0\0\0{\"a\":[", 14));
        for (int k = 0; k < 1000000; k++)
            ok(bytes_append(&header, unit[i], strlen(unit[i])));
        uint64_t length = header.size - 8;
        memcpy(header.data, &length, sizeof length);
        err e = safetensors_parse(&st, header.data, header.size);
        cr_expect(strstr(e.text, "more values or longer names"), "%s", e.text);
    }
    bytes_clear(&header);
    ok(bytes_append(&header, "\0\0\0\0\0\0\0\0{\"", 10));
    for (int k = 0; k < 1 << 20; k++)
        ok(bytes_append(&header, "n", 1));
    ok(bytes_append(&header, "\"", 1));
    uint64_t length = header.size - 8;
    memcpy(header.data, &length, sizeof length);
    err e = safetensors_parse(&st, header.data, header.size);
    cr_expect(strstr(e.text, "more values or longer names"), "%s", e.text);
    bytes_close(&header);
}

Test(safetensors, refuses_a_header_longer_than_the_caller_expects_unread)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x.safetensors"));
    ok(file_write(path, "\20\0\0\0\0\0\0\0not a header", 20, false));
    ok(safetensors_check_header(path, 16));
    refused(safetensors_check_header(path, 15), ERR_INPUT,
            "x.safetensors: HeaderTooLarge: 16 bytes, expected at most 15");
    support_dir_remove(dir);
}

Test(safetensors, refuses_to_write_what_would_not_read_back)
{
    struct bytes out = {.max = 4096};
    float x[2] = {0};
    struct tensor twice[2] = {
        {.name = "a", .dtype = DTYPE_F32, .dims = 1, .shape = {2}, .size = 8, .data = x},
        {.name = "a", .dtype = DTYPE_F32, .dims = 1, .shape = {2}, .size = 8, .data = x},
    };
    ok(bytes_append(&out, "kept", 4));
    cr_expect_eq(safetensors_write(&out, twice, 2, NULL, 0).kind, ERR_INPUT);
    twice[0].size = 4;
    cr_expect_eq(safetensors_write(&out, twice, 1, NULL, 0).kind, ERR_INPUT);
    twice[0].size = 8;
    twice[0].name = "\xff";
    cr_expect_eq(safetensors_write(&out, twice, 1, NULL, 0).kind, ERR_INPUT);
    cr_expect_eq(out.size, 4, "the output was touched");
    cr_expect_str_eq((char *)out.data, "kept");
    bytes_close(&out);
}

Test(safetensors, names_the_file_in_its_errors)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x.safetensors"));
    ok(file_write(path, "abc", 3, false));
    struct safetensors st = {0};
    err e = safetensors_open(&st, path);
    cr_expect(strstr(e.text, "x.safetensors: HeaderTooSmall") != NULL, "%s", e.text);
    support_dir_remove(dir);
}

/* The quick reader of canonical headers against jansson: a space makes the same header one that
 * only jansson reads. */
static void expect_same_reading(const char *header, const char *data, size_t size)
{
    char spaced[1024];
    struct safetensors quick = {0}, slow = {0};
    struct bytes file[2];
    cr_assert_eq(*header, '{');
    snprintf(spaced, sizeof spaced, "{ %s", header + 1);
    err a = parse(&quick, header, data, size, &file[0]);
    err b = parse(&slow, spaced, data, size, &file[1]);
    cr_expect_eq(a.kind, b.kind, "%s: \"%s\", \"%s\"", header, a.text, b.text);
    if (err_is(a)) cr_expect(!strncmp(a.text, b.text, 12), "\"%s\", \"%s\"", a.text, b.text);
    cr_assert_eq(quick.count, slow.count, "%s", header);
    cr_assert_eq(quick.metadata_count, slow.metadata_count, "%s", header);
    for (size_t i = 0; i < quick.count; i++) {
        const struct tensor *x = &quick.tensor[i], *y = &slow.tensor[i];
        cr_expect_str_eq(x->name, y->name);
        cr_expect(x->dtype == y->dtype && x->dims == y->dims && x->count == y->count);
        cr_expect(x->size == y->size && !memcmp(x->shape, y->shape, sizeof x->shape));
        cr_expect(!x->size || !memcmp(x->data, y->data, x->size));
    }
    for (size_t i = 0; i < quick.metadata_count; i++) {
        cr_expect_str_eq(quick.metadata[i].key, slow.metadata[i].key);
        cr_expect_str_eq(quick.metadata[i].value, slow.metadata[i].value);
    }
    safetensors_close(&quick);
    safetensors_close(&slow);
    bytes_close(&file[0]);
    bytes_close(&file[1]);
}

Test(safetensors, reads_a_canonical_header_as_every_other_one)
{
#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[8,12]}"
    static const char *const headers[] = {
        "{}",
        "{" A "," B "}",
        "{" A "," B "}    ",
        "{\"__metadata__\":{\"format\":\"pt\",\"x.y\":\"[1,{}]\"}," A "," B "}",
        "{\"__metadata__\":{\"format\":\"pt\"}}",
        "{\"__metadata__\":{\"x\":\"{\\\"a\\\\b\\\":1}\"}," A "," B "}",
        "{\"__metadata__\":{\"x\":\"a\\/b\"}," A "," B "}",
        "{\"__metadata__\":{\"x\":\"a\\",
        "{\"__metadata__\":{}," A "," B "}",
        "{\"__metadata__\":{\"b\":\"1\",\"a\":\"2\"}," A "," B "}",
        "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}," A "," B "}",
        "{\"__metadata__\":{\"a\":1}," A "," B "}",
        "{\"__metadata__\":{\"a\":\"\\u0041\\n\"}," A "," B "}",
        "{" A "," A "," B "}",
        "{" B "," A "}",
        "{" A "," B ",}",
        "{" A "," B,
        "{" A "," B "}}",
        "{" A "," B "} x",
        "{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[02],\"data_offsets\":[8,12]}}",
        "{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[-2],\"data_offsets\":[8,12]}}",
        "{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[8,12,13]}}",
        "{" A ",\"b\":{\"dtype\":\"BF17\",\"shape\":[2],\"data_offsets\":[8,12]}}",
        "{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[8,11]}}",
        "{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[8,12]}}",
        "{" A
        ",\"b\":{\"dtype\":\"BF16\",\"shape\":[99999999999999999999],\"data_offsets\":[8,12]}}",
        "{" A ",\"b\":{\"shape\":[2],\"dtype\":\"BF16\",\"data_offsets\":[8,12]}}",
        "{" A ",\"\xc3\xa4\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[8,12]}}",
    };
#undef A
#undef B
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        for (size_t size = 0; size <= 12; size += 4)
            expect_same_reading(headers[i], "0123456789ab", size);
}
