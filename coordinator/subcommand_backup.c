/* `fedlorad backup`, `verify` and `restore`. */
#include "base/json.h"
#include "base/text.h"
#include "coordinator/run/run.h"
#include "coordinator/store/backup.h"
#include "coordinator/subcommand.h"

#include <stdio.h>

/* To standard error and at once, so that results on standard output stay alone, and a long check
 * shows what it has found so far. */
static void say(const char *text, void *context)
{
    (void)context;
    fprintf(stderr, "fedlorad: %s\n", text);
}
static const struct backup_notes notes = {say, NULL};

/* `did`: "123 files, 4.5 MB in DIR are good" and the like, without the time. */
static err print_result(const struct subcommand_common *common, const struct backup_result *r,
                        const char *where, const char *did)
{
    char bytes[32], took[32], copied[32];
    struct bytes text = {.max = LIMIT_PATH_BYTES};
    text_size(bytes, sizeof bytes, r->bytes);
    text_size(copied, sizeof copied, r->copied_bytes);
    text_duration(took, sizeof took, r->took_ms);
    if (!common->json) {
        printf("%s %s: %zu files, %s, in %s", where, did, r->files, bytes, took);
        if (r->copied || r->linked)
            printf(" (%zu copied, %s; %zu linked; %zu there before)", r->copied, copied, r->linked,
                   r->kept);
        printf("\n");
        return ERR_NONE;
    }
    json_t *all = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "path", where, "files",
                            (json_int_t)r->files, "bytes", (json_int_t)r->bytes, "copied",
                            (json_int_t)r->copied, "copied_bytes", (json_int_t)r->copied_bytes,
                            "linked", (json_int_t)r->linked, "kept", (json_int_t)r->kept, "wrong",
                            (json_int_t)r->wrong, "took_ms", (json_int_t)r->took_ms);
    err e = all ? json_write(&text, all) : err_make(ERR_MACHINE, "no memory for the result");
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    json_decref(all);
    bytes_close(&text);
    return e;
}

/* Exit status 1 after a result that is not whole, so that a script of backups notices. */
static err judge(const struct backup_result *r, const char *where)
{
    if (!r->wrong) return ERR_NONE;
    return err_make(ERR_STATE, "%.300s: %zu file%s missing or damaged (see above)", where, r->wrong,
                    r->wrong == 1 ? " is" : "s are");
}

/* ---- backup */

struct backup_command {
    struct subcommand_common common;
    const char *to;
    bool incremental, copy;
};
#undef AT
#define AT(member) .at = offsetof(struct backup_command, member)
static const struct option_row backup_rows[] = {
    {.flag = "to",
     .kind = OPTION_TEXT,
     AT(to),
     .required = true,
     .value = "DIR",
     .help = "folder of the backup; it is made if it is missing"},
    {.flag = "incremental",
     .kind = OPTION_FLAG,
     AT(incremental),
     .help = "bring the backup in DIR up to date and copy only files that it does not have"},
    {.flag = "copy",
     .kind = OPTION_FLAG,
     AT(copy),
     .help = "copy files also where a hard link is possible, on the disk of the store"},
};

static err backup_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct backup_command *o = options;
    const struct backup_options make = {.data = o->common.config->path,
                                        .to = o->to,
                                        .federation = o->common.config->federation,
                                        .incremental = o->incremental,
                                        .copy = o->copy};
    struct backup_result r = {0};
    (void)arguments;
    (void)arena;
    if (o->common.config->database)
        return err_make(ERR_INPUT,
                        "backup: store.database is on a server: back it up with pg_dump, and then "
                        "copy %s (docs/postgresql.md)",
                        o->common.config->path);
    TRY(backup_make(&r, &make, &notes));
    TRY(print_result(&o->common, &r, o->to, "is a backup"));
    return judge(&r, o->to);
}

const struct subcommand subcommand_backup = {
    .name = "backup",
    .purpose = "copy the store while the service runs",
    .usage = "--config FILE --to DIR [options]",
    .example = "fedlorad backup --config /etc/fedlora/fedlorad.ini --to /backup/fedlora "
               "--incremental",
    .rows = backup_rows,
    .row_count = sizeof backup_rows / sizeof *backup_rows,
    .options_size = sizeof(struct backup_command),
    .configured = true,
    .run = backup_run,
};

/* ---- verify */

struct verify_command {
    struct subcommand_common common;
    const char *file;
    bool store;
};
#undef AT
#define AT(member) .at = offsetof(struct verify_command, member)
static const struct option_row verify_rows[] = {
    {.flag = "store",
     .kind = OPTION_FLAG,
     AT(store),
     .help = "check the store of --config in place of a backup, also while its service runs"},
    {.flag = "config",
     .kind = OPTION_TEXT,
     AT(file),
     .value = "FILE",
     .help = "the configuration file of the service, for --store"},
};

/* The configuration is read here and not by the table of subcommands, because a backup needs none.
 * */
static err verify_store(struct backup_result *r, struct config *config,
                        const struct verify_command *o)
{
    char *argv[] = {(char *)(uintptr_t) "--config", (char *)(uintptr_t)o->file};
    if (!o->file) return err_make(ERR_INPUT, "verify: --store needs --config FILE");
    TRY(config_open(config, 2, argv));
    const struct store_place place = run_shop_place(config);
    return backup_verify_store(r, &place, &notes);
}

static err verify_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct verify_command *o = options;
    struct backup_result r = {0};
    struct config config = {0};
    (void)arena;
    if (o->store == (arguments->count > 0))
        return err_make(ERR_INPUT, "verify: expected the folder of a backup, or --store");
    const char *where = o->store ? NULL : arguments->item[0];
    err e = o->store ? verify_store(&r, &config, o) : backup_verify(&r, where, &notes);
    if (o->store && !err_is(e)) where = config.path;
    if (!err_is(e)) e = print_result(&o->common, &r, where, r.wrong ? "was read" : "is whole");
    if (!err_is(e)) e = judge(&r, where);
    config_close(&config);
    return e;
}

const struct subcommand subcommand_verify = {
    .name = "verify",
    .purpose = "read a backup, or the store, and compare every file with its digest",
    .usage = "DIR | --store --config FILE",
    .example = "fedlorad verify /backup/fedlora",
    .rows = verify_rows,
    .row_count = sizeof verify_rows / sizeof *verify_rows,
    .options_size = sizeof(struct verify_command),
    .most = 1,
    .run = verify_run,
};

/* ---- restore */

struct restore_command {
    struct subcommand_common common;
    const char *to;
    bool accept;
};
#undef AT
#define AT(member) .at = offsetof(struct restore_command, member)
static const struct option_row restore_rows[] = {
    {.flag = "to",
     .kind = OPTION_TEXT,
     AT(to),
     .required = true,
     .value = "PATH",
     .help = "folder of the restored store (store.path); it must be new or empty"},
    {.flag = "accept",
     .kind = OPTION_FLAG,
     AT(accept),
     .help = "the original will never run again: members that have worked with it after the "
             "backup accept this copy"},
};

static err restore_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct restore_command *o = options;
    const struct backup_restore restore = {
        .from = arguments->item[0], .to = o->to, .accept = o->accept};
    struct backup_result r = {0};
    (void)arena;
    TRY(backup_restore(&r, &restore, &notes));
    TRY(print_result(&o->common, &r, o->to, "is restored"));
    return judge(&r, o->to);
}

const struct subcommand subcommand_restore = {
    .name = "restore",
    .purpose = "make a store from a backup",
    .usage = "DIR --to PATH [--accept]",
    .example = "fedlorad restore /backup/fedlora --to /var/lib/fedlora --accept",
    .rows = restore_rows,
    .row_count = sizeof restore_rows / sizeof *restore_rows,
    .options_size = sizeof(struct restore_command),
    .least = 1,
    .most = 1,
    .run = restore_run,
};
