/* The findings of fedlora doctor about a member's configuration, certificate, disk and connection.
 * Each is useful alone: what the coordinator would say is not needed to see that a certificate has
 * ended. */
#include "client/command/doctor.h"

#include "base/file.h"
#include "base/text.h"
#include "client/identity/renewal.h"
#include "client/session/session_work.h"
#include "engine/model/model.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { DAY_S = 24 * 60 * 60, RANK_USUAL = 16 };

static double days_of(int64_t seconds)
{
    return (double)seconds / DAY_S;
}

/* ---------------------------------------------------------------- the configuration */

static const void *value_of(const struct option_set *set, const void *options, const char *key)
{
    return (const char *)options + option_row_of_key(set, key)->at;
}

static const char *text_of(const struct option_set *set, const void *options, const char *key)
{
    return *(const char *const *)value_of(set, options, key);
}

/* A file that join needs. Reading one byte finds more than looking at permissions. */
static void find_path(struct findings *f, const char *key, const char *path)
{
    if (!path) return;
    struct finding *found = doctor_add(f, key);
    snprintf(found->value, sizeof found->value, "%s", path);
    if (access(path, R_OK) != 0) found->problem = strerror(errno);
}

/* The limits that the administrator has set, as the file has them. */
static void find_policy(struct findings *f, const struct option_set *set, const void *options,
                        const void *defaults)
{
    struct finding *policy = doctor_add(f, "policy");
    const struct option_row *row;
    size_t used = 0, room = sizeof policy->value;
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        char now[256] = "", usual[256] = "";
        if (!row->key || strncmp(row->key, "policy.", 7) != 0) continue;
        if (!option_text(now, sizeof now, options, row)) continue;
        option_text(usual, sizeof usual, defaults, row);
        if (strcmp(now, usual) == 0 || used >= room) continue;
        used += (size_t)snprintf(policy->value + used, room - used, "%s%s = %s", used ? ", " : "",
                                 row->key + 7, now);
    }
    if (!used) snprintf(policy->value, room, "none: every run is joined");
}

/* Bytes of a state with factors of this rank for every layer of the base; 0: not known. */
static uint64_t state_bytes(const char *base, int64_t rank)
{
    struct model model = {0};
    uint64_t values = 0;
    if (!base || err_is(model_open(&model, base))) return 0;
    for (uint64_t i = 0; i < (uint64_t)model.arch.layers * MODULE_KINDS; i++) {
        enum module_kind kind = (enum module_kind)(i % MODULE_KINDS);
        uint32_t d_out, d_in;
        if (!model_has_module(&model.arch, kind)) continue;
        model_module_shape(&d_out, &d_in, &model.arch, kind);
        values += (uint64_t)rank * ((uint64_t)d_out + d_in);
    }
    model_close(&model);
    return values * sizeof(float);
}

/* The nearest folder that exists, because join makes the others. */
static bool disk_of(struct statvfs *out, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    snprintf(path, sizeof path, "%s", dir);
    for (;;) {
        if (statvfs(path, out) == 0) return true;
        char *slash = strrchr(path, '/');
        if (!slash) return statvfs(".", out) == 0;
        if (slash == path) return statvfs("/", out) == 0;
        *slash = 0;
    }
}

/* A round keeps up to four files of this size: the state, its frozen factors, the update, and a
 * download under way. */
static void find_work_disk(struct findings *f, const struct option_set *set, const void *options)
{
    const char *cert = text_of(set, options, "server.cert");
    int64_t rank = *(const int64_t *)value_of(set, options, "join.rank");
    struct renewal self = {0};
    struct statvfs fs;
    char dir[LIMIT_PATH_BYTES], free_text[32], state_text[32];
    if (!text_of(set, options, "join.base")) return; /* an operator's file */
    const struct rpc_client_options files = {.cert = cert, .key = cert};
    err e = cert ? renewal_read(&self, &files) : ERR_NONE;
    if (!err_is(e))
        e = session_work_find_dir(dir, sizeof dir, text_of(set, options, "join.work"), &self.self);
    struct finding *disk = doctor_add(f, "work directory");
    if (err_is(e) || !disk_of(&fs, dir)) {
        snprintf(disk->value, sizeof disk->value, "%.500s", err_is(e) ? e.text : dir);
        disk->problem = "its free space is not known";
        return;
    }
    uint64_t bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    uint64_t state = state_bytes(text_of(set, options, "join.base"), rank ? rank : RANK_USUAL);
    text_size(free_text, sizeof free_text, bytes);
    text_size(state_text, sizeof state_text, state);
    snprintf(disk->value, sizeof disk->value, "%.300s, %s free; a state of rank %lld has %s", dir,
             free_text, (long long)(rank ? rank : RANK_USUAL), state ? state_text : "unknown size");
    doctor_number(f, "work_free_bytes", (double)bytes);
    if (state) doctor_number(f, "state_bytes", (double)state);
    if (bytes / 4 < state) disk->problem = "less free space than a round needs (four states)";
}

/* The rows of join read the file again, so that a wrong key or value is found before a member is
 * started with it. The file of an operator has none of join's values, which is no problem. */
void doctor_join_file(struct findings *f, const char *path, struct arena *arena)
{
    static const char *const keys[] = {"join.base", "join.data", "join.eval_data",
                                       "privacy.ledger_key"};
    struct option_table table[COMMAND_TABLES];
    const struct option_set set = command_set(&command_join, table);
    struct finding *file = doctor_add(f, "configuration");
    void *options = NULL, *defaults = NULL;
    err e = arena_take(&options, arena, 1, command_join.options_size);
    if (!err_is(e)) e = arena_take(&defaults, arena, 1, command_join.options_size);
    if (!err_is(e)) e = option_defaults(options, &set, arena);
    if (!err_is(e)) e = option_defaults(defaults, &set, arena);
    if (!err_is(e)) e = option_read_file(options, &set, path, arena);
    snprintf(file->value, sizeof file->value, "%s", err_is(e) ? e.text : path);
    if (err_is(e)) file->problem = "fedlora join cannot read it";
    if (err_is(e)) return;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        find_path(f, keys[i], text_of(&set, options, keys[i]));
    if (text_of(&set, options, "join.base")) find_policy(f, &set, options, defaults);
    find_work_disk(f, &set, options);
}

/* ---------------------------------------------------------------- the certificate */

static void write_time(char out[32], int64_t s)
{
    time_t t = (time_t)s;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%d %H:%M UTC", &tm);
}

/* Half of the time between the planned renewal and the end has passed: the renewal must have failed
 * several times. */
static bool is_overdue(const struct renewal *is, int64_t now)
{
    return now > is->at_s + (is->ends_s - is->at_s) / 2;
}

static void find_renewal(struct findings *f, const struct renewal *is, int64_t now)
{
    struct finding *next = doctor_add(f, "next renewal");
    char at[32];
    if (!is->renewable) {
        snprintf(next->value, sizeof next->value,
                 "by hand: certificate and key are in two files (fedlora enroll makes one)");
        return;
    }
    write_time(at, is->at_s);
    snprintf(next->value, sizeof next->value, "%s, by fedlora join or the next command", at);
    doctor_number(f, "renewal_days_left", days_of(is->at_s - now));
    if (is_overdue(is, now)) next->problem = "it is overdue: does the coordinator renew?";
}

static void find_key_mode(struct findings *f, const char *key)
{
    struct finding *mode = doctor_add(f, "key file");
    struct stat st;
    if (stat(key, &st) != 0) {
        snprintf(mode->value, sizeof mode->value, "%.480s", key);
        mode->problem = strerror(errno);
        return;
    }
    snprintf(mode->value, sizeof mode->value, "%.480s, mode %04o", key,
             (unsigned)st.st_mode & 07777);
    if (err_is(file_check_secret(key))) mode->problem = "other users may read it: expected 0600";
}

void doctor_certificate(struct findings *f, const struct remote_options *o)
{
    const struct rpc_client_options files = {.cert = o->cert, .key = o->key};
    struct finding *ours = doctor_add(f, "client certificate");
    struct renewal is;
    char ends[32];
    int64_t now = (int64_t)(text_wall_ms() / 1000);
    err e = renewal_read(&is, &files);
    if (err_is(e)) {
        snprintf(ours->value, sizeof ours->value, "%s", e.text);
        ours->problem = "it cannot be read";
        return;
    }
    int64_t left = is.ends_s - now;
    write_time(ends, is.ends_s);
    snprintf(ours->value, sizeof ours->value, "%s %s of federation %s, until %s, %.1f days left",
             rpc_role_name(is.self.role), is.self.id, is.self.federation, ends, days_of(left));
    doctor_number(f, "certificate_ends", (double)is.ends_s);
    doctor_number(f, "certificate_days_left", days_of(left));
    if (left <= 0)
        ours->problem = "it has ended: run fedlora enroll TOKEN";
    else if (!is.renewable && left < RPC_CERTIFICATE_DAYS * (int64_t)DAY_S)
        ours->problem = "the certificate expires soon";
    find_renewal(f, &is, now);
    find_key_mode(f, o->key);
}

/* ---------------------------------------------------------------- the coordinator */

/* Certificates are valid from five minutes before they are made, so a clock that is further behind
 * refuses a new one. */
static void find_skew(struct findings *f, int64_t ahead_ms)
{
    enum { SKEW_MOST_MS = 5 * 60 * 1000 };
    struct finding *skew = doctor_add(f, "clock skew");
    snprintf(skew->value, sizeof skew->value,
             "this clock is %.1f s %s the coordinator's (by its answer to a health check)",
             fabs((double)ahead_ms) / 1e3, ahead_ms < 0 ? "ahead of" : "behind");
    doctor_number(f, "clock_behind_seconds", (double)ahead_ms / 1e3);
    if (ahead_ms > SKEW_MOST_MS || ahead_ms < -SKEW_MOST_MS)
        skew->problem = "one of the two clocks is wrong; certificates may be refused";
}

/* The TLS connection is checked first, by itself, because its errors are the most frequent and the
 * RPC library reports them only as "unavailable". Then the health service shows whether the
 * coordinator accepts calls. */
void doctor_server(struct findings *f, const struct remote_options *o)
{
    struct rpc_tls_report r;
    const struct rpc_client_options options = {
        .server = o->server, .ca = o->ca, .cert = o->cert, .key = o->key, .stop = &stop_asked};
    struct finding *proxy = doctor_add(f, "proxy");
    err route = rpc_client_route(proxy->value, sizeof proxy->value, o->server);
    if (err_is(route)) {
        snprintf(proxy->value, sizeof proxy->value, "%s", route.text);
        proxy->problem = "no call can be made";
    }
    struct finding *server = doctor_add(f, "server");
    /* On failure the other findings about the server are left out, because none of them can be
     * known. */
    err e = rpc_tls_probe(&r, &options);
    if (err_is(e)) {
        snprintf(server->value, sizeof server->value, "%s", e.text);
        server->problem = "no connection";
        return;
    }
    snprintf(server->value, sizeof server->value, "%s, %s, %s, %lld ms", o->server, r.version,
             r.cipher, (long long)r.connect_ms);
    doctor_number(f, "connect_ms", (double)r.connect_ms);
    struct finding *theirs = doctor_add(f, "server certificate");
    snprintf(theirs->value, sizeof theirs->value, "for %.400s, %lld days left", r.server_names,
             (long long)r.server_days_left);
    doctor_number(f, "server_certificate_days_left", (double)r.server_days_left);
    if (r.server_days_left < RPC_CERTIFICATE_DAYS) theirs->problem = "the certificate expires soon";
    struct finding *health = doctor_add(f, "coordinator");
    struct remote_health is = {0};
    e = remote_health(&is, &options);
    snprintf(health->value, sizeof health->value, "%s",
             err_is(e) ? e.text : (is.serving ? "serving" : "not serving"));
    if (err_is(e) || !is.serving) health->problem = "the coordinator does not accept calls now";
    if (is.told_time) find_skew(f, is.ahead_ms);
}
