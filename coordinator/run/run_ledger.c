/* Copies of members' own privacy ledgers, taken line by line and checked against the lines
 * before. */
#include "coordinator/run/run.h"

#include <stdio.h>
#include <string.h>

enum { LINES_MAX = 1 << 16 };

static const char *name_of(char out[LIMIT_NAME_BYTES + 16], const char *member)
{
    snprintf(out, LIMIT_NAME_BYTES + 16, "ledger of %s", member);
    return out;
}

/* After a restart the ledger is empty in memory: reads the copy from the store, in parts. Only
 * its head and the lines of the current call are kept (ledger_forget), because a ledger grows
 * for years. */
static err load(struct run *run, size_t member)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16];
    err e = ERR_NONE;
    if (m->ledger.head.count) return ERR_NONE;
    for (;;) {
        struct bytes part = {.max = LEDGER_PART_BYTES};
        e = store_ledger_part(&part, run->shop->store, run->id, id, m->ledger.head.count);
        bool more = !err_is(e) && part.size > 0;
        if (more)
            e = ledger_read_more(&m->ledger, (const char *)part.data, part.size, name_of(name, id));
        bytes_close(&part);
        if (!more || err_is(e)) break;
    }
    if (!err_is(e) && m->ledger.head.count) e = ledger_forget(&m->ledger);
    if (err_is(e)) ledger_close(&m->ledger);
    return e;
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

/* The lines are verified (hash chain and signature) before they are stored. If storing fails,
 * memory is ahead of the store, so the ledger is dropped and read again with the next call. */
static err take_lines(struct run *run, size_t member, const char *federation,
                      const ProtobufCBinaryData *lines)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16], job[2 * LIMIT_NAME_BYTES];
    struct arena arena = {0};
    struct store_copy *copy = NULL;
    size_t count = 0;
    uint64_t first = m->ledger.head.count + 1;
    err e = ERR_NONE;
    TRY_OUT(e,
            ledger_read_more(&m->ledger, (const char *)lines->data, lines->len, name_of(name, id)));
    if (m->ledger.terms.unit != LEDGER_EXAMPLE || m->ledger.head.count > LINES_MAX)
        e = err_make(ERR_INPUT, "%s: expected unit example, and at most %d lines", name, LINES_MAX);
    if (!err_is(e)) e = ledger_check_simulated(&m->ledger, run->shop->simulated, name);
    snprintf(job, sizeof job, "%s/%s", federation, run->config->name);
    if (!err_is(e)) e = describe(&copy, &count, &m->ledger, first, lines, job, &arena);
    if (!err_is(e)) {
        e = store_copies_add(run->shop->store, run->id, id, first, copy, count);
        e = err_is(e) ? err_in(e, "%s", name) : ledger_forget(&m->ledger);
    }
    if (err_is(e)) ledger_close(&m->ledger); /* and read again from the store */
out:
    arena_close(&arena);
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
        TRY(take_lines(run, member, part->federation, &part->lines));
    *held = &run->member[member].ledger.head;
    return ERR_NONE;
}
