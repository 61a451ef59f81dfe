/* Untrusted messages and identities: the bytes are read as each message type, or refused. A
 * message that was read packs, and the packed bytes read back to the same message. */
#include "proto/message.h"
#include "client/command/remote_json.h"
#include "fedlora.pb-c.h"
#include "proto/rpc.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/hello.bin",    "tests/fuzz/seeds/run.bin",
                                  "tests/fuzz/seeds/submit.bin",   "tests/fuzz/seeds/unknown.bin",
                                  "tests/fuzz/seeds/identity.txt", NULL};
const int fuzz_runs = 2000;

static void must(err e)
{
    if (err_is(e)) abort();
}

static void read_message(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t size)
{
    ProtobufCMessage *message = NULL, *again = NULL;
    struct bytes first = {.max = 64u << 20}, second = {.max = 64u << 20};
    json_t *json = NULL;
    if (err_is(message_unpack(&message, type, data, size))) return;
    must(message_pack(&first, message));
    must(message_unpack(&again, type, first.data, first.size));
    must(message_pack(&second, again));
    if (first.size != second.size ||
        (first.size > 0 && memcmp(first.data, second.data, first.size)))
        abort();
    must(remote_json(&json, message));
    json_decref(json);
    bytes_close(&first);
    bytes_close(&second);
    message_free(message);
    message_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &fedlora__v1__hello_request__descriptor,     &fedlora__v1__submit_part__descriptor,
        &fedlora__v1__run_status__descriptor,        &fedlora__v1__task__descriptor,
        &fedlora__v1__report_request__descriptor,    &fedlora__v1__enroll_request__descriptor,
        &fedlora__v1__certificate_reply__descriptor, &fedlora__v1__identity_list__descriptor,
        &fedlora__v1__token_list__descriptor,        &fedlora__v1__audit_log_request__descriptor,
        &fedlora__v1__manifest_request__descriptor};
    struct rpc_peer peer;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        read_message(types[i], data, size);
    char *text = malloc(size + 1);
    if (text == NULL) abort();
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    (void)rpc_peer_parse(&peer, text).kind;
    free(text);
    return 0;
}
