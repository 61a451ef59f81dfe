#include "sim/flight.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The structs are written as they are in memory, so only the same program reads them. */
struct head {
    char version[32];
    uint64_t item_bytes, count, updates_bytes;
    uint32_t published, zero;
};

static void fill_head(struct head *h, const struct flight *f)
{
    memset(h, 0, sizeof *h);
    snprintf(h->version, sizeof h->version, "flight %s", FEDLORA_VERSION);
    h->item_bytes = f->item_bytes;
    h->count = f->count;
    h->updates_bytes = f->updates_bytes;
    h->published = f->published;
}

err flight_save(const char *dir, const struct flight *f)
{
    char path[LIMIT_PATH_BYTES];
    struct head head;
    struct file_out out = {0};
    fill_head(&head, f);
    TRY(file_join(path, sizeof path, dir, "flight"));
    TRY(file_out_open(&out, path, true));
    err e = file_out_append(&out, &head, sizeof head);
    if (!err_is(e) && f->count) e = file_out_append(&out, f->item, f->count * f->item_bytes);
    if (!err_is(e)) e = file_out_commit(&out);
    file_out_close(&out);
    return e;
}

/* Is this whole file what this program wrote for the round? */
static bool is_valid(struct head *head, const char *text, size_t size, const struct flight *f)
{
    struct head expected;
    if (size < sizeof *head) return false;
    memcpy(head, text, sizeof *head);
    fill_head(&expected, f);
    expected.count = head->count;
    expected.updates_bytes = head->updates_bytes;
    return !memcmp(head, &expected, sizeof expected) && f->item_bytes &&
           head->count == (size - sizeof *head) / f->item_bytes &&
           (size - sizeof *head) % f->item_bytes == 0;
}

err flight_load(bool *found, void **item, size_t *count, const char *dir, const struct flight *f)
{
    char path[LIMIT_PATH_BYTES], updates[LIMIT_PATH_BYTES], *text = NULL;
    struct head head;
    size_t size = 0;
    void *copy = NULL;
    *found = false;
    TRY(file_join(path, sizeof path, dir, "flight"));
    TRY(file_join(updates, sizeof updates, dir, "updates.csv"));
    if (!file_exists(path) || !file_exists(updates)) return ERR_NONE;
    TRY(file_read_all(&text, &size, path, SIZE_MAX / 2));
    err e = ERR_NONE;
    if (is_valid(&head, text, size, f)) {
        size_t bytes = size - sizeof head;
        if (!(copy = malloc(bytes + 1))) e = err_sys(ENOMEM, "simulation");
        if (!err_is(e) && truncate(updates, (off_t)head.updates_bytes) != 0)
            e = err_sys(errno, "%s", updates);
        if (!err_is(e)) {
            memcpy(copy, text + sizeof head, bytes);
            *item = copy;
            *count = (size_t)head.count;
            *found = true;
            copy = NULL;
        }
    }
    free(copy);
    free(text);
    return e;
}
