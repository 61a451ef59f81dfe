/* Conversions between gRPC's types and this project's: buffers, statuses, times, addresses. */
#include "proto/rpc_internal.h"

#include "base/text.h"

#include <grpc/slice.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

grpc_byte_buffer *rpc_wire_buffer(const void *data, size_t size)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(data, size);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

bool rpc_wire_read(struct bytes *out, grpc_byte_buffer *buffer)
{
    /* Decompression is switched off, so a compressed message cannot be read. */
    if (buffer->data.raw.compression != GRPC_COMPRESS_NONE) return false;
    const grpc_slice_buffer *slices = &buffer->data.raw.slice_buffer;
    for (size_t i = 0; i < slices->count; i++) {
        const grpc_slice slice = slices->slices[i];
        if (err_is(bytes_append(out, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice))))
            return false;
    }
    return true;
}

grpc_status_code rpc_wire_status(enum err_kind kind)
{
    switch (kind) {
    case ERR_OK:
        return GRPC_STATUS_OK;
    case ERR_INPUT:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case ERR_STATE:
        return GRPC_STATUS_FAILED_PRECONDITION;
    case ERR_LIMIT:
        return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case ERR_REFUSED:
        return GRPC_STATUS_PERMISSION_DENIED;
    case ERR_MACHINE:
    case ERR_STOPPED:
        break;
    }
    return GRPC_STATUS_UNAVAILABLE;
}

const char *rpc_refusal_name(enum rpc_refusal refusal)
{
    static const char *const name[RPC_REFUSALS] = {
        [RPC_REFUSAL_OTHER] = "other",           [RPC_REFUSAL_EXPIRED] = "expired",
        [RPC_REFUSAL_AUTHORITY] = "authority",   [RPC_REFUSAL_CERTIFICATE] = "certificate",
        [RPC_REFUSAL_ABSENT] = "no_certificate", [RPC_REFUSAL_PROTOCOL] = "protocol",
        [RPC_REFUSAL_BROKEN] = "broken_off",     [RPC_REFUSAL_LIMIT] = "limit",
    };
    return name[refusal];
}

const char *rpc_wire_code(grpc_status_code code)
{
    static const char *const name[] = {
        [GRPC_STATUS_OK] = "OK",
        [GRPC_STATUS_CANCELLED] = "CANCELLED",
        [GRPC_STATUS_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
        [GRPC_STATUS_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
        [GRPC_STATUS_NOT_FOUND] = "NOT_FOUND",
        [GRPC_STATUS_PERMISSION_DENIED] = "PERMISSION_DENIED",
        [GRPC_STATUS_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
        [GRPC_STATUS_FAILED_PRECONDITION] = "FAILED_PRECONDITION",
        [GRPC_STATUS_UNIMPLEMENTED] = "UNIMPLEMENTED",
        [GRPC_STATUS_UNAVAILABLE] = "UNAVAILABLE",
        [GRPC_STATUS_UNAUTHENTICATED] = "UNAUTHENTICATED",
    };
    size_t i = (size_t)code;
    return i < sizeof name / sizeof *name && name[i] ? name[i] : "UNKNOWN";
}

err rpc_wire_err(grpc_status_code code, const char *text)
{
    switch (code) {
    case GRPC_STATUS_OK:
        return ERR_NONE;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_NOT_FOUND:
    case GRPC_STATUS_ALREADY_EXISTS:
    case GRPC_STATUS_OUT_OF_RANGE:
    case GRPC_STATUS_PERMISSION_DENIED:
    case GRPC_STATUS_UNAUTHENTICATED:
    case GRPC_STATUS_UNIMPLEMENTED:
        return err_make(ERR_REFUSED, "%s", text);
    case GRPC_STATUS_FAILED_PRECONDITION:
    case GRPC_STATUS_ABORTED:
        return err_make(ERR_STATE, "%s", text);
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return err_make(ERR_LIMIT, "%s", text);
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return err_make(ERR_MACHINE, "no answer within the call's deadline");
    default:
        break;
    }
    return err_make(ERR_MACHINE, "%s", text[0] != 0 ? text : "the connection broke off");
}

gpr_timespec rpc_wire_after(uint64_t ms)
{
    if (ms > INT64_MAX / 2) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_millis((int64_t)ms, GPR_TIMESPAN));
}

static void say_nothing(gpr_log_func_args *args)
{
    (void)args;
}

void rpc_wire_start(void)
{
    /* Libraries never log. To debug gRPC itself, set its own variable. */
    if (getenv("GRPC_VERBOSITY") == NULL) gpr_set_log_function(say_nothing);
    grpc_init();
}

err rpc_wire_split(char *host, size_t host_bytes, char port[6], const char *address,
                   const char *what)
{
    const char *colon = strrchr(address, ':');
    int64_t number = 0;
    if (colon == NULL || colon == address || strlen(colon + 1) > 5 ||
        err_is(text_parse_int(&number, colon + 1, 0, 65535)))
        return err_make(ERR_INPUT, "%s: %s: expected HOST:PORT", what, address);
    const char *first = address;
    size_t size = (size_t)(colon - address);
    bool bracketed = first[0] == '[' && size > 2 && first[size - 1] == ']';
    if (bracketed) {
        first++;
        size -= 2;
    }
    if (size >= host_bytes || (!bracketed && memchr(first, ':', size) != NULL))
        return err_make(ERR_INPUT, "%s: %s: expected HOST:PORT (an IPv6 address in brackets)", what,
                        address);
    memcpy(host, first, size);
    host[size] = 0;
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return ERR_NONE;
}
