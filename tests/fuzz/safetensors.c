/* An untrusted safetensors file: every byte of its tensors is read. An accepted file is written
 * again in canonical form, and the canonical bytes are accepted and written unchanged. */
#include "base/safetensors.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {
    "tests/models/qwen2/model.safetensors",
    "../shared/data/safetensors-conformance/test_deserialization.safetensors",
    "../shared/golden/small-matrix/state.safetensors", NULL};
const int fuzz_runs = 4000;

static void write_again(struct bytes *out, const struct safetensors *st)
{
    err e = safetensors_write(out, st->tensor, st->count, st->metadata, st->metadata_count);
    if (err_is(e) && e.kind != ERR_LIMIT && e.kind != ERR_INPUT) abort();
    if (err_is(e)) bytes_clear(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors st = {0}, again = {0};
    struct bytes first = {.max = 8 << 20}, second = {.max = 8 << 20};
    if (err_is(safetensors_parse(&st, data, size))) return 0;
    volatile size_t sum = 0;
    for (size_t i = 0; i < st.count; i++)
        for (size_t k = 0; k < st.tensor[i].size; k++)
            sum += ((const uint8_t *)st.tensor[i].data)[k];
    write_again(&first, &st);
    if (first.size > 0) {
        if (err_is(safetensors_parse(&again, first.data, first.size))) abort();
        if (again.count != st.count || again.metadata_count != st.metadata_count) abort();
        write_again(&second, &again);
        if (first.size != second.size || memcmp(first.data, second.data, first.size) != 0) abort();
    }
    safetensors_close(&again);
    safetensors_close(&st);
    bytes_close(&first);
    bytes_close(&second);
    return 0;
}
