/* An untrusted certificate is refused, or it has one identity of this federation's form, whose
 * names are plain. The input is read as DER and as PEM. */
#include "base/text.h"
#include "proto/rpc_internal.h"
#include "proto/rpc_openssl.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/identity.txt", "tests/fuzz/seeds/member.der",
                                  "tests/fuzz/seeds/names.der", NULL};
const int fuzz_runs = 1500;

static void check(const struct rpc_peer *peer)
{
    char uri[3 * LIMIT_NAME_BYTES];
    struct rpc_peer again;
    if (!text_is_name(peer->federation, LIMIT_NAME_BYTES - 1)) abort();
    if (!text_is_name(peer->id, LIMIT_NAME_BYTES - 1)) abort();
    snprintf(uri, sizeof uri, "fl://%s/%s/%s", peer->federation,
             peer->role == RPC_ADMIN ? "admin" : "client", peer->id);
    if (err_is(rpc_peer_parse(&again, uri)) || again.role != peer->role) abort();
    if (strcmp(again.id, peer->id) || strcmp(again.federation, peer->federation)) abort();
}

static void read_pem(const char *pem, size_t size)
{
    struct rpc_peer peer;
    if (!err_is(rpc_tls_identity(&peer, pem, size))) check(&peer);
}

/* As OpenSSL would write the certificate that it has read from the handshake. */
static void read_der(const uint8_t *data, size_t size)
{
    const unsigned char *at = data;
    X509 *cert = d2i_X509(NULL, &at, (long)size);
    BIO *bio = BIO_new(BIO_s_mem());
    char *pem = NULL;
    if (!bio) abort();
    if (cert && PEM_write_bio_X509(bio, cert) == 1) {
        long length = BIO_get_mem_data(bio, &pem);
        read_pem(pem, (size_t)length);
    }
    ERR_clear_error();
    BIO_free(bio);
    X509_free(cert);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rpc_peer peer;
    char *text = malloc(size + 1);
    if (!text) abort();
    if (size) memcpy(text, data, size);
    text[size] = 0;
    if (!err_is(rpc_peer_parse(&peer, text))) check(&peer);
    read_pem(text, size);
    read_der(data, size);
    free(text);
    return 0;
}
