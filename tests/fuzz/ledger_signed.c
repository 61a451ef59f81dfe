/* A ledger with false statements and valid signatures: mutated lines are numbered, chained,
 * hashed and signed correctly, so that the replay has to judge their content. It replays, or is
 * refused with the number of the line. */
#include "base/json.h"
#include "privacy/ledger/ledger_parts.h"
#include "privacy/ledger/statement.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/ledger.jsonl", NULL};
const int fuzz_runs = 60;

enum { TEXT_MAX = 1 << 20 };

struct writer {
    uint8_t secret[crypto_sign_SECRETKEYBYTES], public[crypto_sign_PUBLICKEYBYTES];
    struct ledger_head head;
    struct bytes text;
};

static void set_hex(json_t *line, const char *key, const uint8_t *byte, size_t size)
{
    char hex[2 * crypto_sign_BYTES + 1];
    json_object_set_new(line, key, json_string(sodium_bin2hex(hex, sizeof hex, byte, size)));
}

static void sign_line(struct writer *w, json_t *line)
{
    struct bytes text = {.max = LEDGER_LINE_BYTES};
    uint8_t message[LEDGER_SIGNED_BYTES], signature[crypto_sign_BYTES];
    json_object_del(line, "hash");
    json_object_del(line, "signature");
    json_object_set_new(line, "line", json_integer((json_int_t)w->head.count + 1));
    set_hex(line, "previous", w->head.hash.byte, DIGEST_BYTES);
    if (w->head.count == 0) set_hex(line, "key", w->public, sizeof w->public);
    if (err_is(json_write(&text, line))) goto out;
    w->head.hash = ledger_hash(text.data, text.size);
    w->head.count++;
    ledger_signed(message, &w->head.hash);
    crypto_sign_detached(signature, NULL, message, sizeof message, w->secret);
    set_hex(line, "hash", w->head.hash.byte, DIGEST_BYTES);
    set_hex(line, "signature", signature, sizeof signature);
    bytes_clear(&text);
    if (!err_is(json_write(&text, line)) && !err_is(bytes_append(&text, "\n", 1)))
        if (err_is(bytes_append(&w->text, text.data, text.size))) abort();
out:
    bytes_close(&text);
}

/* Mutated lines that are not JSON are left out. */
static void sign_all(struct writer *w, const char *text, size_t size)
{
    const char *end = text + size, *stop;
    for (; (stop = memchr(text, '\n', (size_t)(end - text))); text = stop + 1) {
        json_t *line = NULL;
        if (err_is(json_parse(&line, text, (size_t)(stop - text), "line"))) continue;
        if (json_is_object(line)) sign_line(w, line);
        json_decref(line);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t seed[crypto_sign_SEEDBYTES] = {7};
    struct writer w = {.text = {.max = TEXT_MAX}};
    struct ledger ledger = {0};
    struct statement statement;
    if (size > TEXT_MAX / 2 || sodium_init() < 0) return 0;
    crypto_sign_seed_keypair(w.public, w.secret, seed);
    sign_all(&w, (const char *)data, size);
    err e = ledger_read(&ledger, (const char *)w.text.data, w.text.size, "fuzz");
    if (!err_is(e)) e = statement_replay(&statement, &ledger, "fuzz");
    if (err_is(e) && (e.kind != ERR_INPUT || strncmp(e.text, "fuzz:", 5) != 0)) abort();
    ledger_close(&ledger);
    bytes_close(&w.text);
    return 0;
}
