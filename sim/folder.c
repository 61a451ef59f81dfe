#include "sim/folder.h"

#include "base/bytes.h"
#include "base/file.h"
#include "proto/message.h"

#include <stdlib.h>
#include <string.h>

enum { SETUP_BYTES_MAX = 64 << 20 };

static void add_member(struct digest_stream *s, const struct fleet *f, const struct fleet_member *m)
{
    const uint64_t counts[] = {m->rank, m->data.count, m->data.tokens};
    digest_add(s, m->id, strlen(m->id) + 1);
    digest_add(s, counts, sizeof counts);
    device_digest(s, &f->devices, m->device, m->id);
    for (size_t i = 0; i < m->data.count; i++)
        digest_add(s, m->data.row[i].id, m->data.row[i].count * sizeof *m->data.row[i].id);
}

/* Everything that decides the results, but for the number of workers, crashes and evaluations. */
static err setup_digest(struct digest *out, const struct fleet *f, const struct simulate_options *o)
{
    struct digest_stream s;
    struct bytes packed = {.max = SETUP_BYTES_MAX};
    struct digest frozen;
    if (f->frozen) TRY(digest_of_file(&frozen, f->frozen));
    err e = message_pack(&packed, &o->config->base);
    if (!err_is(e)) {
        digest_begin(&s);
        digest_add(&s, packed.data, packed.size);
        digest_add(&s, f->base.byte, DIGEST_BYTES);
        if (f->frozen) digest_add(&s, frozen.byte, DIGEST_BYTES);
        digest_add(&s, &f->devices.seed, sizeof f->devices.seed);
        for (size_t i = 0; i < f->members; i++)
            add_member(&s, f, &f->member[i]);
        attack_digest(&s, &o->attack);
        *out = digest_end(&s);
    }
    bytes_close(&packed);
    return e;
}

static err write_text(const char *dir, const char *name, const char *text)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    return file_write(path, text, strlen(text), true);
}

err folder_check(const struct fleet *f, const struct simulate_options *o)
{
    char path[LIMIT_PATH_BYTES], store[LIMIT_PATH_BYTES], text[DIGEST_TEXT_BYTES], *found = NULL;
    struct digest digest;
    size_t size = 0;
    TRY(setup_digest(&digest, f, o));
    digest_text(text, &digest);
    TRY(file_join(path, sizeof path, o->dir, "setup"));
    TRY(file_join(store, sizeof store, o->dir, "store"));
    if (!file_exists(path) && !file_is_dir(store)) {
        TRY(file_make_dirs(o->dir));
        TRY(write_text(o->dir, "split.txt", f->histogram));
        TRY(write_text(o->dir, "settings.json", o->settings));
        return write_text(o->dir, "setup", text);
    }
    if (file_exists(path)) TRY(file_read_all(&found, &size, path, 1 << 10));
    bool same = found && !strcmp(found, text);
    free(found);
    if (same) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: holds a simulation with other data or options; choose another folder with "
                    "-o, or remove it",
                    o->dir);
}
