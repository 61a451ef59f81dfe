/* Ed25519 keys in PEM (RFC 8410): a fixed prefix for each kind of key, then 32 bytes. */
#include "privacy/ledger/ledger.h"

#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PEM_BYTES_MAX = 4096, PREFIX_MAX = 16 };

static const uint8_t secret_prefix[16] = {0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06,
                                          0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20};
static const uint8_t public_prefix[12] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03,
                                          0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};

static bool decode(uint8_t out[32], const char *pem, const char *label, const uint8_t *prefix,
                   size_t prefix_size)
{
    char begin[64], end[64];
    uint8_t der[PREFIX_MAX + 32 + 8];
    size_t size = 0;
    snprintf(begin, sizeof begin, "-----BEGIN %s-----", label);
    snprintf(end, sizeof end, "-----END %s-----", label);
    const char *from = strstr(pem, begin), *to = from ? strstr(from, end) : NULL;
    if (!to) return false;
    from += strlen(begin);
    bool fits = sodium_base642bin(der, sizeof der, from, (size_t)(to - from), " \r\n", &size, NULL,
                                  sodium_base64_VARIANT_ORIGINAL) == 0 &&
                size == prefix_size + 32 && memcmp(der, prefix, prefix_size) == 0;
    if (fits) memcpy(out, der + prefix_size, 32);
    sodium_memzero(der, sizeof der);
    return fits;
}

err ledger_key_open(struct ledger_key *out, const char *path)
{
    char *text = NULL;
    size_t size = 0;
    uint8_t seed[32];
    struct stat st;
    REQUIRE(sodium_init() >= 0);
    TRY(file_read_all(&text, &size, path, PEM_BYTES_MAX));
    bool good = decode(seed, text, "PRIVATE KEY", secret_prefix, sizeof secret_prefix);
    sodium_memzero(text, size);
    free(text);
    if (!good)
        return err_make(ERR_INPUT,
                        "%s: expected an Ed25519 private key in PEM (openssl genpkey "
                        "-algorithm ed25519)",
                        path);
    if (stat(path, &st) != 0 || (st.st_mode & 077)) {
        sodium_memzero(seed, sizeof seed);
        return err_make(ERR_INPUT, "%s: others may read this key: expected mode 0600", path);
    }
    crypto_sign_seed_keypair(out->public, out->secret, seed);
    sodium_memzero(seed, sizeof seed);
    return ERR_NONE;
}

err ledger_public_open(uint8_t out[32], const char *path)
{
    char *text = NULL;
    size_t size = 0;
    TRY(file_read_all(&text, &size, path, PEM_BYTES_MAX));
    bool good = decode(out, text, "PUBLIC KEY", public_prefix, sizeof public_prefix);
    free(text);
    return good ? ERR_NONE
                : err_make(ERR_INPUT,
                           "%s: expected an Ed25519 public key in PEM (openssl pkey "
                           "-pubout)",
                           path);
}

void ledger_key_close(struct ledger_key *key)
{
    sodium_memzero(key, sizeof *key);
}

/* Complete or absent after a crash, and never readable by others. umask() belongs to the process,
 * so no other thread may write files meanwhile. */
static err write_private(const char *path, const char *text, size_t size)
{
    mode_t was = umask(077);
    err e = file_write(path, text, size, /*replace*/ false);
    umask(was);
    return e;
}

static size_t encode(char out[256], const char *label, const uint8_t *prefix, size_t prefix_size,
                     const uint8_t key[32])
{
    uint8_t der[PREFIX_MAX + 32];
    char base64[2 * sizeof der];
    memcpy(der, prefix, prefix_size);
    memcpy(der + prefix_size, key, 32);
    sodium_bin2base64(base64, sizeof base64, der, prefix_size + 32, sodium_base64_VARIANT_ORIGINAL);
    int n = snprintf(out, 256, "-----BEGIN %s-----\n%s\n-----END %s-----\n", label, base64, label);
    sodium_memzero(der, sizeof der);
    sodium_memzero(base64, sizeof base64);
    return (size_t)n;
}

err ledger_public_write(const uint8_t public[32], const char *path)
{
    char text[256];
    size_t size = encode(text, "PUBLIC KEY", public_prefix, sizeof public_prefix, public);
    return file_write(path, text, size, /*replace*/ true);
}

/* The public half comes first: a secret key without it would be kept by the next call. */
err ledger_key_make(const char *path, const char *public_path)
{
    uint8_t seed[32], public[32], secret[64];
    char text[256];
    REQUIRE(sodium_init() >= 0);
    if (file_exists(path)) return err_make(ERR_INPUT, "%s: exists already", path);
    randombytes_buf(seed, sizeof seed);
    crypto_sign_seed_keypair(public, secret, seed);
    err e = ledger_public_write(public, public_path);
    size_t size = encode(text, "PRIVATE KEY", secret_prefix, sizeof secret_prefix, seed);
    if (!err_is(e)) e = write_private(path, text, size);
    sodium_memzero(text, sizeof text);
    sodium_memzero(seed, sizeof seed);
    sodium_memzero(secret, sizeof secret);
    return e;
}
