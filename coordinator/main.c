/* fedlorad: reads its configuration, locks the data folder, recovers from a crash, serves until
 * it is asked to stop, and finishes what is in progress. */
#include "base/file.h"
#include "base/lock.h"
#include "base/text.h"
#include "base/version.h"
#include "coordinator/http/http.h"
#include "coordinator/manager.h"
#include "coordinator/reload.h"
#include "coordinator/serve/serve.h"
#include "coordinator/store/backup.h"
#include "coordinator/store/store_files.h"
#include "coordinator/store/wal.h"
#include "coordinator/subcommand.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>

enum { STEP_MS = 500, GRACE_MS = 5000, HELP_BYTES_MAX = 65536 };

static volatile sig_atomic_t stop_wanted, reload_wanted;

/* Signal handlers may only set flags; the loop reads them at least every STEP_MS. */
static void on_signal(int number)
{
    if (number == SIGHUP)
        reload_wanted = 1;
    else
        stop_wanted = 1;
}

/* Without SA_RESTART a signal also ends the wait of the loop. SIGPIPE is ignored because a peer
 * that leaves must not end the process. A second interrupt of an impatient user ends it at once,
 * which costs nothing but the grace of open calls. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static err print(err (*make)(struct bytes *out), const char *before, const char *after)
{
    struct bytes text = {.max = HELP_BYTES_MAX};
    err e = make(&text);
    if (!err_is(e)) printf("%s%s%s", before, (const char *)text.data, after);
    bytes_close(&text);
    return e;
}

static err help_text(struct bytes *out)
{
    TRY(bytes_printf(out, "Commands:\n"));
    TRY(subcommand_list(out));
    TRY(bytes_printf(out, "\nOptions of the service:\n"));
    return config_help(out);
}

static err help(void)
{
    return print(
        help_text,
        "usage: fedlorad --config FILE [options]\n"
        "       fedlorad COMMAND [options]\n\n"
        "Coordinates federated fine-tuning: schedules rounds, receives members' updates, and\n"
        "publishes the combined state.\n\n",
        "\nExample: fedlorad --config fedlorad.ini --check\n");
}

static err check(const struct config *config)
{
    struct bytes report = {.max = HELP_BYTES_MAX};
    err e = config_check(config, &report);
    if (report.size) printf("%s", (const char *)report.data);
    bytes_close(&report);
    return e;
}

/* A folder made by mkdir has mode 0755, and the database holds the seed of secret draws. */
static err keep_private(const char *path)
{
    static const char *const names[] = {"", "fedlora.db", "fedlora.db-wal", "fedlora.db-shm"};
    char file[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        unsigned was = 0;
        TRY(file_join(file, sizeof file, path, names[i]));
        TRY(file_make_private(&was, *names[i] ? file : path));
        if (was)
            LOG(LOG_WARN, "store.made_private", LOG_STR("path", *names[i] ? file : path),
                LOG_STR("says", "other users could read it"));
    }
    return ERR_NONE;
}

/* Claimed, because what follows may change files and rows that a live coordinator needs. */
static err open_checked(struct store *store, const struct config *config)
{
    bool whole = false;
    const struct store_place place = run_shop_place(config);
    TRY(wal_check(config->path));
    err e = store_open_at(store, &place);
    if (e.sys == EUCLEAN)
        return err_make(ERR_INPUT, "%s; restore the database from a backup", e.text);
    TRY(e);
    e = db_claim(&store->db);
    if (!err_is(e)) e = store_check(&whole, store);
    if (err_is(e))
        store_close(store);
    else if (!whole)
        LOG(LOG_WARN, "store.checked_in_part", LOG_STR("path", config->path),
            LOG_STR("says", "the database is large: the start did not wait for a whole check; "
                            "`PRAGMA integrity_check` of sqlite3 makes one"));
    return e;
}

static void say_lost(const char *path, const char *text, void *context)
{
    (void)context;
    LOG(LOG_WARN, "file.lost", LOG_STR("path", path), LOG_STR("says", text));
}

/* Needs the lock, because it removes files that another process might be making. */
static err recover(int64_t *migrated_from, const struct config *config)
{
    struct store store = {0};
    struct store_recovered found = {0};
    TRY(open_checked(&store, config));
    err e = store_recover(&found, &store, config->upload_age_ms);
    if (!err_is(e)) e = store_forget_lost(&store, say_lost, NULL);
    *migrated_from = store.migrated_from;
    store_close(&store);
    if (!err_is(e) && found.removed)
        LOG(LOG_INFO, "store.recovered", LOG_STR("path", config->path),
            LOG_INT("files_removed", found.removed));
    if (!err_is(e) && found.lost)
        LOG(LOG_WARN, "store.lost", LOG_STR("path", config->path),
            LOG_INT("files_moved", found.lost), LOG_STR("to", "lost/"));
    return e;
}

static void report_migration(struct serve *s, int64_t from)
{
    char text[160];
    if (!from) return;
    snprintf(text, sizeof text,
             "the tables of the store were those of version %lld and have been brought up to date; "
             "an older fedlorad cannot read them any more",
             (long long)from);
    trouble_raise(s->shop.troubles, &(struct trouble_case){.kind = TROUBLE_MIGRATED, .text = text},
                  text_now_ms());
    AUDIT(s->shop.audit, NULL, "store.migrated", "", "ok", LOG_INT("from", from),
          LOG_INT("to", VERSION_STORE));
}

/* A store that was restored says so once. The note is removed only after that is in the audit log,
 * so a crash repeats the line and never loses it. */
static void report_restore(struct serve *s)
{
    char path[LIMIT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    if (err_is(file_join(path, sizeof path, s->config->path, BACKUP_NOTE)) || !file_exists(path))
        return;
    err e = file_read_all(&text, &size, path, LIMIT_PATH_BYTES);
    if (!err_is(e)) {
        text_tame(text);
        LOG(LOG_WARN, "store.restored", LOG_STR("from", text));
        AUDIT(s->shop.audit, NULL, "store.restored", text, "ok", LOG_STR("path", s->config->path));
        e = audit_flush(s->shop.audit);
    }
    if (!err_is(e)) file_disk.unlink(path);
    free(text);
}

/* The first line of a log says what runs: the build, the store, the configuration, and how long its
 * certificate lasts. A problem with a file is reported by the step that needs it. */
static void say_starting(const struct config *config)
{
    struct digest digest = {0};
    char text[DIGEST_TEXT_BYTES] = "";
    int64_t days = 0;
    if (!err_is(digest_of_file(&digest, config->file))) digest_text(text, &digest);
    text[16] = 0;
    err e = rpc_tls_check(config->ca, config->cert, config->key, /*server*/ true, &days);
    const struct log_field field[] = {
        LOG_STR("version", FEDLORA_VERSION), LOG_STR("commit", version_commit()),
        LOG_INT("store", VERSION_STORE),     LOG_STR("config", config->file),
        LOG_STR("config_digest", text),      LOG_INT("certificate_days", days)};
    log_event(LOG_INFO, "fedlorad.starting", field, err_is(e) ? 5 : 6);
}

/* --accept-copy */
static err accept_copy(const struct config *config)
{
    struct lock lock = {0};
    struct store store = {0};
    TRY(lock_open(&lock, config->path));
    err e = open_checked(&store, config);
    if (!err_is(e)) e = store_epoch_accept(&store);
    if (!err_is(e)) printf("%s is the copy that members accept from now on\n", config->path);
    store_close(&store);
    lock_close(&lock);
    return e;
}

/* Order of the start: the key, so that a private run does not fail later; the folder and its lock;
 * recovery; then the service. `s` is static because its address must not change. The lock is
 * released last, when no thread uses the folder any more. */
static err run_service(struct config *config, int argc, char **argv)
{
    static struct serve s;
    struct lock lock = {0};
    struct http *http = NULL;
    int64_t migrated_from = 0;
    struct manager manager = {0};
    err e = ERR_NONE;
    say_starting(config);
    manager_starting();
    TRY_OUT(e, config_check_ledger_key(config));
    TRY_OUT(e, file_make_dirs(config->path));
    TRY_OUT(e, keep_private(config->path));
    TRY_OUT(e, lock_open(&lock, config->path));
    TRY_OUT(e, http_open(&http, config));
    TRY_OUT(e, recover(&migrated_from, config));
    TRY_OUT(e, serve_open(&s, config));
    LOG(LOG_INFO, "fedlorad.ready", LOG_STR("listen", config->listen),
        LOG_INT("port", rpc_server_port(s.server)), LOG_STR("federation", config->federation),
        LOG_INT("members", config->allowed.count), LOG_STR("data", config->path),
        LOG_INT("runs", s.run_count));
    report_migration(&s, migrated_from);
    report_restore(&s);
    manager_ready(&manager, &s);
    while (!stop_wanted && !db_taken_over()) {
        serve_step(&s, STEP_MS);
        http_turn(http, &s);
        manager_turn(&manager, &s, text_now_ms());
        if (!reload_wanted) continue;
        reload_wanted = 0;
        manager_reloading(&manager);
        reload(&s, config, argc, argv);
    }
    if (db_taken_over())
        e = err_make(ERR_MACHINE, "another coordinator has taken over the database of this one");
    manager_stopping();
    LOG(LOG_INFO, "fedlorad.stopping", LOG_INT("open_calls", rpc_server_calls(s.server)));
    http_drain(http);
    serve_close(&s, GRACE_MS);
    LOG(LOG_INFO, "fedlorad.stopped", LOG_STR("data", config->path));
out:
    http_close(http);
    lock_close(&lock);
    return e;
}

/* Files of the store hold members' updates, and the seed of secret draws; memory holds the server's
 * key, which must not get into a core file. LeakSanitizer needs a process that can be traced. */
static void keep_secrets(void)
{
    umask(077);
#ifndef __SANITIZE_ADDRESS__
    prctl(PR_SET_DUMPABLE, 0);
#endif
}

int main(int argc, char **argv)
{
    struct config config = {0};
    catch_signals();
    keep_secrets();
    /* Buffers of chunks are mapped, so that freeing one returns its memory to the system even if
     * later heap memory is in use. With 64 uploads of 39 MB this lowers the peak from 208 MB to 173
     * MB. */
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    if (subcommand_asked(argc, argv)) {
        err failed = subcommand_main(argc, argv);
        if (err_is(failed)) fprintf(stderr, "fedlorad: %s\n", failed.text);
        return err_exit_code(failed);
    }
    err e = config_open(&config, argc - 1, argv + 1);
    if (err_is(e)) {
        fprintf(stderr, "fedlorad: %s\n", e.text);
        return err_exit_code(e);
    }
    log_init((enum log_level)config.log_level, config.log_json);
    if (config.version)
        printf("fedlorad %s, store %d\n", version_text(), VERSION_STORE);
    else if (config.help)
        e = help();
    else if (config.sample)
        e = print(config_sample, "", "");
    else {
        /* Before any thread exists and before --check uses TLS (proto/rpc.h). */
        e = rpc_init();
        if (!err_is(e))
            e = config.check         ? check(&config)
                : config.accept_copy ? accept_copy(&config)
                                     : run_service(&config, argc - 1, argv + 1);
    }
    if (err_is(e)) fprintf(stderr, "fedlorad: %s\n", e.text);
    config_close(&config);
    return err_exit_code(e);
}
