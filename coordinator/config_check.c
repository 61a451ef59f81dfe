/* --check: finds everything that would stop a start, without starting. */
#include "base/file.h"
#include "base/lock.h"
#include "base/text.h"
#include "coordinator/config.h"
#include "privacy/ledger/ledger.h"
#include "proto/rpc.h"

#include <errno.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* A real server on the real address, closed again at once, so that the check fails exactly when
 * a start would. */
static err check_address(const struct config *c)
{
    struct rpc_server *server = NULL;
    struct rpc_server_options options = {.listen = c->listen,
                                         .ca = c->ca,
                                         .cert = c->cert,
                                         .key = c->key,
                                         .federation = c->federation};
    TRY(rpc_server_open(&server, &options));
    rpc_server_close(server, 0);
    return ERR_NONE;
}

/* Removes the folder that the check itself has made. rmdir() fails if anything else is in it, so
 * data is never lost. */
static void forget_disk(const char *dir, bool made)
{
    char path[LIMIT_PATH_BYTES];
    if (!made || err_is(file_join(path, sizeof path, dir, "lock"))) return;
    file_disk.unlink(path);
    rmdir(dir);
}

/* Writing a file finds out more than looking at permissions: quotas, read-only mounts. */
static err probe_disk(const struct config *c, struct bytes *report)
{
    struct statvfs fs;
    char probe[LIMIT_PATH_BYTES], left_text[32], reserve[32];
    TRY(file_join(probe, sizeof probe, c->path, "check"));
    TRY(file_write(probe, "fedlora", 7, true));
    if (file_disk.unlink(probe) != 0 || statvfs(c->path, &fs) != 0)
        return err_sys(errno, "%s", c->path);
    uint64_t left = (uint64_t)fs.f_bavail * fs.f_frsize;
    text_size(left_text, sizeof left_text, left);
    text_size(reserve, sizeof reserve, c->reserve_bytes);
    if (left <= c->reserve_bytes)
        return err_make(ERR_MACHINE, "%s: %s free, but %s must stay free (store.reserve)", c->path,
                        left_text, reserve);
    return bytes_printf(report, "data         %s: writable, %s left\n", c->path, left_text);
}

static err check_disk(const struct config *c, struct bytes *report)
{
    struct lock lock = {0};
    bool made = !file_exists(c->path);
    TRY(file_make_dirs(c->path));
    err e = lock_open(&lock, c->path);
    if (!err_is(e)) e = probe_disk(c, report);
    forget_disk(c->path, made);
    lock_close(&lock);
    return e;
}

err config_check_ledger_key(const struct config *config)
{
    struct ledger_key key;
    if (!config->ledger_key) return ERR_NONE;
    TRY(ledger_key_open(&key, config->ledger_key));
    ledger_key_close(&key);
    return ERR_NONE;
}

err config_check(const struct config *config, struct bytes *report)
{
    int64_t days = 0;
    TRY(rpc_tls_check(config->ca, config->cert, config->key, true, &days));
    TRY(bytes_printf(report, "configuration %s: good\n", config->file));
    TRY(bytes_printf(report, "federation   %s, %zu members\n", config->federation,
                     config->allowed.count));
    TRY(bytes_printf(report,
                     "certificate  %s: matches its key, signed by %s, valid for %lld days\n",
                     config->cert, config->ca, (long long)days));
    TRY(config_check_ledger_key(config));
    if (config->ledger_key)
        TRY(bytes_printf(report, "ledger key   %s: Ed25519, readable by its owner only\n",
                         config->ledger_key));
    TRY(check_disk(config, report));
    TRY(check_address(config));
    return bytes_printf(report, "address      %s: free\n", config->listen);
}
