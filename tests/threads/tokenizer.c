/* One tokenizer, used by several threads at once: all get the ids that one thread gets.
 * Byte-level BPE and BPE with SentencePiece scores are tried. */
#include "engine/tokens/tokenizer.h"

#include "tests/threads/threads.h"

#include <pthread.h>
#include <string.h>

enum { THREADS = 4, TIMES = 100 };

static const char *const texts[] = {"once upon a time", "  two  spaces, then: 12345!",
                                    "\xc3\xa9t\xc3\xa9 \xe2\x9c\x93 line\nbreak",
                                    "aaaaaaaaaaaaaaa"};
enum { TEXTS = sizeof texts / sizeof texts[0] };

static struct tokenizer *shared;
static struct tokens expected[TEXTS];

static void *encode(void *unused)
{
    struct tokens got = {0};
    (void)unused;
    for (int i = 0; i < TIMES; i++) {
        size_t k = (size_t)i % TEXTS;
        tokens_clear(&got);
        CHECK_OK(tokenizer_encode(&got, shared, texts[k], strlen(texts[k]), true));
        CHECK(got.count == expected[k].count &&
              memcmp(got.id, expected[k].id, got.count * sizeof *got.id) == 0);
    }
    tokens_close(&got);
    return NULL;
}

static void encode_at_once(const char *base)
{
    pthread_t thread[THREADS];
    CHECK_OK(tokenizer_open(&shared, base));
    for (size_t k = 0; k < TEXTS; k++)
        CHECK_OK(tokenizer_encode(&expected[k], shared, texts[k], strlen(texts[k]), true));
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&thread[i], NULL, encode, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (size_t k = 0; k < TEXTS; k++)
        tokens_close(&expected[k]);
    memset(expected, 0, sizeof expected);
    tokenizer_close(shared);
    printf("%s: %d threads\n", base, THREADS);
}

int main(void)
{
    encode_at_once(FEDLORA_SOURCE_DIR "/tests/golden/tokenizer/qwen2");
    encode_at_once(FEDLORA_SOURCE_DIR "/tests/golden/tokenizer/llama2.gguf");
    return 0;
}
