#include "coordinator/config.h"

#include "base/limits.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

#define AT(field) .at = offsetof(struct config, field)

static const char *const sessions[] = {"refuse", "replace", NULL}; /* as enum config_sessions */
static const char *const log_levels[] = {"debug", "info", "warn", "error", NULL};

/* Secrets are given as paths of files, so that they are not shown by ps or printed with the
 * configuration. Rows without a key exist only on the command line. */
static const struct option_row rows[] = {
    {.flag = "config",
     .kind = OPTION_TEXT,
     AT(file),
     .value = "FILE",
     .help = "the configuration file"},
    {.flag = "set",
     .kind = OPTION_LIST,
     AT(set),
     .value = "SECTION.KEY=VALUE",
     .help = "override one value of the configuration file; may be repeated"},
    {.flag = "check",
     .kind = OPTION_FLAG,
     AT(check),
     .help = "check keys, files, certificates, address and disk, without starting"},
    {.flag = "json",
     .kind = OPTION_FLAG,
     AT(json),
     .help = "print the report of --check as one JSON document"},
    {.flag = "accept-copy",
     .kind = OPTION_FLAG,
     AT(accept_copy),
     .help = "make this copy of the store, for example a restored backup, the one that members "
             "accept; starts nothing"},
    {.flag = "sample",
     .kind = OPTION_FLAG,
     AT(sample),
     .help = "print a commented configuration file"},
    {.flag = "listen",
     .key = "server.listen",
     .kind = OPTION_TEXT,
     AT(listen),
     .fallback = "127.0.0.1:7443",
     .value = "HOST:PORT",
     .help = "address of the gRPC service"},
    {.key = "server.address",
     .kind = OPTION_TEXT,
     AT(address),
     .value = "HOST:PORT",
     .help = "the same address as members reach it, for their configuration; default: the host "
             "of the token, with this port"},
    {.flag = "ca",
     .key = "server.ca",
     .kind = OPTION_TEXT,
     AT(ca),
     .required = true,
     .value = "FILE",
     .help = "certificate authority of members and operators (PEM)"},
    {.flag = "cert",
     .key = "server.cert",
     .kind = OPTION_TEXT,
     AT(cert),
     .required = true,
     .value = "FILE",
     .help = "this server's certificate (PEM)"},
    {.flag = "key",
     .key = "server.key",
     .kind = OPTION_TEXT,
     AT(key),
     .required = true,
     .value = "FILE",
     .help = "private key of this server (PEM)"},
    {.flag = "threads",
     .key = "server.threads",
     .kind = OPTION_INT,
     AT(threads),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_THREADS,
     .value = "N",
     .help = "threads that combine updates; 0: one for each core"},
    {.flag = "data",
     .key = "store.path",
     .kind = OPTION_TEXT,
     AT(path),
     .required = true,
     .value = "DIR",
     .help = "folder of the database, states and updates"},
    {.key = "store.database",
     .kind = OPTION_TEXT,
     AT(database),
     .value = "postgresql://...",
     .help = "PostgreSQL database for everything but states and updates; default: the file "
             "fedlora.db in the folder"},
    /* At least 2, because the report of a round also reads the state that the round started
     * from. */
    {.key = "store.keep_states",
     .kind = OPTION_INT,
     AT(keep_states),
     .fallback = "2",
     .least = 2,
     .most = LIMIT_ROUNDS,
     .value = "N",
     .help = "published states kept for each run, including the newest"},
    {.key = "store.keep_updates",
     .kind = OPTION_INT,
     AT(keep_updates),
     .fallback = "1",
     .least = 0,
     .most = LIMIT_ROUNDS,
     .value = "N",
     .help = "published rounds whose updates are kept, including the newest; 0: they are removed "
             "as soon as "
             "the state that counts them is published"},
    {.key = "store.keep_finished",
     .kind = OPTION_DURATION,
     AT(keep_finished_ms),
     .fallback = "90d",
     .value = "TIME",
     .help =
         "after this time a finished or stopped run is archived: its updates and all states but "
         "the last are removed; 0: never"},
    {.key = "store.keep_events",
     .kind = OPTION_DURATION,
     AT(keep_events_ms),
     .fallback = "1y",
     .value = "TIME",
     .help = "events of members and rounds that are older are removed; 0: never"},
    {.key = "store.archive",
     .kind = OPTION_TEXT,
     AT(archive),
     .value = "DIR",
     .help = "folder for a copy of the last state and of the record of each run that is archived; "
             "default: no copy"},
    {.key = "store.reserve",
     .kind = OPTION_SIZE,
     AT(reserve_bytes),
     .fallback = "64MiB",
     .value = "SIZE",
     .help = "disk space that uploads leave free"},
    {.key = "store.upload_age",
     .kind = OPTION_DURATION,
     AT(upload_age_ms),
     .fallback = "72h",
     .value = "TIME",
     .help = "unfinished uploads older than this are removed at the next start"},
    {.flag = "ledger-key",
     .key = "privacy.ledger_key",
     .kind = OPTION_TEXT,
     AT(ledger_key),
     .value = "FILE",
     .help = "Ed25519 key (PEM, mode 0600) that signs privacy ledgers; needed for private runs"},
    {.key = "audit.key",
     .kind = OPTION_TEXT,
     AT(audit_key),
     .value = "FILE",
     .help = "Ed25519 key (PEM, mode 0600) that signs the audit log; made if it does not exist; "
             "default: audit/audit.key in the data folder"},
    {.flag = "federation",
     .key = "federation.name",
     .kind = OPTION_TEXT,
     AT(federation),
     .required = true,
     .value = "NAME",
     .help = "name of the federation, as in every certificate's identity"},
    {.key = "federation.members",
     .kind = OPTION_TEXT,
     AT(members),
     .value = "ID,ID,...",
     .help = "members that may take part in runs, beside those that were added by fedlora token "
             "and fedlora member; may be empty"},
    {.key = "federation.admins",
     .kind = OPTION_TEXT,
     AT(admins),
     .value = "ID,ID,...",
     .help = "operators; default: every holder of an admin certificate"},
    {.key = "enroll.listen",
     .kind = OPTION_TEXT,
     AT(enroll_listen),
     .fallback = "",
     .value = "HOST:PORT",
     .help = "address at which institutions enrol with a token; empty: closed"},
    {.key = "enroll.address",
     .kind = OPTION_TEXT,
     AT(enroll_address),
     .value = "HOST:PORT",
     .help = "the same address as institutions reach it, for tokens; default: the host by which "
             "the operator reached the server"},
    {.key = "enroll.signer",
     .kind = OPTION_TEXT,
     AT(signer),
     .fallback = "builtin",
     .value = "builtin|command:PATH",
     .help = "who signs certificates: this process with the next two files, or a command that "
             "reads a request (PEM) and prints the certificate and its chain (PEM)"},
    {.key = "enroll.cert",
     .kind = OPTION_TEXT,
     AT(enroll_cert),
     .value = "FILE",
     .help = "certificate of the issuing authority (PEM), for signer = builtin"},
    {.key = "enroll.key",
     .kind = OPTION_TEXT,
     AT(enroll_key),
     .value = "FILE",
     .help = "key of the issuing authority (PEM, mode 0600), for signer = builtin"},
    {.key = "enroll.signer_timeout",
     .kind = OPTION_DURATION,
     AT(signer_ms),
     .fallback = "30s",
     .value = "TIME",
     .help = "longest time that the command may take"},
    {.key = "enroll.member_life",
     .kind = OPTION_DURATION,
     AT(member_life_ms),
     .fallback = "30d",
     .value = "TIME",
     .help = "life of members' certificates, which renew themselves at two thirds of it"},
    {.key = "enroll.admin_life",
     .kind = OPTION_DURATION,
     AT(admin_life_ms),
     .fallback = "7d",
     .value = "TIME",
     .help = "life of operators' certificates, which renew themselves when they are used"},
    {.key = "limits.update_bytes",
     .kind = OPTION_SIZE,
     AT(update_bytes_max),
     .fallback = "2GiB",
     .value = "SIZE",
     .help = "largest update or file that is accepted"},
    {.key = "limits.absent_after",
     .kind = OPTION_DURATION,
     AT(absent_ms),
     .fallback = "90s",
     .value = "TIME",
     .help = "a member is shown as absent after this time without a call"},
    {.key = "limits.retry_after",
     .kind = OPTION_DURATION,
     AT(retry_ms),
     .fallback = "10s",
     .value = "TIME",
     .help = "wait after a full disk before trying again"},
    {.key = "limits.poll",
     .kind = OPTION_DURATION,
     AT(poll_ms),
     .fallback = "30s",
     .value = "TIME",
     .help = "longest time that a waiting call is kept open"},
    {.key = "limits.open_runs",
     .kind = OPTION_INT,
     AT(open_runs),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_RUNS,
     .value = "N",
     .help = "runs that have begun and are not over; further runs are queued; 0: no limit"},
    {.key = "limits.rounds_at_once",
     .kind = OPTION_INT,
     AT(rounds_at_once),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_RUNS,
     .value = "N",
     .help = "rounds under way in all runs together; further runs take turns; 0: no limit"},
    {.key = "limits.sessions",
     .kind = OPTION_CHOICE,
     AT(sessions),
     .fallback = "refuse",
     .choices = sessions,
     .help = "a second machine with the certificate of a member that is connected: refuse it, or "
             "let it replace the first"},
    {.key = "limits.calls_per_second",
     .kind = OPTION_NUM,
     AT(calls_per_second),
     .fallback = "50",
     .least = 0,
     .most = 1e6,
     .value = "N",
     .help = "calls of one peer in a second, after a burst of four times as many; 0: no limit"},
    {.key = "http.listen",
     .kind = OPTION_TEXT,
     AT(http_listen),
     .value = "HOST:PORT",
     .help = "address of the read-only pages for monitoring, without encryption and without a "
             "password, for example 127.0.0.1:7480; none: they are off"},
    {.flag = "log-level",
     .key = "log.level",
     .kind = OPTION_CHOICE,
     AT(log_level),
     .fallback = "info",
     .choices = log_levels,
     .value = "LEVEL",
     .help = "log events of this level and above"},
    {.flag = "log-json",
     .key = "log.json",
     .kind = OPTION_FLAG,
     AT(log_json),
     .help = "log lines as JSON"},
    {.flag = "help", .letter = 'h', .kind = OPTION_FLAG, AT(help), .help = "this text"},
    {.flag = "version", .kind = OPTION_FLAG, AT(version), .help = "print the version"},
};
static const struct option_table table = {rows, sizeof rows / sizeof *rows};
static const struct option_set options = {.table = &table, .count = 1};

/* Splits "a, b,c". An empty name between commas is skipped; a name that cannot be an identity is
 * ERR_INPUT. */
static err split_names(struct option_list *out, const char *text, const char *key,
                       struct arena *arena)
{
    size_t most = 1;
    struct option_list list = {0};
    for (const char *p = text; p && *p; p++)
        most += *p == ',';
    TRY(arena_take(&list.item, arena, most, sizeof *list.item));
    while (text && *text) {
        size_t n = strcspn(text, ","), start = strspn(text, " \t"), end = n;
        while (end > start && (text[end - 1] == ' ' || text[end - 1] == '\t'))
            end--;
        if (end > start) {
            const char *name;
            TRY(arena_text(&name, arena, text + start, end - start));
            if (!text_is_name(name, LIMIT_NAME_BYTES - 1))
                return err_make(ERR_INPUT,
                                "%s: \"%s\" is not a name (letters, digits, '.', '_', '-')", key,
                                name);
            list.item[list.count++] = name;
        }
        text += n + (text[n] == ',');
    }
    if (list.count > LIMIT_MEMBERS)
        return err_make(ERR_INPUT, "%s: %zu names, at most %d", key, list.count, LIMIT_MEMBERS);
    *out = list;
    return ERR_NONE;
}

/* option_check() only knows that these keys are present; an empty value would fail later with a
 * message about a file "". */
static err check_paths(const struct config *c)
{
    const char *const value[][2] = {
        {"server.listen", c->listen}, {"server.ca", c->ca},    {"server.cert", c->cert},
        {"server.key", c->key},       {"store.path", c->path}, {"federation.name", c->federation}};
    for (size_t i = 0; i < sizeof value / sizeof *value; i++)
        if (!*value[i][1]) return err_make(ERR_INPUT, "%s: is empty", value[i][0]);
    return ERR_NONE;
}

/* One option for both ways of signing, so that they cannot contradict each other. */
const char *config_signer_command(const struct config *config)
{
    static const char prefix[] = "command:";
    size_t size = sizeof prefix - 1;
    return strncmp(config->signer, prefix, size) ? NULL : config->signer + size;
}

/* A path without a slash would be looked up in PATH, and a service has its own. */
static err check_signer(const struct config *c)
{
    const char *command = config_signer_command(c);
    if (command ? *command != '/' : strcmp(c->signer, "builtin") != 0)
        return err_make(ERR_INPUT,
                        "enroll.signer: \"%.80s\": expected builtin, or command:/path/of/command",
                        c->signer);
    if (!c->enroll_cert != !c->enroll_key)
        return err_make(ERR_INPUT, "enroll.cert and enroll.key: expected both or none");
    if (*c->enroll_listen && !command && !c->enroll_key)
        return err_make(ERR_INPUT,
                        "enroll.listen: needs enroll.cert and enroll.key, or enroll.signer");
    return ERR_NONE;
}

/* Later sources win: defaults, file, --set, flags. The flags are read twice: first to find --config
 * and --set, then again over the values of the file. */
static err read_all(struct config *c, int argc, char **argv)
{
    struct option_list rest = {0};
    struct config flags = {0}; /* a first look, for the file's name */
    TRY(option_defaults(&flags, &options, &c->arena));
    TRY(option_read_args(&flags, &options, argc, argv, &rest, &c->arena));
    if (rest.count)
        return err_make(ERR_INPUT, "unexpected argument \"%s\"; the file goes after --config",
                        rest.item[0]);
    TRY(option_defaults(c, &options, &c->arena));
    if (flags.file && !(flags.help || flags.version || flags.sample))
        TRY(option_read_file(c, &options, flags.file, &c->arena));
    for (size_t i = 0; i < flags.set.count; i++)
        TRY(option_assign(c, &options, flags.set.item[i], &c->arena));
    TRY(option_read_args(c, &options, argc, argv, &rest, &c->arena));
    if (c->help || c->version || c->sample) return ERR_NONE;
    if (!c->file) return err_make(ERR_INPUT, "--config FILE is needed; --sample prints one");
    TRY(option_check(c, &options));
    TRY(check_paths(c));
    if (!text_is_name(c->federation, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "federation.name: \"%s\" is not a name", c->federation);
    TRY(check_signer(c));
    TRY(split_names(&c->listed, c->members, "federation.members", &c->arena));
    TRY(split_names(&c->listed_admins, c->admins, "federation.admins", &c->arena));
    c->allowed = c->listed;
    c->admin_ids = c->listed_admins;
    c->any_admin = c->listed_admins.count == 0;
    return ERR_NONE;
}

err config_open(struct config *out, int argc, char **argv)
{
    struct config c = {0};
    err e = read_all(&c, argc, argv);
    if (err_is(e))
        config_close(&c);
    else
        *out = c;
    return e;
}

/* `allowed` and `admin_ids` stay: they are the store's, which has more names than the file and may
 * not answer just now. */
err config_reread(struct config *config, struct config_changes *changes, int argc, char **argv)
{
    struct config next = {0};
    struct arena arena = {0};
    TRY(config_open(&next, argc, argv));
    err e = split_names(&next.listed, next.members, "federation.members", &arena);
    if (!err_is(e)) e = split_names(&next.listed_admins, next.admins, "federation.admins", &arena);
    if (err_is(e)) {
        arena_close(&arena);
    } else {
        arena_close(&config->reread);
        config->reread = arena;
        config->listed = next.listed;
        config->listed_admins = next.listed_admins;
        config->any_admin = next.listed_admins.count == 0;
        config_take_live(config, &next, changes);
    }
    config_close(&next);
    return e;
}

void config_close(struct config *config)
{
    arena_close(&config->agreed);
    arena_close(&config->arena);
    arena_close(&config->reread);
    *config = (struct config){0};
}

const struct option_set *config_options(void)
{
    return &options;
}
err config_help(struct bytes *out)
{
    return option_help(out, &options);
}
err config_sample(struct bytes *out)
{
    return option_sample(out, &options);
}
