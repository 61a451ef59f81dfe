/* The channel of a client: its TLS credentials, its way to the server, and its settings of gRPC. */
#include "proto/rpc_internal.h"
#include "proto/rpc_proxy.h"

#include <stdio.h>

enum { CHANNEL_RECONNECT_MS = 200 }; /* the callers of rpc_client.c back off */

static grpc_arg arg_int(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static grpc_arg arg_text(const char *key, const char *value)
{
    return (grpc_arg){.type = GRPC_ARG_STRING,
                      .key = (char *)(uintptr_t)key,
                      .value.string = (char *)(uintptr_t)value};
}

/* Through a proxy the channel leads to the proxy, where gRPC's handshaker asks for a tunnel to the
 * server (these are the arguments that gRPC's own proxy mapper would set). The authority is the
 * server's, so the certificate is checked against its name. */
grpc_channel *rpc_channel_open(const char *server, const struct rpc_tls_pem *pem,
                               const struct rpc_proxy *proxy)
{
    char header[sizeof proxy->credentials + 32];
    const grpc_arg args[] = {
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, RPC_MESSAGE_BYTES),
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, RPC_MESSAGE_BYTES),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, 8192),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, 120 * 1000),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20 * 1000),
        arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
        arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, CHANNEL_RECONNECT_MS),
        arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000),
        /* No retries, which would buffer each message twice: transfers resume by offset. */
        arg_int(GRPC_ARG_ENABLE_RETRIES, 0),
        arg_int(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        arg_int(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
        arg_int(GRPC_ARG_ENABLE_HTTP_PROXY, 0), /* rpc_proxy.h decides */
        /* From here on only with a proxy, the last one only with credentials. */
        arg_text(GRPC_ARG_DEFAULT_AUTHORITY, server),
        arg_text("grpc.http_connect_server", server),
        arg_text("grpc.http_connect_headers", header),
    };
    size_t count = sizeof args / sizeof args[0] - 1;
    if (!proxy->variable)
        count -= 2;
    else if (*proxy->credentials)
        count++;
    snprintf(header, sizeof header, "Proxy-Authorization:Basic %s", proxy->credentials);
    const grpc_channel_args list = {.num_args = count, .args = (grpc_arg *)(uintptr_t)args};
    grpc_ssl_pem_key_cert_pair pair = {.private_key = pem->key, .cert_chain = pem->cert};
    grpc_channel_credentials *credentials =
        grpc_ssl_credentials_create(pem->ca, pem->cert ? &pair : NULL, NULL, NULL);
    const char *target = proxy->variable ? proxy->name : server;
    grpc_channel *channel = grpc_channel_create(target, credentials, &list);
    grpc_channel_credentials_release(credentials);
    return channel;
}
