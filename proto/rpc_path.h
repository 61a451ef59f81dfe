/* Paths of the remote procedures ("/fedlora.v1.Federation/Hello"), made from the service
 * descriptors that protoc-c generates. fedlora.proto is the only list of procedures: a name that it
 * does not have fails to compile.
 *
 *     .path = RPC_PATH_FEDERATION(next_task)      a procedure that members call
 *     .path = RPC_PATH_ADMIN(create_run)          a procedure that operators call
 *     .path = RPC_PATH_ENROLMENT(renew)           a procedure about certificates
 *
 * Each macro is an address constant, so it may be used to initialize a static table. The text
 * is filled in before main() and never changes afterwards. Any thread. */
#ifndef PROTO_RPC_PATH_H
#define PROTO_RPC_PATH_H

#include "fedlora.pb-c.h"

#include <stddef.h>

enum { RPC_PATH_BYTES = 64 };

struct rpc_path {
    char text[RPC_PATH_BYTES];
};

/* The generated service struct is a header followed by one function pointer a procedure, in the
 * order of the descriptor's `methods`. */
#define RPC_PATH_INDEX(service, procedure)                                                         \
    ((offsetof(service, procedure) - sizeof(ProtobufCService)) / sizeof(void (*)(void)))
#define RPC_PATH_COUNT(service)                                                                    \
    ((sizeof(service) - sizeof(ProtobufCService)) / sizeof(void (*)(void)))

#define RPC_PATH_FEDERATION(procedure)                                                             \
    (rpc_path_federation[RPC_PATH_INDEX(Fedlora__V1__Federation_Service, procedure)].text)
#define RPC_PATH_ADMIN(procedure)                                                                  \
    (rpc_path_admin[RPC_PATH_INDEX(Fedlora__V1__Admin_Service, procedure)].text)
#define RPC_PATH_ENROLMENT(procedure)                                                              \
    (rpc_path_enrolment[RPC_PATH_INDEX(Fedlora__V1__Enrolment_Service, procedure)].text)

enum {
    RPC_PATHS_FEDERATION = RPC_PATH_COUNT(Fedlora__V1__Federation_Service),
    RPC_PATHS_ADMIN = RPC_PATH_COUNT(Fedlora__V1__Admin_Service),
    RPC_PATHS_ENROLMENT = RPC_PATH_COUNT(Fedlora__V1__Enrolment_Service),
};
extern struct rpc_path rpc_path_federation[RPC_PATHS_FEDERATION], rpc_path_admin[RPC_PATHS_ADMIN],
    rpc_path_enrolment[RPC_PATHS_ENROLMENT];

#endif
