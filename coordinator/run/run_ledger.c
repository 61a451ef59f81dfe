/* Copies of members' own privacy ledgers, taken line by line and checked against the lines
 * before. */
#include "coordinator/run/run.h"

#include <stdio.h>
#include <string.h>

/* A line takes about 0.1 ms of the loop thread, for which all members wait, most of it for the
 * signature. So a call takes this many lines, or reads this many bytes after a restart, and the
 * caller comes again. */
enum { LINES_MAX = 1 << 16, TAKEN_MAX = 64, TAKEN_BYTES = 1 << 16, READ_BYTES = 1 << 18 };

static const char *name_of(char out[LIMIT_NAME_BYTES + 16], const char *member)
{
    snprintf(out, LIMIT_NAME_BYTES + 16, "ledger of %s", member);
    return out;
}

/* After a restart the ledger is empty in memory: reads the next part of the copy from the store.
 * Only its head and the lines of the current call are kept (ledger_forget), because a ledger grows
 * for years. ERR_LIMIT: there is more to read. */
static err load(struct run *run, size_t member)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16];
    struct bytes part = {.max = READ_BYTES};
    if (m->ledger_read) return ERR_NONE;
    err e = store_ledger_part(&part, run->shop->store, run->id, id, m->ledger.head.count);
    bool any = !err_is(e) && part.size > 0;
    if (any)
        e = ledger_read_more(&m->ledger, (const char *)part.data, part.size, name_of(name, id));
    if (!err_is(e) && any) e = ledger_forget(&m->ledger);
    /* A part that is not full was the last one. */
    m->ledger_read = !err_is(e) && part.size + LEDGER_LINE_BYTES < READ_BYTES;
    bytes_close(&part);
    if (err_is(e)) ledger_close(&m->ledger);
    if (err_is(e) || m->ledger_read) return e;
    return err_make(ERR_LIMIT, "the copy of your ledger is being read from the disk; come back");
}

/* The first TAKEN_MAX lines, or fewer if they are long. */
static size_t bytes_taken(const ProtobufCBinaryData *lines)
{
    const char *text = (const char *)lines->data, *at = text, *end = at + lines->len, *stop = text;
    for (int n = 0; n < TAKEN_MAX && at - text < TAKEN_BYTES && stop && at < end; n++) {
        stop = memchr(at, '\n', (size_t)(end - at));
        at = stop ? stop + 1 : end;
    }
    return (size_t)(at - text);
}

/* Line 1 states the terms and has no entry. The ledger holds only its newest lines, so counting
 * starts from its end. */
static const struct ledger_entry *entry_of(const struct ledger *ledger, uint64_t line)
{
    return line > 1 ? &ledger->entry[ledger->count - (ledger->head.count - line + 1)] : NULL;
}

/* The lines from number `first` on, in the form the store keeps. A release of another run of the
 * same member is kept as text only, because its charge belongs to that run. */
static err describe(struct store_copy **out, size_t *count, const struct ledger *ledger,
                    uint64_t first, const ProtobufCBinaryData *lines, const char *job,
                    struct arena *arena)
{
    struct store_copy *copy = NULL;
    const char *at = (const char *)lines->data, *end = at + lines->len, *stop;
    size_t n = 0;
    TRY(arena_take(&copy, arena, ledger->head.count - first + 1, sizeof *copy));
    for (; at < end && (stop = memchr(at, '\n', (size_t)(end - at))); at = stop + 1) {
        const struct ledger_entry *entry = entry_of(ledger, first + n);
        struct store_copy *c = &copy[n++];
        *c = (struct store_copy){.text = at, .size = (size_t)(stop + 1 - at)};
        if (!entry || strcmp(entry->kind, "release") || strcmp(entry->terms->job, job)) continue;
        c->ours = true;
        c->round = entry->release.round;
        c->released = entry->release.released;
        c->charged = entry->release.charged;
    }
    *out = copy;
    *count = n;
    return ERR_NONE;
}

/* Back to the ledger of before a refused part. Its lines are in the arena until they are forgotten,
 * otherwise a member could fill the memory with refused lines. */
static void undo(struct ledger *ledger, struct ledger was, bool *read)
{
    was.arena = ledger->arena;
    *ledger = was;
    if (was.head.count && !err_is(ledger_forget(ledger))) return;
    ledger_close(ledger);
    *read = was.head.count == 0;
}

static err check_lines(const struct run *run, const struct ledger *ledger, const char *name)
{
    if (ledger->terms.unit != LEDGER_EXAMPLE || ledger->head.count > LINES_MAX)
        return err_make(ERR_INPUT, "%s: expected unit example, and at most %d lines", name,
                        LINES_MAX);
    return ledger_check_simulated(ledger, run->shop->simulated, name);
}

/* The lines are verified (hash chain and signature) before they are stored. */
static err take_lines(struct run *run, size_t member, const char *federation,
                      const ProtobufCBinaryData *lines)
{
    struct run_member *m = &run->member[member];
    struct ledger was = m->ledger;
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16], job[2 * LIMIT_NAME_BYTES];
    struct arena arena = {0};
    struct store_copy *copy = NULL;
    size_t count = 0;
    uint64_t first = m->ledger.head.count + 1;
    err e = ledger_read_more(&m->ledger, (const char *)lines->data, lines->len, name_of(name, id));
    if (!err_is(e)) e = check_lines(run, &m->ledger, name);
    snprintf(job, sizeof job, "%s/%s", federation, run->config->name);
    if (!err_is(e)) e = describe(&copy, &count, &m->ledger, first, lines, job, &arena);
    if (!err_is(e)) {
        e = store_copies_add(run->shop->store, run->id, id, first, copy, count);
        if (err_is(e)) e = err_in(e, "%s", name);
    }
    arena_close(&arena);
    if (err_is(e)) {
        undo(&m->ledger, was, &m->ledger_read);
        return e;
    }
    e = ledger_forget(&m->ledger);
    if (!err_is(e)) return e;
    ledger_close(&m->ledger); /* and read again from the store */
    m->ledger_read = false;
    return e;
}

err run_take_ledger(const struct ledger_head **held, struct run *run, size_t member,
                    const struct run_ledger_part *part)
{
    if (!run_privacy_local(run->config))
        return err_make(ERR_INPUT,
                        "run %s does not have unit example, so its members need no ledger",
                        run->config->name);
    if (part->lines.len > LEDGER_PART_BYTES)
        return err_make(ERR_INPUT, "%zu bytes of a ledger, at most %d", part->lines.len,
                        LEDGER_PART_BYTES);
    TRY(load(run, member));
    if (part->lines.len && part->from == run->member[member].ledger.head.count + 1)
        TRY(take_lines(run, member, part->federation,
                       &(ProtobufCBinaryData){bytes_taken(&part->lines), part->lines.data}));
    *held = &run->member[member].ledger.head;
    return ERR_NONE;
}
