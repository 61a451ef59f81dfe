/* Commands about the work directory of `fedlora join` on the same machine. They call no
 * coordinator, and work while join runs. */
#ifndef CLIENT_COMMAND_WORK_H
#define CLIENT_COMMAND_WORK_H

#include "client/command/command.h"

/* How such a command finds the directory: --work, else by the identity in the certificate. */
struct command_work {
    const char *work, *cert, *config;
};
#define COMMAND_WORK_ROWS(at_)                                                                     \
    {.flag = "work",                                                                               \
     .key = "join.work",                                                                           \
     .kind = OPTION_TEXT,                                                                          \
     .at = (at_) + offsetof(struct command_work, work),                                            \
     .value = "DIR",                                                                               \
     .help = "work directory of fedlora join; default: the one of the member in --cert"},          \
        {.flag = "cert",                                                                           \
         .key = "server.cert",                                                                     \
         .kind = OPTION_TEXT,                                                                      \
         .at = (at_) + offsetof(struct command_work, cert),                                        \
         .value = "FILE",                                                                          \
         .help = "certificate of this member (PEM)"},                                              \
    {                                                                                              \
        .flag = "config", .kind = OPTION_TEXT,                                                     \
        .at = (at_) + offsetof(struct command_work, config), .value = "FILE",                      \
        .help = "configuration file of fedlora join; default: the one that every command finds"    \
    }

/* ERR_INPUT: neither --work nor --cert is given, or the directory does not exist. */
err command_work_find(char *out, size_t bytes, const struct command_work *options);

#endif
