#include "coordinator/run/tally.h"

#include <stdlib.h>
#include <string.h>

const double tally_bound[TALLY_BUCKETS - 1] = {0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800};

void tally_close(struct tally *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->members; i++)
        free(t->member[i]);
    free(t->member);
    memset(t, 0, sizeof *t);
}

/* True with the place of the member, else false with the place where it belongs. */
static bool find(size_t *at, const struct tally *t, const char *id)
{
    size_t low = 0, high = t->members;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int is = strcmp(t->member[middle]->id, id);
        if (is == 0) {
            *at = middle;
            return true;
        }
        if (is < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *at = low;
    return false;
}

const struct tally_member *tally_find(const struct tally *t, const char *id)
{
    size_t at = 0;
    return t && find(&at, t, id) ? t->member[at] : NULL;
}

/* Doubles, so that ten thousand members cost a dozen copies. */
static bool grow(struct tally *t)
{
    size_t places = t->places ? 2 * t->places : 64;
    if (t->members < t->places) return true;
    struct tally_member **member = realloc(t->member, places * sizeof *member);
    if (!member) return false;
    t->member = member;
    t->places = places;
    return true;
}

/* NULL: no place is left. Pointers are moved instead of the rows, because thousands of members may
 * call for the first time one after the other. */
static struct tally_member *take(struct tally *t, const char *id)
{
    size_t at = 0;
    if (find(&at, t, id)) return t->member[at];
    if (t->members == TALLY_MEMBERS_MAX || !grow(t)) return NULL;
    struct tally_member *row = calloc(1, sizeof *row);
    if (!row) return NULL;
    memcpy(row->id, id, strnlen(id, sizeof row->id - 1));
    memmove(t->member + at + 1, t->member + at, (t->members - at) * sizeof *t->member);
    t->member[at] = row;
    t->members++;
    return row;
}

void tally_received(struct tally *t, const char *member, uint64_t bytes)
{
    struct tally_member *row = t ? take(t, member) : NULL;
    if (row) row->received += bytes;
}

void tally_sent(struct tally *t, const char *member, uint64_t bytes)
{
    struct tally_member *row = t ? take(t, member) : NULL;
    if (row) row->sent += bytes;
}

/* A linear search, because there are a few dozen procedures and most calls are of the first. A
 * refusal is counted also while calls are hidden: it says that something is wrong. */
void tally_call(struct tally *t, const char *procedure, const char *code)
{
    if (!t || (t->hides_calls && !strcmp(code, "OK"))) return;
    for (size_t i = 0; i < t->calls; i++)
        if (!strcmp(t->call[i].procedure, procedure) && !strcmp(t->call[i].code, code)) {
            t->call[i].count++;
            return;
        }
    if (t->calls == TALLY_CALLS_MAX) return;
    struct tally_call *call = &t->call[t->calls++];
    *call = (struct tally_call){.code = code, .count = 1};
    memcpy(call->procedure, procedure, strnlen(procedure, sizeof call->procedure - 1));
}

void tally_hide(struct tally *t, bool hides_calls)
{
    if (t) t->hides_calls = hides_calls;
}

/* Counts a round in one bucket; the page adds them up, as Prometheus wants buckets. */
void tally_aggregate(struct tally *t, uint64_t took_ms)
{
    size_t i = 0;
    double seconds = (double)took_ms / 1000;
    if (!t) return;
    while (i < TALLY_BUCKETS - 1 && seconds > tally_bound[i])
        i++;
    t->bucket[i]++;
    t->aggregated++;
    t->aggregate_s += seconds;
}

/* Relaxed: the counter orders nothing else. */
void tally_refused(struct tally *t, enum rpc_refusal refusal)
{
    if (t) atomic_fetch_add_explicit(&t->refused[refusal], 1, memory_order_relaxed);
}
