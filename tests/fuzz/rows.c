/* An untrusted data file is refused, or becomes rows whose ids lie in the vocabulary. */
#include "engine/tokens/data.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {"tests/fuzz/rows.jsonl", NULL};
const int fuzz_runs = 3000;

static struct tokenizer *tokenizer;
static char path[256];

static void clean(void)
{
    tokenizer_close(tokenizer);
    unlink(path);
}

static void prepare(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/fedlora-fuzz-XXXXXX", base != NULL ? base : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0) abort();
    if (err_is(tokenizer_open(&tokenizer, FEDLORA_SOURCE_DIR "/tests/golden/tokenizer/smollm2")))
        abort();
    atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dataset rows = {0};
    if (!tokenizer) prepare();
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    struct data_options options = {.tokenizer = tokenizer, .seq = 16};
    if (err_is(data_open(&rows, path, &options))) return 0;
    for (size_t i = 0; i < rows.count; i++) {
        const struct data_row *row = &rows.row[i];
        if (row->count == 0 || row->count > 16 || row->prompt > row->count) abort();
        for (uint32_t k = 0; k < row->count; k++)
            if (row->id[k] < 0 || (size_t)row->id[k] >= tokenizer_vocab(tokenizer)) abort();
    }
    data_close(&rows);
    return 0;
}
