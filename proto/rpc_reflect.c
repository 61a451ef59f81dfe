/* grpc.reflection.v1alpha, so that standard tools can list the services and call them. The
 * answers come from protoc's own description of proto/ (a FileDescriptorSet), which is part of
 * this program. Only the name, the package and the declared names of a file are parsed here. */
#include "proto/rpc_internal.h"

#include "proto/message.h"
#include "reflection.pb-c.h"

#include <stdio.h>
#include <string.h>

__asm__(".section .rodata\n"
        ".balign 16\n"
        "rpc_reflect_begin: .incbin \"" RPC_REFLECT_DESCRIPTORS "\"\n"
        "rpc_reflect_end: .byte 0\n"
        ".previous\n");
extern const uint8_t rpc_reflect_begin[], rpc_reflect_end[];

typedef Grpc__Reflection__V1alpha__ServerReflectionRequest request_message;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse response_message;

#define REFLECTION(rest) GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_##rest
#define ASKS(what) REFLECTION(REQUEST__MESSAGE_REQUEST_##what)
#define ANSWERS(what) REFLECTION(RESPONSE__MESSAGE_RESPONSE_##what)

enum { REFLECT_SERVICES_MAX = 8, REFLECT_NAME_BYTES = 128 };

struct span {
    const uint8_t *at;
    size_t size;
};

static uint64_t take_varint(struct span *in)
{
    uint64_t value = 0;
    unsigned shift = 0;
    for (bool more = true; more; shift += 7) {
        REQUIRE(in->size > 0 && shift < 64);
        more = *in->at & 0x80;
        value |= (uint64_t)(*in->at & 0x7f) << shift;
        in->at++;
        in->size--;
    }
    return value;
}

/* Reads the next field of a message that protoc wrote: its number and, if it has any, its bytes. */
static bool take_field(uint32_t *number, struct span *bytes, struct span *in)
{
    if (in->size == 0) return false;
    uint64_t key = take_varint(in);
    *number = (uint32_t)(key >> 3);
    *bytes = (struct span){0};
    uint64_t n = take_varint(in); /* a number's value, or the length */
    if ((key & 7) != 2) {
        REQUIRE((key & 7) == 0); /* descriptors have no other kinds */
        return true;
    }
    REQUIRE(n <= in->size);
    *bytes = (struct span){in->at, (size_t)n};
    in->at += n;
    in->size -= (size_t)n;
    return true;
}

static struct span find_field(struct span in, uint32_t wanted)
{
    uint32_t number;
    for (struct span bytes; take_field(&number, &bytes, &in);)
        if (number == wanted) return bytes;
    return (struct span){0};
}

static bool next_file(struct span *file, struct span *set)
{
    uint32_t number;
    return take_field(&number, file, set); /* a set has files only */
}

static struct span all_files(void)
{
    return (struct span){rpc_reflect_begin, (size_t)(rpc_reflect_end - rpc_reflect_begin)};
}

enum { FILE_NAME = 1, FILE_PACKAGE = 2, FILE_MESSAGE = 4, FILE_ENUM = 5, FILE_SERVICE = 6 };

/* "package.Name" of a declaration. */
static void full_name(char out[REFLECT_NAME_BYTES], struct span file, struct span declaration)
{
    struct span package = find_field(file, FILE_PACKAGE), name = find_field(declaration, 1);
    snprintf(out, REFLECT_NAME_BYTES, "%.*s.%.*s", (int)package.size, (const char *)package.at,
             (int)name.size, (const char *)name.at);
}

/* True if the symbol is declared in this file, or is part of a declaration (a method, a nested
 * message). */
static bool declares(struct span file, const char *symbol)
{
    uint32_t number;
    struct span in = file;
    for (struct span bytes; take_field(&number, &bytes, &in);) {
        char name[REFLECT_NAME_BYTES];
        if (number < FILE_MESSAGE || number > FILE_SERVICE) continue;
        full_name(name, file, bytes);
        size_t n = strlen(name);
        if (strncmp(symbol, name, n) == 0 && (symbol[n] == 0 || symbol[n] == '.')) return true;
    }
    return false;
}

static bool is_named(struct span file, const char *name)
{
    struct span is = find_field(file, FILE_NAME);
    return is.size == strlen(name) && memcmp(is.at, name, is.size) == 0;
}

static bool find_file(struct span *out, const char *word, bool (*fits)(struct span, const char *))
{
    struct span set = all_files();
    for (struct span file; next_file(&file, &set);)
        if (fits(file, word)) {
            *out = file;
            return true;
        }
    return false;
}

static size_t list_services(char name[REFLECT_SERVICES_MAX][REFLECT_NAME_BYTES])
{
    struct span set = all_files();
    size_t n = 0;
    for (struct span file; next_file(&file, &set);) {
        uint32_t number;
        struct span in = file;
        for (struct span bytes; take_field(&number, &bytes, &in);) {
            if (number != FILE_SERVICE) continue;
            REQUIRE(n < REFLECT_SERVICES_MAX);
            full_name(name[n++], file, bytes);
        }
    }
    return n;
}

static void send(struct rpc_call *call, const response_message *reply)
{
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    err e = message_pack(&packed, &reply->base);
    if (err_is(e))
        rpc_call_refuse(call, e);
    else
        rpc_call_send(call, packed.data, packed.size);
    bytes_close(&packed);
}

static void answer_services(struct rpc_call *call, response_message *reply)
{
    static const Grpc__Reflection__V1alpha__ServiceResponse empty =
        GRPC__REFLECTION__V1ALPHA__SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__ListServiceResponse list =
        GRPC__REFLECTION__V1ALPHA__LIST_SERVICE_RESPONSE__INIT;
    Grpc__Reflection__V1alpha__ServiceResponse service[REFLECT_SERVICES_MAX];
    Grpc__Reflection__V1alpha__ServiceResponse *pointer[REFLECT_SERVICES_MAX];
    char name[REFLECT_SERVICES_MAX][REFLECT_NAME_BYTES];
    list.n_service = list_services(name);
    for (size_t i = 0; i < list.n_service; i++) {
        service[i] = empty;
        service[i].name = name[i];
        pointer[i] = &service[i];
    }
    list.service = pointer;
    reply->message_response_case = ANSWERS(LIST_SERVICES_RESPONSE);
    reply->list_services_response = &list;
    send(call, reply);
}

static void answer_file(struct rpc_call *call, response_message *reply, struct span file)
{
    Grpc__Reflection__V1alpha__FileDescriptorResponse found =
        GRPC__REFLECTION__V1ALPHA__FILE_DESCRIPTOR_RESPONSE__INIT;
    ProtobufCBinaryData bytes = {.len = file.size, .data = (uint8_t *)(uintptr_t)file.at};
    found.file_descriptor_proto = &bytes;
    found.n_file_descriptor_proto = 1;
    reply->message_response_case = ANSWERS(FILE_DESCRIPTOR_RESPONSE);
    reply->file_descriptor_response = &found;
    send(call, reply);
}

static void answer_error(struct rpc_call *call, response_message *reply, grpc_status_code code,
                         const char *text)
{
    Grpc__Reflection__V1alpha__ErrorResponse error =
        GRPC__REFLECTION__V1ALPHA__ERROR_RESPONSE__INIT;
    error.error_code = (int32_t)code;
    error.error_message = (char *)(uintptr_t)text;
    reply->message_response_case = ANSWERS(ERROR_RESPONSE);
    reply->error_response = &error;
    send(call, reply);
}

static void reflect_begin(struct rpc_call *call, const void *data, size_t size)
{
    request_message *request = NULL;
    response_message reply = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    struct span file;
    err e = message_unpack(
        &request, &grpc__reflection__v1alpha__server_reflection_request__descriptor, data, size);
    if (err_is(e)) {
        rpc_call_refuse(call, e);
        return;
    }
    reply.valid_host = request->host;
    reply.original_request = request;
    bool by_name = request->message_request_case == ASKS(FILE_BY_FILENAME);
    bool by_symbol = request->message_request_case == ASKS(FILE_CONTAINING_SYMBOL);
    if (request->message_request_case == ASKS(LIST_SERVICES))
        answer_services(call, &reply);
    else if ((by_name && find_file(&file, request->file_by_filename, is_named)) ||
             (by_symbol && find_file(&file, request->file_containing_symbol, declares)))
        answer_file(call, &reply, file);
    else if (by_name || by_symbol)
        answer_error(call, &reply, GRPC_STATUS_NOT_FOUND, "no symbol or file has this name");
    else
        answer_error(call, &reply, GRPC_STATUS_UNIMPLEMENTED, "this server has no extensions");
    message_free(request);
}

const struct rpc_method rpc_reflect_method = {
    .path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    .shape = RPC_CHAT,
    .roles = RPC_CLIENT | RPC_ADMIN,
    .begin = reflect_begin,
};
