#include "client/export/export.h"

#include "base/file.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SIDE_MAX = 64, RANK = 3 };

/* An adapter on every projection of the one layer of a model in tests/models, flattened. */
struct fixture {
    char dir[SUPPORT_PATH_BYTES];
    struct model base;
    struct adapter_file file;
    struct flatten delta;
};

static float values[MODULE_UNFUSED][2][RANK * SIDE_MAX];

static void write_adapter(const char *dir, const struct arch *a, double scale)
{
    struct adapter_file_module module[MODULE_UNFUSED] = {{0}};
    char name[MODULE_UNFUSED][LIMIT_TENSOR_NAME_BYTES];
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_PEFT};
    for (int k = 0; k < MODULE_UNFUSED; k++) {
        struct rng rng;
        uint32_t d_out, d_in, rank = k == MODULE_Q ? RANK : 2;
        model_module_shape(&d_out, &d_in, a, (enum module_kind)k);
        model_module_name(name[k], 0, (enum module_kind)k);
        rng_init(&rng, "test", 1, name[k], 0);
        rng_fill_uniform(&rng, values[k][0], RANK * SIDE_MAX, 1);
        rng_fill_uniform(&rng, values[k][1], RANK * SIDE_MAX, scale);
        module[k] = (struct adapter_file_module){
            .name = name[k], .d_out = d_out, .d_in = d_in, .rank = rank, .alpha = 2 * rank};
        module[k].factor[ADAPTER_FILE_A] =
            (struct adapter_file_factor){.f32 = values[k][0], .rows = rank, .cols = d_in};
        module[k].factor[ADAPTER_FILE_B] =
            (struct adapter_file_factor){.f32 = values[k][1], .rows = d_out, .cols = rank};
    }
    ok(adapter_file_write_peft(dir, &meta, module, MODULE_UNFUSED, true));
}

static void open_fixture(struct fixture *f, const char *base, double scale)
{
    char path[SUPPORT_PATH_BYTES], name[256];
    *f = (struct fixture){0};
    support_dir_make(f->dir);
    (void)snprintf(name, sizeof name, "tests/models/%s", base);
    support_source(path, sizeof path, name);
    ok(model_open(&f->base, path));
    ok(file_join(path, sizeof path, f->dir, "adapter"));
    write_adapter(path, &f->base.arch, scale);
    ok(adapter_file_open(&f->file, path));
    ok(flatten_open(&f->delta, &f->file, &(struct lowrank_cut){0}, 1));
    cr_assert_eq(f->delta.count, MODULE_UNFUSED);
}

static void close_fixture(struct fixture *f)
{
    flatten_close(&f->delta);
    adapter_file_close(&f->file);
    model_close(&f->base);
    support_dir_remove(f->dir);
}

static void out_path(char *out, const struct fixture *f, const char *name)
{
    ok(file_join(out, SUPPORT_PATH_BYTES, f->dir, name));
}

/* scale B A of what was written, in float64: (d_out, d_in). */
static double expected(const struct fixture *f, enum module_kind k, uint32_t row, uint32_t col)
{
    uint32_t d_out, d_in, rank = k == MODULE_Q ? RANK : 2;
    double sum = 0;
    model_module_shape(&d_out, &d_in, &f->base.arch, k);
    for (uint32_t i = 0; i < rank; i++)
        sum += (double)values[k][1][row * rank + i] * (double)values[k][0][i * d_in + col];
    return 2 * sum;
}

Test(export, a_merged_model_is_the_base_plus_the_change)
{
    const char *const bases[] = {"llama", "llama/q8_0.gguf", "llama-bias", "qwen2/f16.gguf",
                                 "qwen3"};
    for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        struct fixture f;
        struct model merged = {0};
        char out[SUPPORT_PATH_BYTES], note[256];
        open_fixture(&f, bases[i], 0.5);
        out_path(out, &f, "merged");
        ok(export_merged(out, &f.delta, &f.base,
                         &(struct export_merged_options){
                             .type = DTYPE_F32, .note = note, .note_bytes = sizeof note}));
        ok(model_open(&merged, out));
        for (int k = 0; k < MODULE_UNFUSED; k++) {
            const struct weight *w = &f.base.layer[0].linear[k], *v = &merged.layer[0].linear[k];
            float before[SIDE_MAX], after[SIDE_MAX];
            cr_assert(w->rows == v->rows && w->cols == v->cols);
            for (uint32_t row = 0; row < w->rows; row++) {
                weight_rows_f32(before, w, row, 1);
                weight_rows_f32(after, v, row, 1);
                for (uint32_t c = 0; c < w->cols; c++) {
                    double wanted = (double)before[c] + expected(&f, (enum module_kind)k, row, c);
                    double off = wanted - (double)after[c];
                    cr_assert(off < 3e-6 && off > -3e-6, "%s %s %u,%u: %g", bases[i],
                              model_module_short((enum module_kind)k), row, c, off);
                }
            }
        }
        model_close(&merged);
        close_fixture(&f);
    }
}

Test(export, merging_nothing_gives_the_same_base)
{
    const char *const bases[] = {"llama", "llama/f16.gguf", "llama-bias/f16.gguf", "qwen2",
                                 "qwen3/f16.gguf"};
    for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        struct fixture f;
        struct model merged = {0};
        struct digest a, b;
        char out[SUPPORT_PATH_BYTES];
        open_fixture(&f, bases[i], 0);
        out_path(out, &f, "merged");
        /* BF16 holds these bases exactly */
        ok(export_merged(out, &f.delta, &f.base,
                         &(struct export_merged_options){.type = i % 2 ? DTYPE_F32 : DTYPE_BF16}));
        ok(model_open(&merged, out));
        ok(model_digest(&a, &f.base));
        ok(model_digest(&b, &merged));
        cr_assert(digest_equal(&a, &b), "%s", bases[i]);
        cr_assert_eq(merged.embed.dtype, i % 2 ? DTYPE_F32 : DTYPE_BF16);
        model_close(&merged);
        close_fixture(&f);
    }
}

static const float *gguf_factor(const struct gguf *g, enum module_kind k, char which, uint32_t rank,
                                uint32_t side)
{
    char name[64];
    (void)snprintf(name, sizeof name, "blk.0.%s.weight.lora_%c", model_module_gguf(k), which);
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    cr_assert_not_null(t, "%s", name);
    cr_assert_eq(t->ne[which == 'a'], rank, "%s", name);
    cr_assert_eq(t->ne[which == 'b'], side, "%s", name);
    return (const float *)(const void *)t->data;
}

/* alpha/r B A read back, the rows of B put back in order by weight_rows_f32(), which llama.cpp's
 * own numbers have proved on the base. */
static void check_gguf(const struct fixture *f, const struct gguf *g, enum module_kind k,
                       float alpha)
{
    uint32_t d_out, d_in, rank = k == MODULE_Q ? RANK : 2;
    const struct arch *a = &f->base.arch;
    bool permuted = a->family->gguf_permutes && (k == MODULE_Q || k == MODULE_K);
    model_module_shape(&d_out, &d_in, a, k);
    const float *A = gguf_factor(g, k, 'a', rank, d_in);
    struct weight B = {.data = gguf_factor(g, k, 'b', rank, d_out),
                       .dtype = DTYPE_F32,
                       .rows = d_out,
                       .cols = rank,
                       .rope_heads = !permuted       ? 0
                                     : k == MODULE_Q ? a->heads
                                                     : a->kv_heads};
    for (uint32_t row = 0; row < d_out; row++) {
        float b[RANK];
        weight_rows_f32(b, &B, row, 1);
        for (uint32_t c = 0; c < d_in; c++) {
            double sum = 0;
            for (uint32_t i = 0; i < rank; i++)
                sum += (double)b[i] * (double)A[i * d_in + c];
            double off = sum * (double)alpha / rank - expected(f, k, row, c);
            cr_assert(off < 1e-5 && off > -1e-5, "%s %u,%u: %g", model_module_short(k), row, c,
                      off);
        }
    }
}

Test(export, a_gguf_adapter_holds_the_same_change)
{
    const char *const bases[] = {"llama", "qwen2", "qwen3"};
    for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        struct fixture f;
        struct gguf g = {0};
        struct gguf_str text;
        float alpha;
        char out[SUPPORT_PATH_BYTES];
        open_fixture(&f, bases[i], 0.5);
        out_path(out, &f, "x.gguf");
        ok(export_gguf(out, &f.delta, &f.base, false));
        refused(export_gguf(out, &f.delta, &f.base, false), ERR_INPUT, "x.gguf");
        ok(gguf_open(&g, out, GGUF_WITH_DATA));
        ok(gguf_get_str(&text, &g, "general.type"));
        cr_assert(gguf_str_is(text, "adapter"));
        ok(gguf_get_str(&text, &g, "general.architecture"));
        cr_assert(gguf_str_is(text, bases[i]));
        ok(gguf_get_str(&text, &g, "adapter.type"));
        cr_assert(gguf_str_is(text, "lora"));
        ok(gguf_get_f32(&alpha, &g, "adapter.lora.alpha"));
        for (int k = 0; k < MODULE_UNFUSED; k++)
            check_gguf(&f, &g, (enum module_kind)k, alpha);
        gguf_close(&g);
        close_fixture(&f);
    }
}

Test(export, a_peft_directory_gives_the_change_back)
{
    struct fixture f;
    struct adapter_file again = {0};
    char out[SUPPORT_PATH_BYTES];
    open_fixture(&f, "llama", 0.5);
    out_path(out, &f, "peft");
    ok(export_peft(out, &f.delta, "somewhere/base", false));
    refused(export_peft(out, &f.delta, NULL, false), ERR_INPUT, "exists");
    ok(adapter_file_open(&again, out));
    cr_assert_str_eq(again.meta.base_path, "somewhere/base");
    for (int k = 0; k < MODULE_UNFUSED; k++) {
        char name[LIMIT_TENSOR_NAME_BYTES];
        model_module_name(name, 0, (enum module_kind)k);
        const struct adapter_file_module *m = adapter_file_find(&again, name);
        cr_assert_not_null(m);
        cr_assert(m->alpha == m->rank && m->scale == 1);
        const float *A = m->factor[ADAPTER_FILE_A].f32, *B = m->factor[ADAPTER_FILE_B].f32;
        for (uint32_t row = 0; row < m->d_out; row++)
            for (uint32_t c = 0; c < m->d_in; c++) {
                double sum = -expected(&f, (enum module_kind)k, row, c);
                for (uint32_t i = 0; i < m->rank; i++)
                    sum += (double)B[row * m->rank + i] * (double)A[i * m->d_in + c];
                cr_assert(sum < 1e-5 && sum > -1e-5, "%s %u,%u: %g", name, row, c, sum);
            }
    }
    adapter_file_close(&again);
    close_fixture(&f);
}

Test(export, a_change_for_another_base_is_refused_by_module_or_digest)
{
    struct fixture f;
    char out[SUPPORT_PATH_BYTES], other[SUPPORT_PATH_BYTES], hex[DIGEST_TEXT_BYTES];
    struct digest d;
    struct model qwen = {0};
    open_fixture(&f, "llama", 0.5);
    out_path(out, &f, "x");
    support_source(other, sizeof other, "tests/models/qwen3");
    ok(model_open(&qwen, other));
    refused(export_check_base(&f.delta, &qwen, NULL), ERR_INPUT,
            "self_attn.k_proj: shape (16, 32), expected (32, 32) as in the base");
    refused(export_gguf(out, &f.delta, &qwen, false), ERR_INPUT, "shape");
    refused(export_merged(out, &f.delta, &qwen, &(struct export_merged_options){.type = DTYPE_F32}),
            ERR_INPUT, "shape");
    ok(model_digest(&d, &f.base));
    digest_text(hex, &d);
    ok(export_check_base(&f.delta, &f.base, hex));
    hex[0] = hex[0] == '0' ? '1' : '0';
    refused(export_check_base(&f.delta, &f.base, hex), ERR_INPUT,
            "the base that this was trained on");
    cr_assert_not(file_exists(out));
    model_close(&qwen);
    close_fixture(&f);
}

static int writes_left;
static ssize_t failing_write(int fd, const void *data, size_t size)
{
    if (writes_left-- > 0) return write(fd, data, size);
    errno = ENOSPC;
    return -1;
}

Test(export, a_full_disk_leaves_what_was_there)
{
    struct fixture f;
    char out[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], part[SUPPORT_PATH_BYTES + 32];
    struct file_disk whole = file_disk;
    const struct export_merged_options options = {.type = DTYPE_F32, .replace = true};
    open_fixture(&f, "llama", 0.5);
    out_path(out, &f, "merged");
    ok(export_merged(out, &f.delta, &f.base, &options));
    (void)snprintf(part, sizeof part, "%s.part-%d", out, (int)getpid());
    ok(file_join(path, sizeof path, out, "config.json"));
    bool done = false;
    for (int n = 0; !done && n < 1000; n++) {
        writes_left = n;
        file_disk.write = failing_write;
        err e = export_merged(out, &f.delta, &f.base, &options);
        file_disk = whole;
        done = !err_is(e);
        cr_assert(done || (e.kind == ERR_MACHINE && e.sys == ENOSPC), "%s", e.text);
        cr_assert_not(file_exists(part), "after %d writes", n);
        struct model m = {0};
        ok(model_open(&m, out));
        model_close(&m);
    }
    cr_assert(done);
    close_fixture(&f);
}
