/* The replay; statement_page.c writes the page. */
#include "privacy/statement.h"

#include "privacy/clip.h"

#include <math.h>
#include <string.h>

enum { PLD_CHECKS = 16 };

err statement_drawn(double *out, const struct ledger_release *r)
{
    struct clip_bound bound;
    TRY(clip_bound_set(&bound, r->clip));
    double z = (double)r->sigma / bound.norm_int;
    if (r->sigma_bits) z = adaptive_joint(z, ldexp((double)r->sigma_bits, -ADAPTIVE_HALF_LOG2 - 1));
    *out = z;
    return ERR_NONE;
}

static bool differs(double a, double b)
{
    return !(fabs(a - b) <= 1e-6 * fmax(1, fabs(b)));
}

/* What one line says of itself and beside the promise. Rounds above 0 train; what is drawn before
 * them (private bases) has shapes of its own. */
static err check_release(double *drawn, const struct ledger *ledger, const struct ledger_release *r,
                         uint32_t last_round)
{
    const struct ledger_terms *t = &ledger->terms;
    TRY(account_check_event(&r->charged));
    TRY(statement_drawn(drawn, r));
    if (*drawn < r->charged.noise)
        return err_make(ERR_INPUT, "noise of multiplier %.6g was drawn and %.6g charged", *drawn,
                        r->charged.noise);
    if (r->round < last_round)
        return err_make(ERR_INPUT, "round %u after round %u", r->round, last_round);
    if (r->round == 0) return ERR_NONE;
    if (r->denominator != t->denominator)
        return err_make(ERR_INPUT, "the denominator is %.6g, and %.6g was promised", r->denominator,
                        t->denominator);
    if (r->charged.sampling != t->sampling)
        return err_make(ERR_INPUT, "sampling rate %.6g, and %.6g was promised", r->charged.sampling,
                        t->sampling);
    if (r->dim > t->dim) /* methods that train one factor at a time have rounds of fewer */
        return err_make(ERR_INPUT, "%llu coordinates, and %llu were promised",
                        (unsigned long long)r->dim, (unsigned long long)t->dim);
    return ERR_NONE;
}

static err check_spent(const struct ledger_release *r, const struct spend *budget, bool with_pld)
{
    struct account_options rdp_only = {.engine = ACCOUNT_RDP};
    struct spend_total spent = {0};
    struct account_spent rdp;
    if (with_pld) {
        TRY(spend_after(&spent, budget, NULL));
    } else {
        if (r->charged.mechanism == ACCOUNT_FIXED_SIZE) rdp_only.adjacency = ACCOUNT_REPLACE_ONE;
        TRY(account_epsilon(&rdp, budget->event, budget->count, budget->delta, &rdp_only));
        spent.rdp = rdp.epsilon;
    }
    if (differs(spent.rdp, r->rdp))
        return err_make(ERR_INPUT, "epsilon by RDP is %.9g, and %.9g is written", spent.rdp,
                        r->rdp);
    if (with_pld && differs(spent.epsilon, r->epsilon))
        return err_make(ERR_INPUT, "epsilon is %.9g, and %.9g is written", spent.epsilon,
                        r->epsilon);
    if (r->epsilon > budget->epsilon * (1 + 1e-9))
        return err_make(ERR_INPUT, "the budget was passed: epsilon %.6g of %.6g", r->epsilon,
                        budget->epsilon);
    return ERR_NONE;
}

static err check_terms(const struct ledger_terms *t)
{
    if (t->units == 0 || t->delta * (double)t->units >= 1)
        return err_make(ERR_INPUT,
                        "delta %.3g with %llu units: expected below one over their number",
                        t->delta, (unsigned long long)t->units);
    if (!(t->denominator > 0)) return err_make(ERR_INPUT, "denominator: expected above 0");
    return ERR_NONE;
}

static err replay_one(struct statement *s, struct spend *budget, size_t i, size_t every)
{
    const struct ledger_release *r = &s->ledger->entry[i].release;
    double drawn = 0;
    uint32_t last_round = 0;
    size_t last = s->ledger->count;
    for (size_t k = i; k-- > 0 && !last_round;)
        if (!strcmp(s->ledger->entry[k].kind, "release"))
            last_round = s->ledger->entry[k].release.round;
    do
        last--;
    while (strcmp(s->ledger->entry[last].kind, "release") != 0);
    TRY(check_release(&drawn, s->ledger, r, last_round));
    TRY(spend_charge(budget, &r->charged));
    TRY(check_spent(r, budget, i == last || s->releases % every == 0));
    s->noise_least = s->releases ? fmin(s->noise_least, drawn) : drawn;
    s->releases++;
    s->steps += r->charged.count;
    s->spent = (struct spend_total){r->epsilon, r->rdp, r->order};
    return ERR_NONE;
}

err statement_replay(struct statement *out, const struct ledger *ledger, const char *name)
{
    struct statement s = {.ledger = ledger};
    struct spend budget = {0};
    err e = check_terms(&ledger->terms);
    if (!err_is(e)) e = spend_open(&budget, ledger->terms.epsilon, ledger->terms.delta);
    if (err_is(e)) return err_in(e, "%s:1", name);
    for (size_t i = 0; i < ledger->count && !err_is(e); i++) {
        const struct ledger_entry *entry = &ledger->entry[i];
        if (!strcmp(entry->kind, "release"))
            e = replay_one(&s, &budget, i, ledger->count / PLD_CHECKS + 1);
        else if (!strcmp(entry->kind, "stop"))
            s.stopped = entry->text;
        if (err_is(e)) e = err_in(e, "%s:%zu", name, i + 2);
    }
    spend_close(&budget);
    if (!err_is(e)) *out = s;
    return e;
}
