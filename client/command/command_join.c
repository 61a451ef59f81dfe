/* fedlora join: take part in federated runs until they end. The work is done by session_run(); this
 * file reads the options and prints the result.
 *
 * Every option except --force can also be given in the file of --config, because a member usually
 * starts the same command again after a reboot, from a service file. */
#include "client/command/command.h"
#include "client/command/setup.h"
#include "client/identity/renewer.h"
#include "client/output/report.h"
#include "client/session/retry.h"
#include "client/session/session.h"

#include <stdio.h>

struct join_command {
    struct command_common common;
    struct remote_options remote;
    const char *base, *data, *eval_data, *run, *work, *output, *ledger, *ledger_key, *template;
    double epsilon, delta;
    int64_t rank;
    uint64_t memory, retry_ms, checkpoint_ms;
    int base_memory;
    bool checkpoint, force, bos, stay, accept_restore;
    struct session_policy policy;
    const char *keep_sent;
};

#define AT(member) offsetof(struct join_command, member)
static const struct option_row rows[] = {
    /* The connection comes first: these four options are the same for every run of the federation
     * and are usually in the file of --config. */
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "base",
     .key = "join.base",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(base),
     .value = "PATH",
     .help = "base model: a Hugging Face directory or a .gguf file"},
    {.flag = "data",
     .key = "join.data",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(data),
     .value = "FILE",
     .help = "training data, JSON Lines; it never leaves this machine"},
    {.flag = "eval-data",
     .key = "join.eval_data",
     .kind = OPTION_TEXT,
     .at = AT(eval_data),
     .value = "FILE",
     .help = "held-out rows, JSON Lines; the run's states are evaluated on them, and the "
             "coordinator gets loss and accuracy"},
    {.flag = "run",
     .key = "join.run",
     .kind = OPTION_TEXT,
     .at = AT(run),
     .value = "NAME",
     .help = "run to join; default: all open runs with this member, in turn, until all are over"},
    /* Offers of this machine. The coordinator decides the rank of the round from the offers of
     * all members, so 0 is the usual value. */
    {.flag = "rank",
     .key = "join.rank",
     .kind = OPTION_INT,
     .at = AT(rank),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_RANK,
     .help = "LoRA rank that this machine offers to train; 0: the rank that the run asks for"},
    {.flag = "memory",
     .key = "join.memory",
     .kind = OPTION_SIZE,
     .at = AT(memory),
     .value = "SIZE",
     .help = "memory of this machine, reported to the coordinator; default: not reported"},
    /* Privacy of single records. These are limits of the member, which hold whatever the settings
     * of the run are; they are compared before any data is used. */
    {.flag = "ledger",
     .key = "privacy.ledger",
     .kind = OPTION_TEXT,
     .at = AT(ledger),
     .value = "FILE",
     .help = "privacy ledger of the training data, to continue or to create; required by runs with "
             "example-level privacy"},
    {.flag = "ledger-key",
     .key = "privacy.ledger_key",
     .kind = OPTION_TEXT,
     .at = AT(ledger_key),
     .value = "FILE",
     .help = "Ed25519 private key (PEM, mode 0600) that signs the ledger"},
    {.flag = "epsilon",
     .key = "privacy.epsilon",
     .kind = OPTION_NUM,
     .at = AT(epsilon),
     .fallback = "0",
     .least = 0,
     .most = 1e6,
     .help = "refuse runs whose example-level epsilon is larger than this; also the budget of a "
             "newly created ledger; 0: use the run's"},
    {.flag = "delta",
     .key = "privacy.delta",
     .kind = OPTION_NUM,
     .at = AT(delta),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "refuse runs whose example-level delta is larger than this; also the delta of a newly "
             "created ledger; 0: use the run's"},
    /* Local matters, which the coordinator never sees. */
    {.flag = "checkpoint",
     .key = "join.checkpoint",
     .kind = OPTION_FLAG,
     .at = AT(checkpoint),
     .help = "recompute activations in the backward pass: less memory, slower"},
    SETUP_ROW_BASE_MEMORY(AT(base_memory), "join.base_memory"),
    SETUP_ROW_TEMPLATE(AT(template), "join.template"),
    {.flag = "bos",
     .key = "join.bos",
     .kind = OPTION_FLAG,
     .at = AT(bos),
     .help = "put the beginning-of-sequence token before rows of text, also if the run does not "
             "ask for it"},
    {.flag = "work",
     .key = "join.work",
     .kind = OPTION_TEXT,
     .at = AT(work),
     .value = "DIR",
     .help = "directory for downloads and unsent updates; default: "
             "~/.local/state/fedlora/FEDERATION/MEMBER"},
    {.flag = "output",
     .key = "join.output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = AT(output),
     .value = "FILE",
     .help = "file for the last state of the run; without --run only one run is joined"},
    {.flag = "force",
     .kind = OPTION_FLAG,
     .at = AT(force),
     .help = "replace an existing output file"},
    {.flag = "checkpoint-every",
     .key = "join.checkpoint_every",
     .kind = OPTION_DURATION,
     .at = AT(checkpoint_ms),
     .fallback = "10m",
     .value = "TIME",
     .help = "keep the state of a training this often, so that a restart continues within the "
             "round; it is also kept when join is stopped; 0s: only then"},
    {.flag = "keep-sent",
     .key = "join.keep_sent",
     .kind = OPTION_TEXT,
     .at = AT(keep_sent),
     .value = "DIR",
     .help = "keep a copy of every update that is sent in this directory; default: none, the "
             "journal (fedlora sent) has digests"},
    {.flag = "stay",
     .key = "join.stay",
     .kind = OPTION_FLAG,
     .at = AT(stay),
     .help = "serve one run after another until interrupted, and wait for new runs; SIGTERM then "
             "ends it with status 0"},
    {.flag = "accept-restore",
     .kind = OPTION_FLAG,
     .at = AT(accept_restore),
     .help = "take part although the coordinator runs on an older copy of its store than this "
             "member has seen; only after its operator has confirmed the restore"},
    {.flag = "retry-for",
     .key = "join.retry_for",
     .kind = OPTION_DURATION,
     .at = AT(retry_ms),
     .value = "TIME",
     .help = "longest wait for a coordinator that does not answer; default: 1h, with --stay "
             "without end"},
    SESSION_POLICY_ROWS(AT(policy)),
};

/* A run that ends before its first round has no state; its digest is then all zero. With
 * example-level privacy the member's own ledger is reported; with client-level privacy only the
 * coordinator has one, and its last hash is printed so that the member can give it to an
 * auditor. */
static err print_result(const struct join_command *o, const struct session_result *r)
{
    /* All zero, which no digest of a file is in practice. */
    static const struct digest none;
    char state[DIGEST_TEXT_BYTES], head[DIGEST_TEXT_BYTES] = "";
    digest_text(state, &r->state);
    if (!digest_equal(&r->ledger_head, &none)) digest_text(head, &r->ledger_head);
    if (!o->common.json) {
        if (digest_equal(&r->state, &none))
            printf("run %s %s; it has no state\n", r->run, r->outcome);
        else
            printf("run %s %s; last state %s\n", r->run, r->outcome, state);
        if (r->charged) {
            digest_text(head, &r->spent.head);
            printf("privacy spent: epsilon %.4g of %.4g at delta %.3g; the last line of %s has "
                   "hash %s\n",
                   r->spent.epsilon, r->spent.budget, r->spent.delta, o->ledger, head);
            return ERR_NONE;
        }
        if (*head)
            printf(
                "the last line of the run's privacy ledger has hash %s; keep it for the auditor\n",
                head);
        return ERR_NONE;
    }
    json_t *all =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "run", r->run, "member", r->member,
                  "outcome", r->outcome, "state", state, "state_bytes", (json_int_t)r->state_size,
                  "rounds_trained", (json_int_t)r->rounds_trained, "bytes_up",
                  (json_int_t)r->bytes_up, "bytes_down", (json_int_t)r->bytes_down);
    if (all != NULL && *head) json_object_set_new(all, "ledger_head", json_string(head));
    if (all != NULL && r->charged)
        json_object_update_new(all, train_ledger_json(&r->spent, o->ledger));
    if (all != NULL && r->data != NULL) json_object_update(all, r->data);
    err e = all != NULL ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* Flushed at once, because the other runs of this member may take days. */
static err on_end(void *user, const struct session_result *r)
{
    err e = print_result(user, r);
    fflush(stdout);
    return e;
}

/* A service has nobody who starts it again. */
static uint64_t retry_ms(const struct join_command *o)
{
    static const uint64_t an_hour = 60 * 60 * 1000;
    if (o->retry_ms) return o->retry_ms;
    return o->stay ? RETRY_FOR_EVER : an_hour;
}

/* The output path is checked now, because it is written only after the last round, hours later. */
static err join_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments, (void)arena;
    const struct join_command *o = options;
    struct session_result result = {0};
    struct renewer *renewer = NULL;
    const struct renewer_options renewal = {.files = {.server = o->remote.server,
                                                      .ca = o->remote.ca,
                                                      .cert = o->remote.cert,
                                                      .key = o->remote.key},
                                            .quiet = o->common.quiet};
    const struct session_options session = {.remote = o->remote,
                                            .base = o->base,
                                            .data = o->data,
                                            .eval_data = o->eval_data,
                                            .run = o->run,
                                            .work = o->work,
                                            .output = o->output,
                                            .rank = (uint32_t)o->rank,
                                            .memory = o->memory,
                                            .retry_ms = retry_ms(o),
                                            .stay = o->stay,
                                            .accept_restore = o->accept_restore,
                                            .policy = &o->policy,
                                            .keep_sent = o->keep_sent,
                                            .checkpoint_ms = o->checkpoint_ms,
                                            .device = o->common.device,
                                            .precision = training_dtype(o->common.precision),
                                            .threads = (int)o->common.threads,
                                            .ledger = o->ledger,
                                            .ledger_key = o->ledger_key,
                                            .epsilon = o->epsilon,
                                            .delta = o->delta,
                                            .checkpoint = o->checkpoint,
                                            .base_memory = (enum base_memory)o->base_memory,
                                            .quiet = o->common.quiet,
                                            .force = o->force,
                                            .bos = o->bos,
                                            .template = o->template,
                                            .ended = on_end,
                                            .user = options};
    if (o->stay && (o->run || o->output))
        return err_make(ERR_INPUT, "--stay serves all runs of this member: leave out --%s",
                        o->run ? "run" : "output");
    TRY(session_policy_check(&o->policy));
    if (o->output != NULL) TRY(command_check_output(o->output, o->force));
    TRY(renewer_open(&renewer, &renewal));
    err e = session_run(&result, &session);
    renewer_close(renewer);
    if (!o->stay || e.kind != ERR_STOPPED || stop_asked != SIGTERM) return e;
    command_note(&o->common, "stopped; it continues when it is started again");
    return ERR_NONE;
}

const struct command command_join = {
    .name = "join",
    .purpose = "take part in a federated run until it ends",
    .usage =
        "--server HOST:PORT --ca FILE --cert FILE --key FILE --base PATH --data FILE [options]",
    .example =
        "fedlora join --server fed.example.org:7443 --ca ca.pem --cert north.pem --key north.key "
        "--base SmolLM2 --data north.jsonl --rank 16",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .whole_config = true,
    .options_size = sizeof(struct join_command),
    .run = join_run,
};
