#include "privacy/ledger/spend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double engines_differ_most = 1e-3;

err spend_open(struct spend *out, double epsilon, double delta)
{
    if (!(epsilon > 0 && isfinite(epsilon)))
        return err_make(ERR_INPUT, "privacy budget: epsilon %g: expected a number above 0",
                        epsilon);
    if (!(delta > 0 && delta < 1))
        return err_make(ERR_INPUT, "privacy budget: delta %g: expected a number between 0 and 1",
                        delta);
    *out = (struct spend){.epsilon = epsilon, .delta = delta};
    return ERR_NONE;
}

void spend_close(struct spend *b)
{
    free(b->event);
    *b = (struct spend){0};
}

static bool same_kind(const struct account_event *a, const struct account_event *b)
{
    return a->mechanism == b->mechanism && a->noise == b->noise && a->sampling == b->sampling;
}

static err make_room(struct spend *b)
{
    if (b->count < b->capacity) return ERR_NONE;
    if (b->count == SPEND_KINDS)
        return err_make(ERR_LIMIT, "more than %d kinds of releases in one budget", SPEND_KINDS);
    size_t capacity = b->capacity ? 2 * b->capacity : 8;
    struct account_event *event = realloc(b->event, capacity * sizeof *event);
    if (!event) return err_make(ERR_MACHINE, "no memory for %zu kinds of releases", capacity);
    b->event = event;
    b->capacity = capacity;
    return ERR_NONE;
}

err spend_charge(struct spend *b, const struct account_event *event)
{
    TRY(account_check_event(event));
    b->releases += event->count;
    for (size_t i = 0; i < b->count; i++) {
        if (!same_kind(&b->event[i], event)) continue;
        b->event[i].count += event->count;
        return ERR_NONE;
    }
    err e = make_room(b);
    if (err_is(e))
        b->releases -= event->count;
    else
        b->event[b->count++] = *event;
    return e;
}

static err total(struct spend_total *out, const struct spend *b)
{
    struct account_options rdp_only = {.engine = ACCOUNT_RDP};
    struct account_spent pld, rdp;
    bool fixed = false;
    for (size_t i = 0; i < b->count; i++)
        fixed = fixed || b->event[i].mechanism == ACCOUNT_FIXED_SIZE;
    if (fixed) rdp_only.adjacency = ACCOUNT_REPLACE_ONE;
    TRY(account_epsilon(&rdp, b->event, b->count, b->delta, &rdp_only));
    pld = rdp;
    if (!fixed) TRY(account_epsilon(&pld, b->event, b->count, b->delta, NULL));
    if (!isfinite(pld.epsilon))
        return err_make(ERR_INPUT,
                        "privacy budget: the PLD accountant cannot tell delta %g from 0 for "
                        "these %llu releases; expected a larger delta",
                        b->delta, (unsigned long long)b->releases);
    if (pld.epsilon > rdp.epsilon + engines_differ_most)
        return err_make(ERR_MACHINE,
                        "the accountants disagree: epsilon is %.6g by PLD, but at most %.6g by RDP",
                        pld.epsilon, rdp.epsilon);
    *out = (struct spend_total){pld.epsilon, rdp.epsilon, rdp.order};
    return ERR_NONE;
}

err spend_after(struct spend_total *out, const struct spend *b, const struct account_event *next)
{
    struct spend all = *b;
    err e = ERR_NONE;
    if (!b->count && !next) {
        *out = (struct spend_total){0};
        return ERR_NONE;
    }
    if (!next) return total(out, b);
    all.capacity = b->count + 1;
    all.event = malloc(all.capacity * sizeof *all.event);
    if (!all.event)
        return err_make(ERR_MACHINE, "no memory for %zu kinds of releases", all.capacity);
    if (b->count) memcpy(all.event, b->event, b->count * sizeof *b->event);
    TRY_OUT(e, spend_charge(&all, next));
    e = total(out, &all);
out:
    spend_close(&all);
    return e;
}

err spend_allows(struct spend_total *out, const struct spend *b, const struct account_event *next)
{
    struct spend_total after, now;
    TRY(spend_after(&after, b, next));
    if (after.epsilon <= b->epsilon) {
        *out = after;
        return ERR_NONE;
    }
    TRY(spend_after(&now, b, NULL));
    return err_make(ERR_LIMIT,
                    "the privacy budget is spent: epsilon %.4g of %.4g at delta %.3g after %llu "
                    "releases; one more would make it %.4g",
                    now.epsilon, b->epsilon, b->delta, (unsigned long long)b->releases,
                    after.epsilon);
}
