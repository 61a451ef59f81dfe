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
 * a start would. A service that runs from this folder has the address already. */
static err check_address(const struct config *c, bool running, struct bytes *report)
{
    struct rpc_server *server = NULL;
    struct rpc_server_options options = {.listen = c->listen,
                                         .ca = c->ca,
                                         .cert = c->cert,
                                         .key = c->key,
                                         .federation = c->federation};
    err e = rpc_server_open(&server, &options);
    if (running && e.sys == EADDRINUSE)
        return bytes_printf(report, "address      %s: in use, probably by the running service\n",
                            c->listen);
    if (err_is(e)) return e;
    rpc_server_close(server, 0);
    return bytes_printf(report, "address      %s: free\n", c->listen);
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
static err probe_write(const char *dir)
{
    char probe[LIMIT_PATH_BYTES];
    TRY(file_join(probe, sizeof probe, dir, "check"));
    TRY(file_write(probe, "fedlora", 7, true));
    if (file_disk.unlink(probe) != 0) return err_sys(errno, "%s", probe);
    return ERR_NONE;
}

/* Nothing is written to the folder of a running service. */
static err probe_disk(const struct config *c, bool running, struct bytes *report)
{
    struct statvfs fs;
    char left_text[32], reserve[32];
    if (!running)
        TRY(probe_write(c->path));
    else if (access(c->path, W_OK | X_OK) != 0)
        return err_sys(errno, "%s", c->path);
    if (statvfs(c->path, &fs) != 0) return err_sys(errno, "%s", c->path);
    uint64_t left = (uint64_t)fs.f_bavail * fs.f_frsize;
    text_size(left_text, sizeof left_text, left);
    text_size(reserve, sizeof reserve, c->reserve_bytes);
    if (left <= c->reserve_bytes)
        return err_make(ERR_MACHINE, "%s: %s free, but %s must stay free (store.reserve)", c->path,
                        left_text, reserve);
    return bytes_printf(report, "data         %s: writable, %s left%s\n", c->path, left_text,
                        running ? "; in use by a running fedlorad" : "");
}

/* *running: another process has the lock of the folder. */
static err check_disk(const struct config *c, bool *running, struct bytes *report)
{
    struct lock lock = {0};
    bool made = !file_exists(c->path);
    TRY(file_make_dirs(c->path));
    err e = lock_try(&lock, c->path, /*wait*/ false);
    *running = !err_is(e) && lock.fd <= 0;
    if (!err_is(e)) e = probe_disk(c, *running, report);
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
    bool running = false;
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
    TRY(check_disk(config, &running, report));
    return check_address(config, running, report);
}
