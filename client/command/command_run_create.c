/* fedlora run create: the operator creates a run from options or a configuration file.
 *
 * The command only translates options to a RunConfig message. The coordinator checks the values and
 * fills in defaults, because it must check them anyway and its answer shows the complete run. */
#include "base/text.h"
#include "client/command/command.h"
#include "client/command/command_run.h"
#include "client/command/method_help.h"
#include "client/command/remote_json.h"
#include "client/command/run_options.h"
#include "client/session/remote.h"
#include "client/session/session_describe.h"
#include "engine/model/model.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The run's options first: client/command/run_options.h. */
struct create_command {
    struct run_options run;
    struct remote_options remote;
};

static const struct option_row rows[] = {
    REMOTE_OPTION_ROWS(offsetof(struct create_command, remote)),
};

/* Members compare the digest and the shapes with their own copy of the base. An operator without a
 * copy gives the digest, and both at once would have to agree, so they exclude each other. Without
 * shapes, members have to agree on them. */
static err describe_base(Fedlora__V1__RunConfig *config, struct digest *digest,
                         const struct run_options *o, struct arena *arena)
{
    struct model model = {0};
    if ((o->base != NULL) == (o->base_digest != NULL))
        return err_make(ERR_INPUT, "run create: expected either --base PATH or --base-digest HEX");
    config->base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest->byte};
    if (o->base_digest != NULL) {
        err e = digest_parse(digest, o->base_digest);
        return err_is(e) ? err_in(e, "--base-digest") : e;
    }
    TRY(model_open(&model, o->base));
    err e = model_digest(digest, &model);
    if (!err_is(e))
        e = session_describe_modules(&config->modules, &config->n_modules, &model.arch, arena);
    model_close(&model);
    return e;
}

/* Frozen factors are uploaded before the run is created, which refers to them by digest. An upload
 * that exists already is not repeated. */
static err create(struct rpc_client *client, Fedlora__V1__RunConfig *config,
                  const struct create_command *o)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(create_run),
                                                &fedlora__v1__run_status__descriptor};
    Fedlora__V1__RunStatus *status = NULL;
    /* The digest names the blob, so a file that was uploaded for an earlier run is found by it. */
    struct digest frozen;
    if (o->run.frozen != NULL) {
        TRY(digest_of_file(&frozen, o->run.frozen));
        TRY(remote_put(client, &frozen, o->run.frozen));
        config->frozen_digest = (ProtobufCBinaryData){DIGEST_BYTES, frozen.byte};
    }
    TRY(remote_call(&status, client, &method, &config->base, COMMAND_RUN_CREATE_MS));
    err e = command_run_print(status, o->run.common.json);
    message_free(status);
    return e;
}

static err create_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct create_command *o = options;
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    struct digest base;
    struct rpc_client *client = NULL;
    if (!text_is_name(arguments->item[0], LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT,
                        "\"%.60s\" is not a run name: expected letters, digits, '.', '_' and '-'",
                        arguments->item[0]);
    if (o->run.members == NULL)
        return err_make(ERR_INPUT, "--members is missing: expected ID,ID,...");
    config.name = (char *)(uintptr_t)arguments->item[0];
    TRY(run_options_config(&config, &o->run, arena));
    err e = describe_base(&config, &base, &o->run, arena);
    if (!err_is(e)) e = remote_open(&client, &o->remote);
    if (!err_is(e)) e = create(client, &config, o);
    rpc_client_close(client);
    message_free(config.training);
    return e;
}

const struct command command_run_create = {
    .name = "run create",
    .purpose = "create a federated run (operator)",
    .usage = "NAME --method M --rounds N --members ID,ID,... (--base PATH | --base-digest HEX) "
             "[options]",
    .example =
        "fedlora run create triage --method flora --rounds 3 --members north,south --base SmolLM2 "
        "--steps 50 --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .describes_run = true,
    .skipped = run_options_simulated,
    .options_size = sizeof(struct create_command),
    .least = 1,
    .most = 1,
    .run = create_run,
    .details = method_help,
};
