/* fedlora run set, member, drop-update: an operator changes a run that is open.
 *
 * The coordinator checks every change and answers with the new status of the run. */
#include "client/command/command_run.h"

#include "base/bytes.h"
#include "client/command/run_members.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <string.h>

struct change_command {
    struct command_common common;
    struct remote_options remote;
};
static const struct option_row rows[] = {
    REMOTE_OPTION_ROWS(offsetof(struct change_command, remote)),
};
enum { VALUES_MAX = 32 };

/* No retry: the operator sees the error and decides. */
static err change(const struct change_command *o, const char *path, const ProtobufCMessage *request)
{
    const struct remote_method method = {path, &fedlora__v1__run_status__descriptor};
    struct rpc_client *client = NULL;
    Fedlora__V1__RunStatus *status = NULL;
    TRY(remote_open(&client, &o->remote));
    err e = remote_call(&status, client, &method, request, 0);
    if (!err_is(e)) e = command_run_print(status, o->common.json);
    message_free(status);
    rpc_client_close(client);
    return e;
}

/* KEY=VALUE is passed on as text. The coordinator knows the keys that may change in an open
 * run, so a newer coordinator can allow more keys without a new client. */
static err set_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    Fedlora__V1__RunChange request = FEDLORA__V1__RUN_CHANGE__INIT;
    (void)arena;
    request.run = (char *)(uintptr_t)arguments->item[0];
    request.set = (char **)(uintptr_t)(arguments->item + 1);
    request.n_set = arguments->count - 1;
    return change(o, RPC_PATH_ADMIN(set_run), &request.base);
}

static err set_details(struct bytes *out)
{
    return bytes_printf(
        out,
        "KEY is absent, cohort, deadline, evaluate_every, grace, late, late_rounds, norm_bound,\n"
        "over_select, quorum, report_every, rounds or weight_cap, with the meaning of the option "
        "of\nrun create.\n");
}

static err change_member(const struct change_command *o, const char *path, const char *run,
                         Fedlora__V1__MemberConfig *member)
{
    Fedlora__V1__MemberChange request = FEDLORA__V1__MEMBER_CHANGE__INIT;
    request.run = (char *)(uintptr_t)run;
    request.member = member;
    return change(o, path, &request.base);
}

/* A member is written as in --members of run create, with its settings. */
static err member_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    const char *what = arguments->item[0], *run = arguments->item[1];
    Fedlora__V1__RunConfig list = FEDLORA__V1__RUN_CONFIG__INIT;
    bool adds = strcmp(what, "add") == 0;
    if (!adds && strcmp(what, "drop") != 0)
        return err_make(ERR_INPUT, "run member \"%.40s\": expected add or drop", what);
    TRY(run_members_parse(&list, arguments->item[2], arena));
    if (list.n_members != 1)
        return err_make(ERR_INPUT, "run member %s: %zu members, expected one", what,
                        list.n_members);
    return change_member(o, adds ? RPC_PATH_ADMIN(add_member) : RPC_PATH_ADMIN(drop_member), run,
                         list.members[0]);
}

/* Only the id is read, because a member has at most one update in the round under way. */
static err drop_update(void *o, const struct option_list *arguments, struct arena *arena)
{
    Fedlora__V1__MemberConfig member = FEDLORA__V1__MEMBER_CONFIG__INIT;
    (void)arena;
    member.id = (char *)(uintptr_t)arguments->item[1];
    return change_member(o, RPC_PATH_ADMIN(drop_update), arguments->item[0], &member);
}

const struct command command_run_set = {
    .name = "run set",
    .purpose = "change values of an open run (operator)",
    .usage = "NAME KEY=VALUE... --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run set triage quorum=2 deadline=30m --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct change_command),
    .least = 2,
    .most = VALUES_MAX,
    .run = set_run,
    .details = set_details,
};
const struct command command_run_member = {
    .name = "run member",
    .purpose = "add a member to an open run, or drop one (operator)",
    .usage = "add|drop NAME ID[:rank=8:...] --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run member drop triage south --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct change_command),
    .least = 3,
    .most = 3,
    .run = member_run,
};
const struct command command_run_drop_update = {
    .name = "run drop-update",
    .purpose = "close the round under way without a member's update (operator)",
    .usage = "NAME ID --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run drop-update triage south --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct change_command),
    .least = 2,
    .most = 2,
    .run = drop_update,
};
