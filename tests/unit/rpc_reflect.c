#include "tests/support/rpc_fixture.h"

#include "proto/message.h"
#include "reflection.pb-c.h"

#define REQUEST(what) GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##what
#define RESPONSE(what)                                                                             \
    GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##what

typedef Grpc__Reflection__V1alpha__ServerReflectionRequest request_message;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse response_message;

static err take(const void *message, size_t size, void *context)
{
    response_message **reply = context;
    cr_expect_null(*reply, "one answer a question");
    return message_unpack(reply, &grpc__reflection__v1alpha__server_reflection_response__descriptor,
                          message, size);
}

static response_message *ask(struct rpc_client *client, const request_message *request)
{
    struct bytes packed = {.max = 4096};
    response_message *reply = NULL;
    FIXTURE_OK(message_pack(&packed, &request->base));
    const struct rpc_download download = {
        .path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        .request = &packed,
        .deadline_ms = 5000,
        .stall_ms = 5000,
        .part = take,
        .context = &reply};
    FIXTURE_OK(rpc_client_download(client, &download));
    bytes_close(&packed);
    cr_assert_not_null(reply);
    return reply;
}

static bool holds(const ProtobufCBinaryData *data, const char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i + n <= data->len; i++)
        if (memcmp(data->data + i, text, n) == 0) return true;
    return false;
}

Test(rpc_reflect, lists_the_services_and_gives_the_files_that_describe_them)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    request_message request = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__INIT;
    fixture_start(&f);
    const struct rpc_client_options options = fixture_client(&f, "ops");
    FIXTURE_OK(rpc_client_open(&client, &options));
    request.message_request_case = REQUEST(LIST_SERVICES);
    request.list_services = "";
    response_message *reply = ask(client, &request);
    cr_assert_eq(reply->message_response_case, RESPONSE(LIST_SERVICES_RESPONSE));
    static const char *const wanted[] = {"fedlora.v1.Federation", "fedlora.v1.Enrolment",
                                         "fedlora.v1.Admin", "grpc.health.v1.Health",
                                         "grpc.reflection.v1alpha.ServerReflection"};
    cr_expect_eq(reply->list_services_response->n_service, 5);
    for (size_t w = 0; w < 5; w++) {
        bool found = false;
        for (size_t i = 0; i < reply->list_services_response->n_service; i++)
            found |= strcmp(reply->list_services_response->service[i]->name, wanted[w]) == 0;
        cr_expect(found, "%s", wanted[w]);
    }
    message_free(reply);
    request.message_request_case = REQUEST(FILE_CONTAINING_SYMBOL);
    static char *const symbols[] = {"fedlora.v1.Federation.Hello", "fedlora.v1.TrainTask"};
    for (int i = 0; i < 2; i++) {
        request.file_containing_symbol = symbols[i];
        reply = ask(client, &request);
        cr_assert_eq(reply->message_response_case, RESPONSE(FILE_DESCRIPTOR_RESPONSE));
        const ProtobufCBinaryData *file = reply->file_descriptor_response->file_descriptor_proto;
        cr_expect(holds(file, "fedlora.proto") && holds(file, "NextTask"));
        message_free(reply);
    }
    request.message_request_case = REQUEST(FILE_BY_FILENAME);
    request.file_by_filename = "health.proto";
    reply = ask(client, &request);
    cr_assert_eq(reply->message_response_case, RESPONSE(FILE_DESCRIPTOR_RESPONSE));
    cr_expect(holds(reply->file_descriptor_response->file_descriptor_proto, "grpc.health.v1"));
    message_free(reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_reflect, says_what_it_does_not_have)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    request_message request = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__INIT;
    fixture_start(&f);
    const struct rpc_client_options options = fixture_client(&f, "a");
    FIXTURE_OK(rpc_client_open(&client, &options));
    request.message_request_case = REQUEST(FILE_CONTAINING_SYMBOL);
    request.file_containing_symbol = "fedlora.v1.Fed";
    response_message *reply = ask(client, &request);
    cr_assert_eq(reply->message_response_case, RESPONSE(ERROR_RESPONSE));
    cr_expect_eq(reply->error_response->error_code, 5, "NOT_FOUND");
    message_free(reply);
    request.message_request_case =
        GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST__NOT_SET;
    reply = ask(client, &request);
    cr_assert_eq(reply->message_response_case, RESPONSE(ERROR_RESPONSE));
    cr_expect_eq(reply->error_response->error_code, 12, "UNIMPLEMENTED");
    message_free(reply);
    rpc_client_close(client);
    fixture_stop(&f);
}
