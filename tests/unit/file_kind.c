/* First bytes as the programs write them: a pointer of git-lfs, files made by
 * torch.save(), gzip, zstd, xz, tar, NumPy and h5py. */
#include "base/file_kind.h"

#include "base/json.h"
#include "base/safetensors.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static const char pointer[] = "version https://git-lfs.github.com/spec/v1\n"
                              "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2"
                              "4d17e2393\nsize 12345\n";

Test(file_kind, knows_the_first_bytes_of_common_files)
{
#define CASE(kind, text)                                                                           \
    {                                                                                              \
        FILE_KIND_##kind, text, sizeof(text) - 1                                                   \
    }
    static const struct {
        enum file_kind kind;
        const char *bytes;
        size_t size;
    } cases[] = {
        CASE(EMPTY, ""),
        {FILE_KIND_LFS, pointer, sizeof pointer - 1},
        CASE(HTML, "\n<!DOCTYPE html>\n<html class=\"\">"),
        CASE(HTML, "<HTML><body>Sign in"),
        CASE(HTML, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AccessDenied</Code>"),
        CASE(ZIP, "PK\3\4\0\0\10\10\0\0archive/data.pkl"),
        CASE(PICKLE, "\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\2M\xe9\3."),
        CASE(PICKLE, "\x80\4\x95\6\0\0\0\0\0\0\0]\x94(K\1e."),
        CASE(GGUF, "GGUF\3\0\0\0"),
        CASE(GGML, "tjgg\3\0\0\0"),
        CASE(SAFETENSORS, "\x10\0\0\0\0\0\0\0{\"a\":{"),
        /* lengths whose bytes are those of other files */
        CASE(SAFETENSORS, "{ \0\0\0\0\0\0{\"a\":{"),
        CASE(SAFETENSORS, "\x80\2\0\0\0\0\0\0{\"a\":."),
        CASE(SAFETENSORS, "\x1f\x8b\x08\0\0\0\0\0{\"a\":{"),
        CASE(GZIP, "\x1f\x8b\x08\0\0\0\0\0\0\3"),
        CASE(ZSTD, "\x28\xb5\x2f\xfd\x04\x58"),
        CASE(XZ, "\xfd"
                 "7zXZ\0\0\4"),
        CASE(HDF5, "\x89HDF\r\n\x1a\n\0"),
        CASE(NUMPY, "\x93NUMPY\1\0v\0{'descr'"),
        CASE(PARQUET, "PAR1\x15\4"),
        CASE(UTF16, "\xff\xfe{\0\"\0"),
        CASE(JSON, "\xef\xbb\xbf\n {\n  \"r\": 8}"),
        CASE(JSON, "[1, 2]"),
        CASE(UNKNOWN, "{\x80\0\0\0\0\0\0["),
        CASE(UNKNOWN, "version 2 of the model"),
        CASE(UNKNOWN, "hello"),
        CASE(UNKNOWN, "\x80"),
    };
#undef CASE
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_expect_eq(file_kind_of(cases[i].bytes, cases[i].size), cases[i].kind, "case %zu", i);
    char tar[300] = "adapter_model.safetensors";
    memcpy(tar + 257, "ustar\00000", 8);
    cr_expect_eq(file_kind_of(tar, sizeof tar), FILE_KIND_TAR);
}

Test(file_kind, says_what_a_file_is_and_what_to_do)
{
    refused(
        file_kind_refuse(FILE_KIND_GGUF, pointer, sizeof pointer - 1), ERR_INPUT,
        "is a Git LFS pointer, expected a GGUF file; fetch the file itself: run `git lfs pull`");
    ok(file_kind_refuse(FILE_KIND_GGUF, "GGUF\3", 5));
    ok(file_kind_refuse(FILE_KIND_GGUF, "hello", 5));
}

Test(file_kind, is_named_by_the_readers)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct safetensors st = {0};
    json_t *json = NULL;
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x"));
    ok(file_write(path, pointer, sizeof pointer - 1, true));
    refused(safetensors_open(&st, path), ERR_INPUT, "x: is a Git LFS pointer, expected a safetens");
    refused(json_open(&json, path, 1 << 10), ERR_INPUT, "x: is a Git LFS pointer, expected a JSON");
    ok(file_write(path, "", 0, true));
    refused(safetensors_open(&st, path), ERR_INPUT, "the file is empty");
    refused(json_open(&json, path, 1 << 10), ERR_INPUT, "x: is an empty file, expected a JSON");
    ok(file_write(path, "\x10\0\0\0\0\0\0\0{\"a\":{", 14, true));
    refused(safetensors_open(&st, path), ERR_INPUT,
            "InvalidHeaderLength: the header should have 16 bytes, but the file has only 14");
    support_dir_remove(dir);
}
