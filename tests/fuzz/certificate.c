/* Untrusted certificate requests, from anybody with a token, and certificates that another program
 * has printed: they are read or refused. */
#include "proto/certificate.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/request.bin", "tests/fuzz/seeds/request.pem",
                                  "tests/fuzz/seeds/chain.pem", NULL};
const int fuzz_runs = 2000;

/* A request that is good has the same key in both forms. */
static void read_request(const uint8_t *data, size_t size)
{
    struct bytes pem = {.max = 4 * CERTIFICATE_REQUEST_BYTES};
    struct digest key, again;
    if (err_is(certificate_request_key(&key, data, size))) return;
    if (!err_is(certificate_request_pem(&pem, data, size)) &&
        pem.size <= CERTIFICATE_REQUEST_BYTES &&
        (err_is(certificate_request_key(&again, pem.data, pem.size)) ||
         !digest_equal(&key, &again)))
        abort();
    bytes_close(&pem);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct certificate_issued issued;
    struct enroll_hash hash;
    char *text = malloc(size + 1);
    if (text == NULL) abort();
    read_request(data, size);
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    (void)certificate_read(&issued, text).kind;
    (void)certificate_hash(&hash, text).kind;
    const struct certificate_order order = {.request = data,
                                            .request_size = size,
                                            .federation = "clinics",
                                            .id = "north",
                                            .role = RPC_CLIENT};
    (void)certificate_check(&issued, text, text, &order).kind;
    free(text);
    return 0;
}
