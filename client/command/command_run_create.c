/* fedlora run create: the operator creates a run from options or a configuration file.
 *
 * The command only translates options to a RunConfig message. The coordinator checks the values and
 * fills in defaults, because it must check them anyway and its answer shows the complete run. */
#include "agg/adapter/state_whole.h"
#include "base/file.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/command/command_run.h"
#include "client/command/method_help.h"
#include "client/command/remote_json.h"
#include "client/command/run_members.h"
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
    const char *from;
};

static const struct option_row rows[] = {
    REMOTE_OPTION_ROWS(offsetof(struct create_command, remote)),
    {.flag = "from",
     .key = "run.from",
     .kind = OPTION_TEXT,
     .at = offsetof(struct create_command, from),
     .value = "RUN|FILE",
     .help = "continue from the newest state of another run, or from a state that run export has "
             "written; --rounds counts the rounds before it too; with RUN and without --method, "
             "everything but --members and --rounds is as in that run"},
};

/* Members compare the digest and the shapes with their own copy of the base. An operator without a
 * copy gives the digest, and both at once would have to agree, so they exclude each other. Without
 * shapes, members have to agree on them. */
static err describe_base(Fedlora__V1__RunConfig *config, struct digest *digest,
                         const struct run_options *o, bool from, struct arena *arena)
{
    struct model model = {0};
    if (from && o->base == NULL && o->base_digest == NULL) return ERR_NONE; /* that of the state */
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

/* Frozen factors are a file beside the state: `fedlora run export --parts`. */
static err put_state(struct rpc_client *client, struct digest *digest, const char *path)
{
    char frozen[LIMIT_PATH_BYTES];
    struct digest named, is;
    bool needed = false;
    TRY(state_whole_needs(&needed, &named, path));
    TRY(digest_of_file(digest, path));
    TRY(remote_put(client, digest, path));
    if (!needed) return ERR_NONE;
    if ((size_t)snprintf(frozen, sizeof frozen, "%s.frozen", path) >= sizeof frozen)
        return err_make(ERR_INPUT, "%s: the path is too long", path);
    TRY(digest_of_file(&is, frozen));
    if (!digest_equal(&is, &named))
        return err_make(ERR_INPUT, "%s: not the frozen factors of %s", frozen, path);
    return remote_put(client, &named, frozen);
}

/* A word that is no file is the name of a run. */
static err set_from(Fedlora__V1__RunConfig *config, struct digest *state, struct rpc_client *client,
                    const char *from)
{
    if (from == NULL) return ERR_NONE;
    if (!file_exists(from)) {
        if (!text_is_name(from, LIMIT_NAME_BYTES - 1))
            return err_make(ERR_INPUT, "--from %s: there is no such file, and it is no run's name",
                            from);
        config->from_run = (char *)(uintptr_t)from;
        return ERR_NONE;
    }
    TRY(put_state(client, state, from));
    config->from_state = (ProtobufCBinaryData){DIGEST_BYTES, state->byte};
    return ERR_NONE;
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
    struct digest frozen, state;
    TRY(set_from(config, &state, client, o->from));
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

/* Values of a run whose configuration is taken over; others would be ignored. */
static err refuse_others(const struct run_options *o, struct arena *arena)
{
    /* The base is not taken over but checked: an operator who gives it wants to know that it is
     * the same. */
    static const char *const may[] = {"members", "rounds", "base", "base-digest"};
    const struct option_table table = {run_options_rows, run_options_count};
    const struct option_set set = {.table = &table, .count = 1};
    struct run_options normal = {0};
    TRY(option_defaults(&normal, &set, arena));
    for (size_t i = 0; i < run_options_count; i++) {
        const struct option_row *row = &run_options_rows[i];
        char is[256] = "", was[256] = "";
        bool fine = false;
        for (size_t k = 0; k < sizeof may / sizeof *may; k++)
            fine |= strcmp(row->flag, may[k]) == 0;
        if (fine ||
            (option_text(is, sizeof is, o, row) == option_text(was, sizeof was, &normal, row) &&
             strcmp(is, was) == 0))
            continue;
        return err_make(ERR_INPUT,
                        "--%s: without --method the run is as the one of --from, but for --members "
                        "and --rounds; give --method too, or change it later with run set",
                        row->flag);
    }
    return ERR_NONE;
}

/* An empty method asks the coordinator for the whole configuration of the other run. */
/* Members are needed unless those of the other run are taken over. */
static err set_config(Fedlora__V1__RunConfig *config, const struct create_command *o,
                      struct arena *arena)
{
    const struct run_options *run = &o->run;
    /* As in set_from(): a file wins over a run of the same name, because it is what the shell
     * completes. */
    bool from_run = o->from != NULL && !file_exists(o->from);
    if (from_run && run->method == NULL) {
        TRY(refuse_others(run, arena));
        if (run->members != NULL) TRY(run_members_parse(config, run->members, arena));
        config->rounds = (uint32_t)run->rounds;
        return ERR_NONE;
    }
    if (run->members == NULL)
        return err_make(ERR_INPUT, "--members is missing: expected ID,ID,...");
    struct run_options given = *run;
    if (o->from != NULL && given.method == NULL) given.method = "";
    return run_options_config(config, &given, arena);
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
    config.name = (char *)(uintptr_t)arguments->item[0];
    TRY(set_config(&config, o, arena));
    err e = describe_base(&config, &base, &o->run, o->from != NULL, arena);
    if (!err_is(e)) e = remote_open(&client, &o->remote);
    if (!err_is(e)) e = create(client, &config, o);
    rpc_client_close(client);
    message_free(config.training);
    return e;
}

const struct command command_run_create = {
    .name = "run create",
    .purpose = "create a federated run (operator)",
    .usage = "NAME --method M --rounds N --members ID,ID,... (--base PATH | --base-digest HEX | "
             "--from RUN|FILE) [options]",
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
