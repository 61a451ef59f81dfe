/* Shared by the operator's commands about members and tokens. */
#ifndef CLIENT_COMMAND_ROSTER_H
#define CLIENT_COMMAND_ROSTER_H

#include "client/command/command_run.h"

#define COMMAND_ROW_ROLE(at_)                                                                      \
    {                                                                                              \
        .flag = "role", .kind = OPTION_TEXT, .at = (at_), .fallback = "client",                    \
        .value = "client|admin",                                                                   \
        .help = "client: a member, which takes part in runs; admin: an operator"                   \
    }

/* A time since 1970 in UTC, for tables; "-" for 0. Returns out. */
enum { COMMAND_TIME_BYTES = 32 };
const char *command_time(char out[COMMAND_TIME_BYTES], uint64_t wall_ms);

/* Defined in command_token.c and command_member.c. */
extern const struct command command_token_create, command_token_list, command_token_revoke,
    command_member_list, command_member_show, command_member_add, command_member_rename,
    command_member_sign, command_member_revoke;

#endif
