#include "engine/tokens/data_file.h"
#include "base/bytes.h"
#include "base/file.h"
#include "base/limits.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];

static void setup(void)
{
    support_dir_make(dir);
    (void)snprintf(path, sizeof path, "%s/rows.jsonl", dir);
}
static void teardown(void)
{
    support_dir_remove(dir);
}
TestSuite(data_file, .init = setup, .fini = teardown);

/* Rows as "LINE:TEXT;". */
static err take(void *object, const char *text, size_t size, uint64_t line)
{
    struct bytes *b = object;
    TRY(bytes_printf(b, "%d:", (int)line));
    TRY(bytes_append(b, text, size));
    return bytes_append(b, ";", 1);
}

static err read_file(struct bytes *out, const void *text, size_t size)
{
    *out = (struct bytes){.max = 1 << 20};
    ok(file_write(path, text, size, true));
    return data_file_read(path, &(struct data_sink){take, out});
}

static void check(const char *text, size_t size, const char *rows)
{
    struct bytes found;
    err e = read_file(&found, text, size);
    cr_assert_not(err_is(e), "%s: %s", text, e.text);
    cr_assert_str_eq(found.data ? (char *)found.data : "", rows);
    bytes_close(&found);
}

static void check_refused(const char *text, const char *part)
{
    struct bytes found;
    refused(read_file(&found, text, strlen(text)), ERR_INPUT, part);
    bytes_close(&found);
}

Test(data_file, lines_and_lists_are_read_alike)
{
    static const struct {
        const char *text, *rows;
    } cases[] = {
        {"{\"a\":1}\n{\"b\":2}", "1:{\"a\":1};2:{\"b\":2};"},
        {"\xEF\xBB\xBF{}\r\n\r\n  \t\n\n{}", "1:{}\r;5:{};"},
        {"", ""},
        {"\n\n", ""},
        {"[]", ""},
        {"\xEF\xBB\xBF\n [\n ]\n", ""},
        {"[{\"a\":1},{\"b\":[1,{}]}]", "1:{\"a\":1};1:{\"b\":[1,{}]};"},
        {"\n[\n  {\n    \"a\": \"],}\\\"\"\n  },\n  {}\n]\n",
         "3:{\n    \"a\": \"],}\\\"\"\n  };6:{};"},
        {"[1 , \"x,]\", true]", "1:1;1:\"x,]\";1:true;"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(cases[i].text, strlen(cases[i].text), cases[i].rows);
}

Test(data_file, broken_lists_are_refused_by_line)
{
    check_refused("[{}\n", "rows.jsonl:2: the file ends inside");
    check_refused("[\n{\n", "the file ends inside");
    check_refused("[{},\n]", ":2: the JSON list of rows ends with a comma");
    check_refused("[{}\n{}]", ":2: expected a comma");
    check_refused("[,{}]", ":1: expected a comma");
    check_refused("[{}]\n[{}]", ":2: text after the end");
}

Test(data_file, rows_that_span_blocks_are_whole)
{
    size_t size = (3u << 20) + 20;
    char *text = malloc(size + 1);
    for (int list = 0; list < 2; list++) {
        memset(text, 'x', size);
        text[size] = 0;
        memcpy(text, list ? "[\"" : "\"", 1 + (size_t)list);
        memcpy(text + size - (list ? 2 : 1), list ? "\"]" : "\"", 1 + (size_t)list);
        struct bytes found = {.max = 8 << 20};
        ok(file_write(path, text, size, true));
        ok(data_file_read(path, &(struct data_sink){take, &found}));
        cr_assert_eq(found.size, size - (size_t)(2 * list) + 3);
        bytes_close(&found);
    }
    free(text);
}

static void put_gzip(const char *text, const char *mode)
{
    gzFile f = gzopen(path, mode);
    cr_assert_eq(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    cr_assert_eq(gzclose(f), Z_OK);
}

Test(data_file, gzip_is_unpacked_and_checked)
{
    struct bytes found = {.max = 1 << 20};
    char *packed;
    size_t size;
    put_gzip("{\"a\":1}\n{\"b\"", "wb");
    put_gzip(":2}\n", "ab"); /* a second member */
    ok(data_file_read(path, &(struct data_sink){take, &found}));
    cr_assert_str_eq((char *)found.data, "1:{\"a\":1};2:{\"b\":2};");
    bytes_close(&found);
    ok(file_read_all(&packed, &size, path, 1 << 20));
    refused(read_file(&found, packed, size - 5), ERR_INPUT, "rows.jsonl: the gzip file is cut off");
    bytes_close(&found);
    packed[size - 12] ^= 0x55;
    refused(read_file(&found, packed, size), ERR_INPUT, "rows.jsonl: damaged gzip data");
    bytes_close(&found);
    free(packed);
}

/* 32 MiB of one line need 32 KiB of gzip; the bound of a line stops them. */
Test(data_file, gzip_cannot_claim_more_than_a_line)
{
    struct bytes found = {.max = 1 << 20};
    gzFile f = gzopen(path, "wb1");
    char *text = calloc(1, 1 << 20);
    for (int i = 0; i < 17; i++)
        cr_assert_eq(gzwrite(f, text, 1 << 20), 1 << 20);
    cr_assert_eq(gzclose(f), Z_OK);
    refused(data_file_read(path, &(struct data_sink){take, &found}), ERR_INPUT,
            "rows.jsonl:1: the line is longer than 16777216 bytes");
    bytes_close(&found);
    free(text);
}

Test(data_file, other_kinds_are_refused_with_a_conversion)
{
    static const struct {
        const char *name, *start, *part;
    } cases[] = {
        {"a.parquet", "PAR1....", "is a Parquet file, expected JSON Lines; convert it: python3"},
        {"a.jsonl", "PAR1....", "is a Parquet file"},
        {"a.arrow", "ARROW1..", "is an Arrow file"},
        {"a.arrow", "\xff\xff\xff\xff....", "is an Arrow stream"},
        {"a.xlsx", "PK\3\4....", "is an Excel workbook"},
        {"a.zip", "PK\3\4....", "is a zip archive"},
        {"a.jsonl.zst", "\x28\xb5\x2f\xfd", "zstd -d"},
        {"a.jsonl.bz2", "BZh9", "bunzip2"},
        {"a.jsonl", "\xff\xfe{", "iconv"},
        {"a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
        {"a.jsonl", "GGUF\3", "a.jsonl: is a GGUF file"},
        {"a.jsonl", "<html>\n", "a.jsonl: is an HTML"},
        {"a.CSV", "prompt,completion\n", "csv.DictReader"},
        {"a.tsv", "prompt\tcompletion\n", "delimiter=\"\\t\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char other[SUPPORT_PATH_BYTES + 32];
        (void)snprintf(other, sizeof other, "%s/%s", dir, cases[i].name);
        ok(file_write(other, cases[i].start, strlen(cases[i].start), true));
        struct bytes found = {.max = 1 << 20};
        refused(data_file_read(other, &(struct data_sink){take, &found}), ERR_INPUT, cases[i].part);
        bytes_close(&found);
    }
}
