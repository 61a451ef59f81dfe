#include "privacy/plan.h"

#include "privacy/clip.h"
#include "privacy/cohort.h"
#include "privacy/spend.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *or_else(const char *text, const char *fallback)
{
    return text && *text ? text : fallback;
}

static bool among(const char *word, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(word, *list)) return true;
    return false;
}

static void warn(struct plan_summary *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void warn(struct plan_summary *s, const char *format, ...)
{
    va_list args;
    if (s->warnings == PLAN_WARNINGS) return;
    va_start(args, format);
    vsnprintf(s->warning[s->warnings++], PLAN_WARNING_BYTES, format, args);
    va_end(args);
}

static err check_budget(const struct plan *p)
{
    if (!(p->epsilon > 0) || !isfinite(p->epsilon))
        return err_make(ERR_INPUT, "privacy: the budget is missing: expected epsilon above 0");
    if (!(p->delta > 0) || !(p->delta < 1))
        return err_make(ERR_INPUT,
                        "privacy: the budget is missing: expected delta between 0 and 1");
    if (p->units == 0)
        return err_make(ERR_INPUT, "privacy: the number of units is missing (members, or records)");
    if (p->delta * (double)p->units >= 1)
        return err_make(
            ERR_INPUT,
            "privacy: delta %.3g is not below one over the %llu %s (%.3g): it would allow "
            "publishing one of them whole",
            p->delta, (unsigned long long)p->units,
            p->unit == LEDGER_CLIENT ? "members" : "records", 1 / (double)p->units);
    return ERR_NONE;
}

/* Specification 1.4 to 1.6, 5.9. */
static err check_client_method(const struct plan *p)
{
    static const char *const linear[] = {"fed-sb", "ffa", "rolora", "fedsvd", NULL};
    static const char *const product[] = {"fedit",   "hetlora",   "fedex", "flexlora",
                                          "florist", "lora-fair", NULL};
    static const char *const kept[] = {"none", "norm", NULL};
    const char *robust = or_else(p->robust, "none");
    if (!strcmp(p->method, "flora"))
        return err_make(
            ERR_INPUT,
            "privacy: flora sends every member's factors to all members, so noise on a sum "
            "protects nobody: use fed-sb or ffa, or unit example");
    if (among(p->method, product))
        return err_make(
            ERR_INPUT,
            "privacy: %s averages both factors; their noises multiply, and the product's "
            "noise drowns any change: use fed-sb or ffa, or unit example",
            p->method);
    if (!among(p->method, linear))
        return err_make(
            ERR_INPUT,
            "privacy: method %s: none that client-level privacy is known for (fed-sb, ffa, "
            "rolora, fedsvd)",
            p->method);
    if (!among(robust, kept))
        return err_make(
            ERR_INPUT,
            "privacy: robust=%s picks by looking at all members, and what one member can "
            "move by that has no bound: use robust=norm, or unit example",
            robust);
    return ERR_NONE;
}

static err check_data_free(const struct plan *p)
{
    static const char *const weights[] = {"uniform", "given", NULL};
    const char *word = or_else(p->weights, "uniform");
    if (p->unit == LEDGER_CLIENT && !strcmp(word, "examples"))
        return err_make(
            ERR_INPUT,
            "privacy: weights by example counts depend on the data: expected uniform, or "
            "given ones that are public");
    if (p->unit == LEDGER_CLIENT && !among(word, weights))
        return err_make(ERR_INPUT, "privacy: weights %s: expected uniform or given", word);
    for (uint64_t i = 0; p->weight && i < p->units; i++)
        if (!(p->weight[i] > 0 && p->weight[i] <= 1))
            return err_make(ERR_INPUT, "privacy: weight %g: expected above 0, at most 1",
                            p->weight[i]);
    if (p->unit == LEDGER_CLIENT && p->quorum)
        return err_make(
            ERR_INPUT,
            "privacy: a quorum makes one member's part depend on the others': members are "
            "drawn, and a round waits for them or for its deadline");
    return ERR_NONE;
}

static err check_bases(const struct plan *p)
{
    static const char *const bases[] = {"seed", "weights", "public", "private", NULL};
    const char *word = or_else(p->bases, "seed");
    if (!strcmp(word, "gradient"))
        return err_make(ERR_INPUT,
                        "privacy: bases from gradients without noise reveal the data they "
                        "come from: expected seed, weights, public or private");
    if (!among(word, bases))
        return err_make(ERR_INPUT, "privacy: bases %s: expected seed, weights, public or private",
                        word);
    return ERR_NONE;
}

static err check_numbers(const struct plan *p)
{
    struct clip_bound bound;
    TRY(clip_bound_set(&bound, p->clip));
    if (!(p->sampling > 0 && p->sampling <= 1))
        return err_make(ERR_INPUT, "privacy: sampling rate %g: expected above 0, at most 1",
                        p->sampling);
    if (!(p->noise >= 0) || p->noise > 0x1p12)
        return err_make(ERR_INPUT,
                        "privacy: noise multiplier %g: expected 0 (what the budget needs) "
                        "to 4096",
                        p->noise);
    if (!p->rounds || !p->steps || !p->dim)
        return err_make(ERR_INPUT, "privacy: expected rounds, steps and coordinates above 0");
    return ERR_NONE;
}

static err account(struct plan_summary *s, const struct plan *p)
{
    struct account_event event = {
        .noise = p->noise, .sampling = p->sampling, .count = (uint64_t)p->rounds * p->steps};
    const struct account_budget cap = {.epsilon = p->epsilon, .delta = p->delta};
    struct spend budget = {0};
    struct spend_total spent;
    uint64_t steps = event.count;
    if (p->noise == 0) TRY(account_noise(&event.noise, &event, &cap, NULL));
    TRY(spend_open(&budget, p->epsilon, p->delta));
    err e = spend_after(&spent, &budget, &event);
    if (!err_is(e) && spent.epsilon > p->epsilon) {
        e = account_steps(&steps, &event, &cap, NULL);
        if (!err_is(e) && steps < p->steps)
            e = err_make(ERR_INPUT,
                         "privacy: noise multiplier %g spends more than epsilon %g in one round: "
                         "expected a larger one, or a larger budget",
                         event.noise, p->epsilon);
    }
    spend_close(&budget);
    if (err_is(e)) return e;
    s->noise = event.noise;
    s->epsilon = spent.epsilon;
    s->rdp = spent.rdp;
    s->rounds = steps / p->steps;
    if (s->rounds < p->rounds)
        warn(s, "the budget ends after %llu of %u rounds: the run stops there",
             (unsigned long long)s->rounds, p->rounds);
    return ERR_NONE;
}

static err check_feasible(struct plan_summary *s, const struct plan *p)
{
    double z = s->noise;
    s->expected = p->sampling * (double)p->units;
    s->denominator = p->weight ? cohort_denominator(p->sampling, p->weight, p->units) : s->expected;
    s->adaptive = p->adaptive;
    if (p->adaptive.on) {
        if (s->adaptive.sigma_b == 0) s->adaptive.sigma_b = s->expected / 20;
        TRY(adaptive_split(&z, s->noise, s->adaptive.sigma_b));
        if (z >= 2 * s->noise)
            warn(
                s,
                "adaptive clipping takes most of the noise budget: the changes get multiplier %.4g",
                z);
    }
    s->ratio = z / s->denominator * sqrt((double)p->dim);
    if (p->unit == LEDGER_CLIENT && s->ratio > 1 && !p->force)
        return err_make(
            ERR_INPUT,
            "privacy: hopeless: the noise in the mean is %.3g times the clip norm "
            "(multiplier %.4g, %.4g members expected, %llu coordinates): expected at most 1; "
            "more members, a smaller rank, a larger budget, or force",
            s->ratio, z, s->expected, (unsigned long long)p->dim);
    if (p->unit == LEDGER_CLIENT && s->ratio > 1)
        warn(s, "forced: the noise in the mean is %.3g times the clip norm", s->ratio);
    return ERR_NONE;
}

err plan_check(struct plan_summary *out, const struct plan *p)
{
    struct plan_summary s = {0};
    TRY(check_budget(p));
    if (p->unit == LEDGER_CLIENT) TRY(check_client_method(p));
    TRY(check_data_free(p));
    TRY(check_bases(p));
    TRY(check_numbers(p));
    if (p->delta > fmin(1e-5, 0.1 / (double)p->units))
        warn(&s, "delta %.3g is large for %llu units: %.3g is advised", p->delta,
             (unsigned long long)p->units, fmin(1e-5, 0.1 / (double)p->units));
    TRY(account(&s, p));
    TRY(check_feasible(&s, p));
    *out = s;
    return ERR_NONE;
}

err plan_text(struct bytes *out, const struct plan *p, const struct plan_summary *s)
{
    bool client = p->unit == LEDGER_CLIENT;
    TRY(bytes_printf(out,
                     "privacy: unit %s, %llu %s, epsilon %.4g of %.4g at delta %.3g after %llu "
                     "rounds\n",
                     client ? "client" : "example", (unsigned long long)p->units,
                     client ? "members" : "records", fmin(s->epsilon, p->epsilon), p->epsilon,
                     p->delta, (unsigned long long)s->rounds));
    TRY(bytes_printf(out,
                     "privacy: noise multiplier %.6g, clip norm %.4g%s, rate %.4g, denominator "
                     "%.6g; noise norm over clip norm %.4g\n",
                     s->noise, p->clip, p->adaptive.on ? " at first" : "", p->sampling,
                     s->denominator, s->ratio));
    for (size_t i = 0; i < s->warnings; i++)
        TRY(bytes_printf(out, "privacy: warning: %s\n", s->warning[i]));
    return ERR_NONE;
}

struct ledger_terms plan_terms(const struct plan *p, const struct plan_summary *s, const char *job,
                               const char *party)
{
    return (struct ledger_terms){.job = job,
                                 .party = party,
                                 .unit = p->unit,
                                 .method = p->method,
                                 .weights = or_else(p->weights, "uniform"),
                                 .bases = or_else(p->bases, "seed"),
                                 .epsilon = p->epsilon,
                                 .delta = p->delta,
                                 .noise = s->noise,
                                 .sampling = p->sampling,
                                 .clip = p->clip,
                                 .adaptive = s->adaptive,
                                 .denominator = s->denominator,
                                 .units = p->units,
                                 .dim = p->dim,
                                 .rounds = p->rounds,
                                 .steps = p->steps};
}
