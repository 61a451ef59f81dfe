/* The members of a run and its rules, which an operator may change. Contract in round.h. */
#include "coordinator/run/round.h"

#include <stdlib.h>
#include <string.h>

/* Sorted by id, so that round_find() can search by halves. */
static int member_compare(const void *a, const void *b)
{
    return strcmp(((const struct round_member *)a)->id, ((const struct round_member *)b)->id);
}

err round_init(struct round *out, const struct round_rules *rules, const char *const *id,
               size_t ids)
{
    if (ids == 0 || ids > LIMIT_POPULATION)
        return err_make(ERR_INPUT, "a run needs 1 to %d members, not %zu", LIMIT_POPULATION, ids);
    if (rules->quorum > ids)
        return err_make(ERR_INPUT, "quorum %u is more than the %zu members", rules->quorum, ids);
    if (rules->cohort > ids)
        return err_make(ERR_INPUT, "cohort %u is more than the %zu members", rules->cohort, ids);
    if (rules->rounds == 0 || rules->rounds > LIMIT_ROUNDS)
        return err_make(ERR_INPUT, "rounds: %u, expected 1 to %d", rules->rounds, LIMIT_ROUNDS);
    struct round_member *member = calloc(ids, sizeof *member);
    if (!member) return err_make(ERR_MACHINE, "no memory for %zu members", ids);
    for (size_t i = 0; i < ids; i++) {
        REQUIRE(strlen(id[i]) < sizeof member[i].id);
        memcpy(member[i].id, id[i], strlen(id[i]) + 1);
    }
    qsort(member, ids, sizeof *member, member_compare);
    for (size_t i = 1; i < ids; i++) {
        if (strcmp(member[i - 1].id, member[i].id)) continue;
        err e = err_make(ERR_INPUT, "member %s is named twice", member[i].id);
        free(member);
        return e;
    }
    size_t *order = calloc(ids, sizeof *order);
    if (!order) {
        free(member);
        return err_make(ERR_MACHINE, "no memory for %zu members", ids);
    }
    for (size_t i = 0; i < ids; i++)
        order[i] = i;
    *out = (struct round){
        .rules = *rules, .members = ids, .member = member, .order = order, .stage = ROUND_WAITING};
    out->counts = round_recount(out);
    return ERR_NONE;
}

void round_close(struct round *r)
{
    free(r->member);
    free(r->order);
    *r = (struct round){0};
}

/* The place of this id in r->order, or the one where it would be. */
static size_t place_of(bool *found, const struct round *r, const char *id)
{
    size_t low = 0, high = r->members;
    *found = false;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(r->member[r->order[middle]].id, id);
        if (order == 0) {
            *found = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool round_find(size_t *member, const struct round *r, const char *id)
{
    bool found;
    size_t place = place_of(&found, r, id);
    if (found) *member = r->order[place];
    return found;
}

/* Each array is replaced as soon as it has grown, so that a failure leaves the round as it was. */
err round_add(struct round *r, const char *id)
{
    bool found;
    size_t place = place_of(&found, r, id);
    REQUIRE(strlen(id) < sizeof r->member->id);
    if (found) return err_make(ERR_INPUT, "%s is a member already", id);
    if (r->members >= LIMIT_POPULATION)
        return err_make(ERR_LIMIT, "%d members, the most that a run can have", LIMIT_POPULATION);
    struct round_member *member = realloc(r->member, (r->members + 1) * sizeof *member);
    if (member) r->member = member;
    size_t *order = realloc(r->order, (r->members + 1) * sizeof *order);
    if (order) r->order = order;
    if (!member || !order) return err_make(ERR_MACHINE, "no memory for one member more");
    memmove(&order[place + 1], &order[place], (r->members - place) * sizeof *order);
    order[place] = r->members;
    member[r->members] = (struct round_member){0};
    memcpy(member[r->members++].id, id, strlen(id) + 1);
    r->counts = round_recount(r);
    return ERR_NONE;
}

/* The deadline is counted from the opening of the round. */
void round_set_rules(struct round *r, const struct round_rules *rules)
{
    REQUIRE(rules->rounds > r->published && r->stage != ROUND_FINISHED);
    r->rules = *rules;
    if (r->stage == ROUND_TRAINING)
        r->deadline_at_ms = rules->deadline_ms ? r->opened_ms + rules->deadline_ms : 0;
    for (size_t i = 0; i < r->members && !rules->skips_absent; i++)
        r->member[i].skipped_in = 0;
    r->counts = round_recount(r);
}

void round_forgive(struct round *r)
{
    for (size_t i = 0; i < r->members; i++)
        if (r->member[i].excused_in != round_under_way(r)) r->member[i].refused_in = 0;
    r->counts = round_recount(r);
}
