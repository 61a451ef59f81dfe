/* Functions and types shared by the `fedlora run` commands, which the operator uses. */
#ifndef CLIENT_COMMAND_RUN_H
#define CLIENT_COMMAND_RUN_H

#include "client/command/command.h"
#include "client/session/remote.h"
#include "fedlora.pb-c.h"

/* Time limit of CreateRun: the coordinator may compute a basis for a new run, which takes longer
 * than other calls. */
enum { COMMAND_RUN_CREATE_MS = 10 * 60 * 1000 };

/* The status of one run; free *out with message_free(). */
err command_run_get(Fedlora__V1__RunStatus **out, struct rpc_client *client, const char *name);
/* Prints a message as JSON, with all of its fields. */
err command_run_print_message(const ProtobufCMessage *message);
/* One line each; before everything else of a status or a list. */
void command_run_print_troubles(char *const *trouble, size_t count);
/* Prints the whole status, as JSON or as tables. */
err command_run_print(const Fedlora__V1__RunStatus *status, bool json);

/* Defined in command_run.c, command_run_create.c, command_run_change.c and command_run_audit.c. */
extern const struct command command_run_create, command_run_list, command_run_status,
    command_run_watch, command_run_pause, command_run_resume, command_run_stop, command_run_export,
    command_run_archive, command_run_delete, command_run_report, command_run_audit, command_run_set,
    command_run_member, command_run_drop_update;

#endif
