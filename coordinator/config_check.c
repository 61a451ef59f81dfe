/* --check: finds everything that would stop a start, without starting. */
#include "base/file.h"
#include "base/json.h"
#include "base/lock.h"
#include "base/text.h"
#include "base/version.h"
#include "coordinator/config.h"
#include "coordinator/serve/signer.h"
#include "coordinator/store/store.h"
#include "privacy/ledger/ledger.h"
#include "proto/front_listen.h"
#include "proto/rpc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* All checks are made, also after one that fails, because an operator mends them in one go. */
struct checks {
    const struct config *config;
    struct bytes *report;
    json_t *list; /* NULL: as lines */
    bool running; /* a service runs from this folder */
    err first;    /* the first failure */
};

static err add(struct checks *c, const char *name, err e, const char *text)
{
    if (err_is(e) && !err_is(c->first)) c->first = e;
    if (!c->list)
        return bytes_printf(c->report, "%-12s %s%s\n", name, err_is(e) ? "FAILED: " : "", text);
    json_t *row = json_pack("{s:s, s:b, s:s}", "check", name, "good", !err_is(e), "text", text);
    return json_array_append_new(c->list, row) == 0 ? ERR_NONE : err_sys(ENOMEM, "the report");
}

static err failed(struct checks *c, const char *name, err e)
{
    return add(c, name, e, e.text);
}

static err good(struct checks *c, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static err good(struct checks *c, const char *name, const char *format, ...)
{
    char text[2 * LIMIT_PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return add(c, name, ERR_NONE, text);
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
static err probe_disk(const struct config *c, bool running, uint64_t *left)
{
    struct statvfs fs;
    char left_text[32], reserve[32];
    if (!running)
        TRY(probe_write(c->path));
    else if (access(c->path, W_OK | X_OK) != 0)
        return err_sys(errno, "%s", c->path);
    if (statvfs(c->path, &fs) != 0) return err_sys(errno, "%s", c->path);
    *left = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (*left > c->reserve_bytes) return ERR_NONE;
    text_size(left_text, sizeof left_text, *left);
    text_size(reserve, sizeof reserve, c->reserve_bytes);
    return err_make(ERR_MACHINE, "%s: %s free, but %s must stay free (store.reserve)", c->path,
                    left_text, reserve);
}

/* ---- the checks */

/* The same function as at the start: certificate, key and authority belong together. */
static err check_certificate(struct checks *c)
{
    const struct config *k = c->config;
    int64_t days = 0;
    err e = rpc_tls_check(k->ca, k->cert, k->key, true, &days);
    if (err_is(e)) return failed(c, "certificate", e);
    return good(c, "certificate", "%s: matches its key, signed by %s, valid for %lld days", k->cert,
                k->ca, (long long)days);
}

static err check_ledger_key(struct checks *c)
{
    if (!c->config->ledger_key) return ERR_NONE;
    err e = config_check_ledger_key(c->config);
    return err_is(e) ? failed(c, "ledger key", e)
                     : good(c, "ledger key", "%s: Ed25519, readable by its owner only",
                            c->config->ledger_key);
}

/* A lock held by another process means that the service runs, which is no error. */
static err check_disk(struct checks *c)
{
    const struct config *k = c->config;
    struct lock lock = {0};
    char holder[64] = "", left_text[32];
    uint64_t left = 0;
    bool made = !file_exists(k->path);
    err e = file_make_dirs(k->path);
    if (!err_is(e)) e = lock_try(&lock, k->path, /*wait*/ false);
    c->running = !err_is(e) && lock.fd <= 0;
    int pid = c->running ? lock_holder(k->path) : 0;
    if (!err_is(e)) e = probe_disk(k, c->running, &left);
    forget_disk(k->path, made);
    lock_close(&lock);
    if (err_is(e)) return failed(c, "data", e);
    text_size(left_text, sizeof left_text, left);
    if (pid) snprintf(holder, sizeof holder, ", process %d", pid);
    return good(c, "data", "%s: writable, %s left%s%s", k->path, left_text,
                c->running ? "; in use by a running fedlorad" : "", holder);
}

/* One of another version is upgraded by the next start, or refused by it if it is newer. */
static err check_store(struct checks *c)
{
    const struct config *k = c->config;
    char path[LIMIT_PATH_BYTES];
    struct db db = {0};
    int64_t version = 0;
    const struct store_place place = {.dir = k->path, .database = k->database};
    TRY(store_place_database(path, sizeof path, &place));
    bool server = db_is_server(path);
    if (!server && !file_exists(path))
        return good(c, "store", "%s: is made by the first start", path);
    err e = server ? db_open(&db, path, DB_FLUSHED) : db_open_still(&db, path);
    if (!err_is(e)) e = db_version(&version, &db);
    db_close(&db);
    if (!err_is(e) && !version) return good(c, "store", "%s: empty", path);
    if (!err_is(e) && version > VERSION_STORE)
        e = err_make(ERR_INPUT, "%s: made by a newer fedlorad (version %lld, this one knows %d)",
                     path, (long long)version, VERSION_STORE);
    if (err_is(e)) return failed(c, "store", e);
    return good(c, "store", "%s: version %lld%s", path, (long long)version,
                version < VERSION_STORE ? ", which the next start upgrades" : "");
}

/* A real server on the real address, closed again at once, so that the check fails exactly when
 * a start would. A service that runs from this folder has the address already. */
static err check_address(struct checks *c)
{
    struct rpc_server *server = NULL;
    const struct config *k = c->config;
    struct rpc_server_options options = {.listen = k->listen,
                                         .ca = k->ca,
                                         .cert = k->cert,
                                         .key = k->key,
                                         .federation = k->federation};
    err e = rpc_server_open(&server, &options);
    if (c->running && e.sys == EADDRINUSE)
        return good(c, "address", "%s: in use, probably by the running service", k->listen);
    if (err_is(e)) return failed(c, "address", e);
    rpc_server_close(server, 0);
    return good(c, "address", "%s: free", k->listen);
}

static err check_http(struct checks *c)
{
    struct front_listeners listeners = {0};
    const char *listen = c->config->http_listen;
    if (!listen || !*listen) return ERR_NONE;
    err e = front_listen_text(&listeners, listen, "http.listen");
    if (c->running && e.sys == EADDRINUSE)
        return good(c, "http", "%s: in use, probably by the running service", listen);
    if (err_is(e)) return failed(c, "http", e);
    front_listen_close(&listeners);
    return good(c, "http", "%s: free", listen);
}

static err check_enroll(struct checks *c)
{
    struct front_listeners listeners = {0};
    const char *listen = c->config->enroll_listen;
    if (!err_is(signer_check(c->config))) {
        err e = signer_probe(c->config);
        TRY(err_is(e) ? failed(c, "signer", e)
                      : good(c, "signer", "%s: can sign certificates",
                             config_signer_command(c->config) ? c->config->signer
                                                              : c->config->enroll_cert));
    }
    if (!*listen) return ERR_NONE;
    err e = front_listen_text(&listeners, listen, "enroll.listen");
    if (c->running && e.sys == EADDRINUSE)
        return good(c, "enrolment", "%s: in use, probably by the running service", listen);
    if (err_is(e)) return failed(c, "enrolment", e);
    front_listen_close(&listeners);
    return good(c, "enrolment", "%s: free", listen);
}

err config_check_ledger_key(const struct config *config)
{
    struct ledger_key key;
    if (!config->ledger_key) return ERR_NONE;
    TRY(ledger_key_open(&key, config->ledger_key));
    ledger_key_close(&key);
    return ERR_NONE;
}

static err all_checks(struct checks *c)
{
    TRY(good(c, "configuration", "%s: good", c->config->file));
    TRY(good(c, "federation", "%s, %zu members", c->config->federation, c->config->allowed.count));
    TRY(check_certificate(c));
    TRY(check_ledger_key(c));
    TRY(check_disk(c));
    TRY(check_store(c));
    TRY(check_address(c));
    TRY(check_enroll(c));
    return check_http(c);
}

/* The document has the same rows as the lines. */
static err put_json(struct checks *c)
{
    json_t *all = json_pack("{s:b, s:b, s:O}", "good", !err_is(c->first), "running", c->running,
                            "checks", c->list);
    err e = all ? json_write(c->report, all) : err_sys(ENOMEM, "the report");
    if (!err_is(e)) e = bytes_printf(c->report, "\n");
    json_decref(all);
    return e;
}

err config_check(const struct config *config, struct bytes *report)
{
    struct checks c = {.config = config, .report = report, .first = ERR_NONE};
    if (config->json) c.list = json_array();
    err e = all_checks(&c);
    if (!err_is(e) && c.list) e = put_json(&c);
    json_decref(c.list);
    return err_is(e) ? e : c.first;
}
