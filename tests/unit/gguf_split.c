/* Split models, whose files the package gguf has written (tests/models/make_models.py), and the
 * versions of the format. */
#include "base/file.h"
#include "engine/model/model.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static void own_path(char *out, const char *name)
{
    snprintf(out, SUPPORT_PATH_BYTES, "%s/tests/models/llama/%s", FEDLORA_SOURCE_DIR, name);
}

static struct digest digest_of_base(const char *path)
{
    struct model m = {0};
    struct digest d;
    ok(model_open(&m, path));
    ok(model_digest(&d, &m));
    model_drop_weight(&m, &m.final_norm);
    model_drop_pages(&m);
    model_close(&m);
    return d;
}

Test(gguf_split, any_file_of_a_split_model_opens_all)
{
    char path[SUPPORT_PATH_BYTES];
    own_path(path, "f16.gguf");
    struct digest whole = digest_of_base(path);
    for (int i = 1; i <= 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "split-0000%d-of-00003.gguf", i);
        own_path(path, name);
        struct digest split = digest_of_base(path);
        cr_expect(digest_equal(&whole, &split), "%s", name);
    }
}

static void copy(const char *dir, const char *to, const char *from)
{
    char source[SUPPORT_PATH_BYTES], target[SUPPORT_PATH_BYTES], *data;
    size_t size;
    own_path(source, from);
    snprintf(target, sizeof target, "%s/%s", dir, to);
    ok(file_read_all(&data, &size, source, 1 << 20));
    ok(file_write(target, data, size, true));
    free(data);
}

static void refused_as(const char *dir, const char *name, const char *expected)
{
    char path[SUPPORT_PATH_BYTES];
    struct model m = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    err e = model_open(&m, path);
    cr_expect(err_is(e) && strstr(e.text, expected), "%s: %s", name, e.text);
    cr_expect_eq(e.kind, ERR_INPUT);
}

Test(gguf_split, a_missing_renamed_or_foreign_file_is_named)
{
    char dir[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    copy(dir, "m-00001-of-00003.gguf", "split-00001-of-00003.gguf");
    copy(dir, "m-00002-of-00003.gguf", "split-00002-of-00003.gguf");
    refused_as(dir, "m-00002-of-00003.gguf",
               "m-00003-of-00003.gguf: is missing; the model is split into 3 files");
    copy(dir, "m-00003-of-00003.gguf", "split-00002-of-00003.gguf");
    refused_as(dir, "m-00001-of-00003.gguf", "expected a name that ends in -00002-of-00003.gguf");
    copy(dir, "m-00003-of-00003.gguf", "f16.gguf");
    refused_as(dir, "m-00001-of-00003.gguf", "split.no 0 of split.count 1: expected 2 of 3");
    copy(dir, "model.gguf", "split-00001-of-00003.gguf");
    refused_as(dir, "model.gguf", "expected a name that ends in -00001-of-00003.gguf, so that");
    support_dir_remove(dir);
}

Test(gguf_split, version_2_is_read_and_others_are_refused_by_name)
{
    static const struct {
        uint32_t version;
        const char *refusal;
    } cases[] = {
        {3, NULL},
        {2, NULL},
        {1, "GGUF version 1, expected 2 or 3 (a file of 2023; convert the model again)"},
        {4, "GGUF version 4, expected 2 or 3"},
        {3u << 24, "(a big-endian file; convert the model again for this machine)"},
    };
    char path[SUPPORT_PATH_BYTES], *data;
    size_t size;
    own_path(path, "f16.gguf");
    ok(file_read_all(&data, &size, path, 1 << 20));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gguf g = {0};
        memcpy(data + 4, &cases[i].version, sizeof cases[i].version);
        err e = gguf_parse(&g, data, size, GGUF_WITH_DATA);
        if (!cases[i].refusal)
            cr_expect(!err_is(e) && g.tensor_count == 12, "%s", e.text);
        else
            cr_expect(err_is(e) && strstr(e.text, cases[i].refusal), "%s", e.text);
        gguf_close(&g);
    }
    free(data);
}
