/* fedlora enroll: give this machine its identity in a federation.
 *
 * With a token in one step; without a route to the coordinator in two, with files that travel by
 * mail: --request makes the key and a request, --accept takes the operator's answer. */
#include "base/file.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/identity/enroll.h"
#include "client/output/report.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct enroll_command {
    struct command_common common;
    const char *dir, *request, *accept, *ca_hash, *server;
    struct enroll_join join;
    bool force;
};

#define AT(member) offsetof(struct enroll_command, member)
static const struct option_row rows[] = {
    {.flag = "dir",
     .kind = OPTION_TEXT,
     .at = AT(dir),
     .fallback = IDENTITY_DIR,
     .value = "DIR",
     .help = "folder for ca.pem, member.pem (certificate and key) and " IDENTITY_CONFIG},
    {.flag = "request",
     .kind = OPTION_TEXT,
     .at = AT(request),
     .value = "FILE",
     .help = "without a token: make a key, and write a request for the operator (fedlora member "
             "sign) to this file"},
    {.flag = "accept",
     .kind = OPTION_TEXT,
     .at = AT(accept),
     .value = "FILE",
     .help = "file with the certificate that the operator made from the request"},
    {.flag = "ca-hash",
     .kind = OPTION_TEXT,
     .at = AT(ca_hash),
     .value = "HASH",
     .help = "SHA-256 of the authority's root certificate, by which --accept trusts its file; ask "
             "the operator for it by telephone"},
    {.flag = "server",
     .kind = OPTION_TEXT,
     .at = AT(server),
     .value = "HOST:PORT",
     .help = "address of the coordinator for " IDENTITY_CONFIG
             ", with --accept; default: the one in the file"},
    {.flag = "base",
     .kind = OPTION_TEXT,
     .at = AT(join.base),
     .value = "PATH",
     .help = "base model of this member, written to a new " IDENTITY_CONFIG},
    {.flag = "data",
     .kind = OPTION_TEXT,
     .at = AT(join.data),
     .value = "FILE",
     .help = "training data of this member, written to a new " IDENTITY_CONFIG
             "; the data never leaves this machine"},
    {.flag = "force",
     .letter = 'f',
     .kind = OPTION_FLAG,
     .at = AT(force),
     .help = "replace another identity in the folder, or an existing request"},
};

/* In UTC, as in certificates. */
static void write_time(char out[32], int64_t s)
{
    time_t t = (time_t)s;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%d %H:%M UTC", &tm);
}

/* ---------------------------------------------------------------- results */

static err print_json(const struct enroll_result *r)
{
    json_t *all = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:b, s:b}", "id", r->self.id,
                            "role", rpc_role_name(r->self.role), "federation", r->self.federation,
                            "not_after", (json_int_t)r->ends_s, "renew_at", (json_int_t)r->renew_s,
                            "ca", r->dir.ca, "cert", r->dir.member, "config", r->dir.config,
                            "wrote_config", r->wrote_config, "was_enrolled", r->was_done);
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* The last line is the next command to type. The default file is found by itself. */
static err print_result(const struct enroll_command *o, const struct enroll_result *r)
{
    char ends[32], renews[32], config[LIMIT_PATH_BYTES + 16] = "";
    if (o->common.json) return print_json(r);
    write_time(ends, r->ends_s);
    write_time(renews, r->renew_s);
    printf("%s %s (%s) of federation %s\n",
           r->was_done ? "this token has already enrolled" : "enrolled", r->self.id,
           rpc_role_name(r->self.role), r->self.federation);
    printf("certificate until %s; renewed by itself from %s\n", ends, renews);
    printf("%s: certificate and key; the key was made here and never leaves\n", r->dir.member);
    if (r->wrote_config)
        printf("%s: configuration of all commands\n", r->dir.config);
    else if (!r->was_done)
        printf("%s: kept as it is; check its section [server]\n", r->dir.config);
    if (strcmp(r->dir.dir, IDENTITY_DIR) != 0)
        snprintf(config, sizeof config, " --config %s", r->dir.config);
    printf("next: fedlora doctor%s\n", config);
    return ERR_NONE;
}

/* ---------------------------------------------------------------- the three ways */

/* "-" keeps the token out of the list of processes and of the shell's history. */
static err read_token(struct enroll_token *out, const char *argument)
{
    char line[ENROLL_TOKEN_BYTES + 64] = "";
    if (strcmp(argument, "-") != 0) return enroll_token_parse(out, argument);
    if (fgets(line, sizeof line, stdin) == NULL)
        return err_make(ERR_INPUT, "standard input: empty, expected a token");
    err e = enroll_token_parse(out, line);
    sodium_memzero(line, sizeof line);
    return e;
}

/* One call; a repetition by the user is safe, so there is no loop here. */
static err by_token(const struct enroll_command *o, const char *argument)
{
    struct enroll_token token;
    struct enroll_result result;
    TRY(read_token(&token, argument));
    err e = enroll_by_token(
        &result, o->dir, &(struct enroll_by){.token = &token, .join = o->join, .force = o->force});
    sodium_memzero(&token, sizeof token);
    return err_is(e) ? e : print_result(o, &result);
}

/* The digest of the key lets two people compare by telephone that the mail was not changed. */
static err by_request(const struct enroll_command *o)
{
    struct digest key;
    char text[DIGEST_TEXT_BYTES];
    TRY(command_check_output(o->request, o->force));
    TRY(enroll_request(&key, o->dir, o->request, o->force));
    digest_text(text, &key);
    if (!o->common.json) {
        printf("%s: send this file to the operator, who signs it with: fedlora member sign %s\n"
               "key %s; compare it with the operator's by telephone\n"
               "then: fedlora enroll --accept FILE --ca-hash HASH\n",
               o->request, o->request, text);
        return ERR_NONE;
    }
    json_t *all = json_pack("{s:s, s:s}", "request", o->request, "key", text);
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

static err by_answer(const struct enroll_command *o)
{
    struct enroll_answer answer = {
        .path = o->accept, .server = o->server, .join = o->join, .force = o->force};
    struct enroll_result result;
    if (o->ca_hash == NULL)
        return err_make(ERR_INPUT,
                        "--accept needs --ca-hash, the hash of the authority, because the file "
                        "alone does not prove who made it");
    err e = enroll_token_hash_parse(&answer.ca, o->ca_hash);
    if (err_is(e)) return err_in(e, "--ca-hash");
    TRY(enroll_accept(&result, o->dir, &answer));
    return print_result(o, &result);
}

/* Before the token is used, because a wrong path is the user's most likely mistake. */
static err check_exists(const char *flag, const char *path)
{
    if (!path || file_exists(path)) return ERR_NONE;
    return err_make(ERR_INPUT, "--%s %s: no such file", flag, path);
}

/* Exactly one way; options of another way are refused and not ignored. */
static err enroll_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    const struct enroll_command *o = options;
    const struct command_given given[] = {{"ca-hash", o->ca_hash != NULL},
                                          {"server", o->server != NULL}};
    size_t ways = (arguments->count > 0) + (o->request != NULL) + (o->accept != NULL);
    if (ways != 1)
        return err_make(ERR_INPUT, "enroll: expected one of TOKEN, --request FILE, --accept FILE");
    const struct command_given joins[] = {{"base", o->join.base != NULL},
                                          {"data", o->join.data != NULL}};
    if (o->accept == NULL) TRY(command_check_unused(given, 2, "--accept"));
    if (o->request != NULL) TRY(command_check_unused(joins, 2, "a token or --accept"));
    TRY(check_exists("base", o->join.base));
    TRY(check_exists("data", o->join.data));
    if (o->request != NULL) return by_request(o);
    return o->accept != NULL ? by_answer(o) : by_token(o, arguments->item[0]);
}

const struct command command_enroll = {
    .name = "enroll",
    .purpose = "get this machine's certificate from a coordinator, with a token",
    .usage = "TOKEN | - | --request FILE | --accept FILE --ca-hash HASH  [--dir DIR]",
    .example = "fedlora enroll - --dir /etc/fedlora < token",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct enroll_command),
    .most = 1,
    .run = enroll_run,
};
