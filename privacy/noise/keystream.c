#include "privacy/noise/keystream.h"

#include <pthread.h>
#include <sodium.h>
#include <string.h>

enum { REFILLS_A_KEY = 1 << 20 };

volatile unsigned keystream_forks;

static void forked(void)
{
    keystream_forks++;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool ready;

static void prepare(void)
{
    ready = sodium_init() >= 0 && pthread_atfork(NULL, NULL, forked) == 0;
}

static void rekey(struct keystream *k)
{
    randombytes_buf(k->key, sizeof k->key);
    k->refills = 0;
    k->forks = keystream_forks;
}

err keystream_open(struct keystream **out)
{
    pthread_once(&once, prepare);
    if (!ready) return err_make(ERR_MACHINE, "libsodium cannot start: no secure randomness");
    struct keystream *k = sodium_malloc(sizeof *k);
    if (!k) return err_make(ERR_MACHINE, "no memory for a random generator");
    rekey(k);
    k->used = KEYSTREAM_WORDS;
    *out = k;
    return ERR_NONE;
}

void keystream_close(struct keystream *k)
{
    sodium_free(k);
}

void keystream_refill(struct keystream *k)
{
    static const uint8_t nonce[crypto_stream_chacha20_ietf_NONCEBYTES];
    struct {
        uint8_t key[sizeof k->key];
        uint32_t word[KEYSTREAM_WORDS];
    } made;
    if (k->refills == REFILLS_A_KEY || k->forks != keystream_forks) rekey(k);
    REQUIRE(crypto_stream_chacha20_ietf((uint8_t *)&made, sizeof made, nonce, k->key) == 0);
    memcpy(k->key, made.key, sizeof k->key);
    memcpy(k->word, made.word, sizeof k->word);
    sodium_memzero(&made, sizeof made);
    k->refills++;
    k->used = 0;
}
