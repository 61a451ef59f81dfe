#include "privacy/ledger_file.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { LEDGER_FILE_BYTES_MAX = 64 << 20 };

static err begin(struct ledger_file *f, const struct ledger_terms *terms)
{
    struct bytes line = {.max = LEDGER_LINE_BYTES};
    err e = ledger_start(&line, &f->head, &f->key, terms);
    if (!err_is(e)) e = file_write(f->path, line.data, line.size, /*replace*/ false);
    bytes_close(&line);
    return e;
}

static err same_terms(const struct ledger_terms *was, const struct ledger_terms *is,
                      const char *path)
{
    const char *what = was->unit != is->unit                 ? "unit"
                       : was->epsilon != is->epsilon         ? "epsilon"
                       : was->delta != is->delta             ? "delta"
                       : was->units != is->units             ? "number of units"
                       : was->sampling != is->sampling       ? "sampling rate"
                       : was->denominator != is->denominator ? "denominator"
                       : was->dim < is->dim                  ? "number of coordinates"
                                                             : NULL;
    if (!what) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: the ledger promises another %s: begin a new one, or keep to it",
                    path, what);
}

/* Cuts off what stands after the last whole line. */
static err drop_torn_line(const char *path, char *text, size_t *size)
{
    size_t whole = *size;
    while (whole && text[whole - 1] != '\n')
        whole--;
    if (whole == *size || whole == 0)
        return ERR_NONE; /* one line torn: no ledger, says the reader */
    *size = whole;
    return file_write(path, text, whole, /*replace*/ true);
}

static err go_on(struct ledger_file *f, const struct ledger_terms *terms)
{
    struct ledger ledger = {0};
    char *text = NULL;
    size_t size = 0;
    err e = ERR_NONE;
    TRY(file_read_all(&text, &size, f->path, LEDGER_FILE_BYTES_MAX));
    TRY_OUT(e, drop_torn_line(f->path, text, &size));
    TRY_OUT(e, ledger_read(&ledger, text, size, f->path));
    if (memcmp(ledger.public, f->key.public, sizeof ledger.public) != 0) {
        e = err_make(ERR_INPUT, "%s: begun with another key", f->path);
        goto out;
    }
    TRY_OUT(e, same_terms(&ledger.terms, terms, f->path));
    for (size_t i = 0; i < ledger.count; i++)
        if (!strcmp(ledger.entry[i].kind, "release"))
            TRY_OUT(e, spend_charge(&f->spend, &ledger.entry[i].release.charged));
    f->head = ledger.head;
out:
    ledger_close(&ledger);
    free(text);
    return e;
}

err ledger_file_open(struct ledger_file *out, const char *path, const char *key_path,
                     const struct ledger_terms *terms)
{
    struct ledger_file f = {0};
    if (strlen(path) >= sizeof f.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    memcpy(f.path, path, strlen(path) + 1);
    TRY(ledger_key_open(&f.key, key_path));
    err e = spend_open(&f.spend, terms->epsilon, terms->delta);
    if (!err_is(e)) e = file_exists(path) ? go_on(&f, terms) : begin(&f, terms);
    if (err_is(e))
        ledger_file_close(&f);
    else
        *out = f;
    return e;
}

err ledger_file_allows(struct spend_total *out, const struct ledger_file *f,
                       const struct account_event *event)
{
    err e = spend_allows(out, &f->spend, event);
    return err_is(e) ? err_in(e, "%s", f->path) : e;
}

static err append(const char *path, const struct bytes *line)
{
    err e = ERR_NONE;
    int fd = file_disk.open(path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd < 0) return err_sys(errno, "%s", path);
    for (size_t at = 0; at < line->size && !err_is(e);) {
        ssize_t n = file_disk.write(fd, line->data + at, line->size - at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            e = err_sys(n ? errno : EIO, "%s", path);
    }
    if (!err_is(e) && file_disk.fsync(fd) != 0) e = err_sys(errno, "%s", path);
    if (file_disk.close(fd) != 0 && !err_is(e)) e = err_sys(errno, "%s", path);
    return e;
}

err ledger_file_charge(struct ledger_file *f, struct ledger_release *release)
{
    struct bytes line = {.max = LEDGER_LINE_BYTES};
    struct ledger_head head = f->head;
    struct spend_total total;
    if (f->unsure)
        return err_make(ERR_STATE, "%s: a write has failed; open the ledger again", f->path);
    TRY(ledger_file_allows(&total, f, &release->charged));
    release->epsilon = total.epsilon;
    release->rdp = total.rdp;
    release->order = total.rdp_order;
    err e = ledger_add(&line, &head, &f->key, release);
    if (!err_is(e)) {
        e = append(f->path, &line);
        f->unsure = err_is(e);
    }
    if (!err_is(e)) e = spend_charge(&f->spend, &release->charged);
    if (!err_is(e)) f->head = head;
    bytes_close(&line);
    return e;
}

void ledger_file_close(struct ledger_file *f)
{
    spend_close(&f->spend);
    ledger_key_close(&f->key);
    *f = (struct ledger_file){0};
}
