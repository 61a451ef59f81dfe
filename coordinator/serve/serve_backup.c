/* Backups are made by another process (fedlorad backup), which leaves a row in the store. The
 * service says so in its log and its audit log, which only one process may write. */
#include "coordinator/serve/serve.h"

enum { LOOK_MS = 10 * 1000 };

/* A backup of a store that has lost files is a warning, because nobody may have read the output of
 * a nightly job. */
static void say(struct serve *s, const struct store_backup *b)
{
    const struct log_field field[] = {LOG_STR("path", b->path), LOG_INT("files", b->files),
                                      LOG_INT("bytes", b->bytes), LOG_INT("wrong", b->wrong)};
    log_event(b->wrong ? LOG_WARN : LOG_INFO, "backup.made", field, sizeof field / sizeof *field);
    AUDIT(s->shop.audit, NULL, "backup.made", b->path, "ok", LOG_INT("files", b->files),
          LOG_INT("bytes", b->bytes), LOG_INT("wrong", b->wrong));
}

/* Those before the start were told by the service of then, or in no service's time. */
void serve_note_backups(struct serve *s, uint64_t now)
{
    struct arena arena = {0};
    struct store_backup last = {0};
    bool found = false, first = !s->watch.next_backup_ms;
    if (now < s->watch.next_backup_ms) return;
    s->watch.next_backup_ms = now + LOOK_MS;
    err e = store_backup_last(&found, &last, s->shop.store, &arena);
    if (!err_is(e) && found && last.id != s->watch.backup) {
        s->watch.backup = last.id;
        if (!first) say(s, &last);
    }
    arena_close(&arena);
}
