/* The replay; statement_page.c writes the page. */
#include "privacy/ledger/statement.h"

#include "privacy/noise/clip.h"

#include <math.h>
#include <string.h>

enum { PLD_CHECKS = 64 };
#define SIGMA_MOST (1ull << 48) /* gauss.h */

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

/* Checks a release line by itself and against the plan in force. */
static err check_release(double *drawn, const struct ledger_terms *t,
                         const struct ledger_release *r, uint32_t last_round)
{
    TRY(account_check_event(&r->charged));
    if (r->charged.mechanism != ACCOUNT_GAUSSIAN || r->charged.count != t->steps)
        return err_make(ERR_INPUT, "%llu steps of %s, but %u of Gaussian noise were promised",
                        (unsigned long long)r->charged.count,
                        r->charged.mechanism == ACCOUNT_GAUSSIAN ? "Gaussian noise"
                                                                 : "another mechanism",
                        t->steps);
    if (r->sigma > SIGMA_MOST || r->sigma_bits > SIGMA_MOST)
        return err_make(ERR_INPUT, "a deviation of more than 2^48 lattice steps");
    if (t->adaptive.on != (r->sigma_bits > 0))
        return err_make(ERR_INPUT, "a count of unclipped members %s",
                        t->adaptive.on ? "is missing" : "that was not promised");
    TRY(statement_drawn(drawn, r));
    if (*drawn < r->charged.noise * (1 - ADAPTIVE_ROUNDING))
        return err_make(ERR_INPUT, "the noise has multiplier %.6g, less than the %.6g charged",
                        *drawn, r->charged.noise);
    if (r->denominator != t->denominator)
        return err_make(ERR_INPUT, "the denominator is %.6g, but %.6g was promised", r->denominator,
                        t->denominator);
    if (r->charged.sampling != t->sampling)
        return err_make(ERR_INPUT, "sampling rate %.6g, but %.6g was promised", r->charged.sampling,
                        t->sampling);
    if ((!t->adaptive.on || !last_round) && r->clip != t->clip)
        return err_make(ERR_INPUT, "clip norm %.6g, but %.6g was promised", r->clip, t->clip);
    if (r->dim > t->dim) /* fewer are right if a method trains one factor at a time */
        return err_make(ERR_INPUT, "%llu coordinates, but %llu were promised",
                        (unsigned long long)r->dim, (unsigned long long)t->dim);
    return ERR_NONE;
}

static err check_spent(const struct ledger_release *r, const struct spend *budget, double before,
                       bool with_pld)
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
        spent.rdp_order = rdp.order;
    }
    if (differs(spent.rdp, r->rdp))
        return err_make(ERR_INPUT, "epsilon by RDP is %.9g, but the line has %.9g", spent.rdp,
                        r->rdp);
    if (differs(spent.rdp_order, r->order))
        return err_make(ERR_INPUT, "the order is %.9g, but the line has %.9g", spent.rdp_order,
                        r->order);
    if (with_pld && differs(spent.epsilon, r->epsilon))
        return err_make(ERR_INPUT, "epsilon is %.9g, but the line has %.9g", spent.epsilon,
                        r->epsilon);
    if (r->epsilon < before || r->epsilon > r->rdp + 1e-3)
        return err_make(ERR_INPUT,
                        "the line has epsilon %.9g: expected at least the earlier %.9g, and at "
                        "most %.9g by RDP",
                        r->epsilon, before, r->rdp);
    if (r->epsilon > budget->epsilon * (1 + 1e-9))
        return err_make(ERR_INPUT, "the budget was exceeded: epsilon %.6g of %.6g", r->epsilon,
                        budget->epsilon);
    return ERR_NONE;
}

static err check_terms(const struct ledger_terms *t, double delta)
{
    static const struct digest none;
    if (t->unit == LEDGER_CLIENT && t->sampling < 1 && digest_equal(&t->cohorts, &none))
        return err_make(ERR_INPUT, "members are drawn, but the line does not commit to the seeds");
    if (t->units == 0 || delta * (double)t->units >= 1)
        return err_make(ERR_INPUT,
                        "delta %.3g with %llu units: expected below one over their number", delta,
                        (unsigned long long)t->units);
    if (!(t->denominator > 0)) return err_make(ERR_INPUT, "denominator: expected above 0");
    return ERR_NONE;
}

struct replay {
    struct statement s;
    struct spend budget;
    size_t last;         /* entry: the last release */
    uint32_t last_round; /* last round released under the plan in force; 0: none */
    uint32_t rounds;     /* newest round released under any plan */
};

static err replay_release(struct replay *p, size_t i)
{
    const struct ledger_entry *entry = &p->s.ledger->entry[i];
    const struct ledger_release *r = &entry->release;
    if (p->s.stopped && entry->terms->unit == LEDGER_CLIENT)
        return err_make(ERR_INPUT, "a release after the stop");
    size_t every = p->s.ledger->count / PLD_CHECKS + 1;
    double drawn = 0;
    /* A coordinator releases each round once. A member may train a round again if the coordinator
     * was restored to an older state; each time counts. */
    if (entry->terms->unit == LEDGER_CLIENT && r->round != p->rounds + 1)
        return err_make(ERR_INPUT, "round %u after round %u", r->round, p->rounds);
    TRY(check_release(&drawn, entry->terms, r, p->last_round));
    TRY(spend_charge(&p->budget, &r->charged));
    TRY(check_spent(r, &p->budget, p->s.spent.epsilon, i == p->last || p->s.releases % every == 0));
    p->s.noise_least = p->s.releases ? fmin(p->s.noise_least, drawn) : drawn;
    p->s.releases++;
    p->s.steps += r->charged.count;
    p->s.spent = (struct spend_total){r->epsilon, r->rdp, r->order};
    p->last_round = p->rounds = r->round;
    return ERR_NONE;
}

static err spent_seen(double *out, const struct spend *budget)
{
    struct spend seen = {0};
    struct spend_total total = {0};
    TRY(spend_open(&seen, budget->epsilon, budget->delta));
    err e = ERR_NONE;
    for (size_t i = 0; i < budget->count && !err_is(e); i++) {
        struct account_event event = budget->event[i];
        event.sampling = 1;
        e = spend_charge(&seen, &event);
    }
    if (!err_is(e)) e = spend_after(&total, &seen, NULL);
    spend_close(&seen);
    *out = total.epsilon;
    return e;
}

static err replay_entry(struct replay *p, size_t i)
{
    const struct ledger_entry *entry = &p->s.ledger->entry[i];
    if (!strcmp(entry->kind, "release")) return replay_release(p, i);
    if (!strcmp(entry->kind, "stop")) p->s.stopped = entry->text;
    if (strcmp(entry->kind, "plan") != 0) return ERR_NONE;
    p->s.plans++;
    p->last_round = 0;
    /* A coordinator's ledger has one run: perhaps the passes for a basis, then training. */
    if (entry->terms->unit == LEDGER_CLIENT &&
        (p->s.plans > 2 || strcmp(p->s.ledger->terms.purpose, "basis") ||
         strcmp(entry->terms->purpose, "training") ||
         strcmp(entry->terms->job, p->s.ledger->terms.job)))
        return err_make(ERR_INPUT, "another plan, but the ledger is for one run");
    return check_terms(entry->terms, p->s.ledger->terms.delta);
}

err statement_replay(struct statement *out, const struct ledger *ledger, const char *name)
{
    struct replay p = {.s = {.ledger = ledger, .plans = 1}};
    err e = check_terms(&ledger->terms, ledger->terms.delta);
    if (!err_is(e)) e = spend_open(&p.budget, ledger->terms.epsilon, ledger->terms.delta);
    if (err_is(e)) return err_in(e, "%s:1", name);
    for (size_t i = 0; i < ledger->count; i++)
        if (!strcmp(ledger->entry[i].kind, "release")) p.last = i;
    for (size_t i = 0; i < ledger->count && !err_is(e); i++) {
        e = replay_entry(&p, i);
        if (err_is(e)) e = err_in(e, "%s:%zu", name, i + 2);
    }
    if (!err_is(e)) e = spent_seen(&p.s.seen, &p.budget);
    spend_close(&p.budget);
    if (!err_is(e)) *out = p.s;
    return e;
}
