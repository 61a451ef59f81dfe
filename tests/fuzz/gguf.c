/* An untrusted GGUF file: every key is read as every type and every byte of the tensors is read;
 * then the file is opened as a base model and every weight is read. */
#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {
    "tests/models/llama/q8_0.gguf",
    "tests/models/llama/f32.gguf",
    "tests/models/llama-bias/f16.gguf",
    "tests/models/qwen3/f16.gguf",
    "../shared/data/gguf-handcrafted/TENSORS_CUSTOM_ALIGN_seed42.gguf",
    NULL};
const int fuzz_runs = 3000;

static void look_up(const struct gguf *g, const char *key)
{
    struct arena arena = {.bytes_max = 64 << 20};
    uint32_t u = 0;
    float f = 0;
    bool b = false;
    struct gguf_str s;
    const struct gguf_str *strings;
    const int32_t *integers;
    const float *reals;
    size_t n;
    volatile size_t sum = 0;
    if (!err_is(gguf_get_u32(&u, g, key))) sum += u;
    if (!err_is(gguf_get_f32(&f, g, key))) sum += f > 0;
    if (!err_is(gguf_opt_bool(&b, g, key))) sum += b;
    if (!err_is(gguf_get_str(&s, g, key)))
        for (size_t i = 0; i < s.size; i++)
            sum += (unsigned char)s.data[i];
    if (!err_is(gguf_get_strings(&strings, &n, g, key, &arena)))
        for (size_t i = 0; i < n; i++)
            sum += strings[i].size > 0 ? (size_t)strings[i].data[0] : 0;
    if (!err_is(gguf_get_i32s(&integers, &n, g, key, &arena)) && n > 0)
        sum += (size_t)integers[n - 1];
    if (!err_is(gguf_get_f32s(&reals, &n, g, key, &arena)) && n > 0) sum += reals[n - 1] > 0;
    arena_close(&arena);
}

static void read_weight(const struct weight *w)
{
    if (w->data == NULL) return;
    float *rows = malloc(sizeof *rows * w->rows * w->cols);
    if (rows == NULL) abort();
    weight_rows_f32(rows, w, 0, w->rows);
    free(rows);
}

static void open_model(const uint8_t *data, size_t size)
{
    struct model m = {0};
    char path[64];
    int fd = memfd_create("fuzz", 0);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (!err_is(model_open(&m, path))) {
        read_weight(&m.embed);
        read_weight(&m.head);
        for (uint32_t i = 0; i < m.arch.layers; i++)
            for (int k = 0; k < MODULE_KINDS; k++) {
                read_weight(&m.layer[i].linear[k]);
                read_weight(&m.layer[i].bias[k]);
            }
        model_close(&m);
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int extent = GGUF_HEADER_ONLY; extent <= GGUF_WITH_DATA; extent++) {
        struct gguf g = {0};
        if (err_is(gguf_parse(&g, data, size, (enum gguf_extent)extent))) continue;
        for (size_t i = 0; i < g.kv_count; i++)
            look_up(&g, g.kv[i].key);
        volatile size_t sum = 0;
        for (size_t i = 0; i < g.tensor_count; i++)
            if (g.tensor[i].data != NULL)
                sum += g.tensor[i].data[0] + g.tensor[i].data[g.tensor[i].size - 1];
        gguf_close(&g);
    }
    open_model(data, size);
    return 0;
}
