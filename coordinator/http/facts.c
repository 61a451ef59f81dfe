#include "coordinator/http/facts.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "coordinator/store/room.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum { CERTIFICATE_LEAST_S = 24 * 60 * 60, SAMPLE_MS = 10 * 60 * 1000 };
static const double day_ms = 24.0 * 60 * 60 * 1000;

const char *facts_check_name(enum facts_check check)
{
    static const char *const name[FACTS_CHECKS] = {
        [FACTS_RECOVERY] = "recovery",       [FACTS_STORE] = "store",       [FACTS_DISK] = "disk",
        [FACTS_CERTIFICATE] = "certificate", [FACTS_DRAINING] = "draining", [FACTS_LOOP] = "loop",
    };
    return name[check];
}

/* ---- disk */

void facts_disk_note(struct facts_disk *disk, uint64_t free_bytes, uint64_t now)
{
    if (disk->count && now - disk->at_ms[disk->count - 1] < SAMPLE_MS) return;
    if (disk->count == FACTS_SAMPLES) {
        disk->count--;
        memmove(disk->free, disk->free + 1, disk->count * sizeof *disk->free);
        memmove(disk->at_ms, disk->at_ms + 1, disk->count * sizeof *disk->at_ms);
    }
    disk->free[disk->count] = free_bytes;
    disk->at_ms[disk->count++] = now;
}

/* Less than an hour says nothing: one round may have filled the disk, and the next sweep frees
 * it. */
double facts_disk_days(const struct facts_disk *disk, uint64_t free_bytes, uint64_t now)
{
    if (!disk->count || now - disk->at_ms[0] < 6 * SAMPLE_MS || free_bytes >= disk->free[0])
        return -1;
    double lost = (double)(disk->free[0] - free_bytes), took = (double)(now - disk->at_ms[0]);
    return (double)free_bytes / lost * took / day_ms;
}

/* ---- checks */

/* Texts of errors may be longer than one line of a page; they are cut. */
static void fails(struct facts *f, enum facts_check check, const char *why)
{
    f->passes[check] = f->ready = false;
    snprintf(f->why[check], sizeof f->why[check], "%.*s", FACTS_TEXT_BYTES - 1, why);
}

/* Writing a file finds more than permissions: a full disk, quotas, a file system that became
 * read-only. It is not flushed, because the loop must not wait for the disk. */
static void look_store(struct facts *f, const char *dir)
{
    static const char text[] = "fedlora";
    char path[LIMIT_PATH_BYTES] = "";
    err e = file_join(path, sizeof path, dir, "http.check");
    int fd = err_is(e) ? -1 : file_disk.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (!err_is(e) && (fd < 0 || file_disk.write(fd, text, sizeof text) != sizeof text))
        e = err_sys(errno, "%.200s", path);
    if (fd >= 0) file_disk.close(fd);
    if (fd >= 0) file_disk.unlink(path);
    if (err_is(e)) fails(f, FACTS_STORE, e.text);
}

/* Not by the trouble of a full disk, which looks at the disk every second too: it stays for a while
 * after there is room again, and a probe should be told at once. */
static void look_disk(struct facts *f, const struct config *c, struct facts_disk *disk)
{
    char text[FACTS_TEXT_BYTES], left[32], keeps[32];
    uint64_t reserve = c->reserve_bytes;
    err e = room_left(&f->free_bytes, c->path);
    if (err_is(e)) {
        fails(f, FACTS_DISK, e.text);
        return;
    }
    facts_disk_note(disk, f->free_bytes, f->now_ms);
    f->disk_days = facts_disk_days(disk, f->free_bytes, f->now_ms);
    f->free_less_reserve = f->free_bytes > reserve ? f->free_bytes - reserve : 0;
    if (f->free_less_reserve) return;
    text_size(left, sizeof left, f->free_bytes);
    text_size(keeps, sizeof keeps, reserve);
    snprintf(text, sizeof text, "%s left, %s must stay free (store.reserve)", left, keeps);
    fails(f, FACTS_DISK, text);
}

/* The file and not the certificate in use: after a renewal without SIGHUP the page is wrong for as
 * long as that is forgotten, but a broken new file is seen before it is used. */
static void look_certificates(struct facts *f, const struct config *c)
{
    char text[FACTS_TEXT_BYTES], left[32];
    err e = rpc_tls_ends(&f->server_ends_s, c->cert);
    if (err_is(e)) fails(f, FACTS_CERTIFICATE, e.text);
    err authority = rpc_tls_ends(&f->ca_ends_s, c->ca);
    if (err_is(authority)) f->ca_ends_s = 0; /* the metric is left out; --check names the reason */
    if (err_is(e)) return;
    int64_t seconds = f->server_ends_s - (int64_t)(f->wall_ms / 1000);
    if (seconds > CERTIFICATE_LEAST_S) return;
    text_duration(left, sizeof left, seconds > 0 ? (uint64_t)seconds * 1000 : 0);
    if (seconds > 0)
        snprintf(text, sizeof text, "the coordinator's certificate ends in %s", left);
    else
        snprintf(text, sizeof text, "the coordinator's certificate has ended");
    fails(f, FACTS_CERTIFICATE, text);
}

/* Without an answer of the store the last backup is not known, which the check of the store
 * names. */
static void look_backup(struct facts *f, struct store *store)
{
    struct arena arena = {0};
    struct store_backup last = {0};
    bool found = false;
    err e = store_backup_last(&found, &last, store, &arena);
    if (!err_is(e) && found) f->backup_ms = last.made_ms;
    arena_close(&arena);
}

/* A lookup of two small files and one write, made only when a page was asked for. */
void facts_look(struct facts *f, const struct serve *s, struct facts_disk *disk)
{
    f->serve = s;
    f->now_ms = text_now_ms();
    f->wall_ms = text_wall_ms();
    f->ready = true;
    f->disk_days = -1;
    for (int i = 0; i < FACTS_CHECKS; i++)
        f->passes[i] = true;
    look_store(f, s->config->path);
    look_disk(f, s->config, disk);
    look_certificates(f, s->config);
    look_backup(f, s->shop.store);
    if (s->draining) fails(f, FACTS_DRAINING, "the coordinator is stopping");
}

/* ---- JSON */

/* Texts of other machines and paths are tamed, because jansson refuses bytes that are not UTF-8. */
static json_t *failed_json(enum facts_check check, const char *says)
{
    char text[FACTS_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", says);
    text_tame(text);
    return json_pack("{s:s, s:s}", "check", facts_check_name(check), "says", text);
}

static err write_not_ready(struct bytes *out, json_t *failed)
{
    json_t *all = json_pack("{s:b, s:o}", "ready", 0, "failed", failed);
    err e = all ? json_write(out, all) : err_sys(ENOMEM, "the answer of /readyz");
    json_decref(all);
    return err_is(e) ? e : bytes_printf(out, "\n");
}

err facts_ready_json(struct bytes *out, const struct facts *f)
{
    if (f->ready) return bytes_printf(out, "{\"ready\":true}\n");
    json_t *failed = json_array();
    for (int i = 0; i < FACTS_CHECKS; i++)
        if (!f->passes[i])
            json_array_append_new(failed, failed_json((enum facts_check)i, f->why[i]));
    return write_not_ready(out, failed);
}

err facts_not_ready_json(struct bytes *out, enum facts_check check, const char *says)
{
    json_t *failed = json_array();
    json_array_append_new(failed, failed_json(check, says));
    return write_not_ready(out, failed);
}
