/* An untrusted data file is refused, or becomes rows whose ids lie in the vocabulary. The size of
 * the input chooses the options, and the base has a chat template. */
#include "engine/tokens/data.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {"tests/fuzz/rows.jsonl", "tests/fuzz/rows.json", NULL};
const int fuzz_runs = 3000;

static const char *const files[] = {"tokenizer.json", "tokenizer_config.json",
                                    "chat_template.jinja", "rows.jsonl"};
static const char template[] = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + "
                               "m['content'] + '<|im_end|>' + '\\n'}}{% endfor %}";
static struct tokenizer *tokenizer;
static char dir[200], path[4][256];

static void clean(void)
{
    tokenizer_close(tokenizer);
    for (int i = 0; i < 4; i++)
        unlink(path[i]);
    rmdir(dir);
}

static void write_file(const char *to, const void *data, size_t size)
{
    FILE *f = fopen(to, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

static void prepare(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fedlora-fuzz-XXXXXX", base != NULL ? base : "/tmp");
    if (!mkdtemp(dir)) abort();
    for (int i = 0; i < 4; i++)
        snprintf(path[i], sizeof path[i], "%s/%s", dir, files[i]);
    for (int i = 0; i < 2; i++) {
        char from[256];
        snprintf(from, sizeof from, FEDLORA_SOURCE_DIR "/tests/golden/tokenizer/smollm2/%s",
                 files[i]);
        if (symlink(from, path[i]) != 0) abort();
    }
    write_file(path[2], template, sizeof template - 1);
    if (err_is(tokenizer_open(&tokenizer, dir))) abort();
    atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dataset rows = {0};
    if (!tokenizer) prepare();
    unlink(path[3]); /* some file systems flush a file that replaces its own content */
    write_file(path[3], data, size);
    struct data_options options = {
        .tokenizer = tokenizer, .seq = 16, .split = size & 1, .bos = size & 2, .no_eos = size & 4};
    if (err_is(data_open(&rows, path[3], &options))) return 0;
    uint64_t learned = 0;
    for (size_t i = 0; i < rows.count; i++) {
        const struct data_row *row = &rows.row[i];
        if (row->count == 0 || row->count > 16 || row->prompt > row->count) abort();
        learned += row->learned;
        for (uint32_t k = 0; k < row->count; k++)
            if (row->id[k] < 0 || (size_t)row->id[k] >= tokenizer_vocab(tokenizer)) abort();
    }
    if (learned != rows.learned || data_teaching(&rows) > rows.count) abort();
    data_close(&rows);
    return 0;
}
