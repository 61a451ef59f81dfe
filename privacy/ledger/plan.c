#include "privacy/ledger/plan.h"

#include "privacy/ledger/spend.h"
#include "privacy/noise/clip.h"
#include "privacy/noise/cohort.h"

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

static err check_client_method(const struct plan *p)
{
    static const char *const kept[] = {"none", "norm", NULL};
    const char *robust = or_else(p->robust, "none");
    if (!p->client_method)
        return err_make(ERR_INPUT,
                        "privacy: %s %s: use a method with client-level privacy (`fedlora run "
                        "create --help` lists them), or unit example",
                        p->method,
                        or_else(p->client_refusal, "is not known to support client-level privacy"));
    if (!among(robust, kept))
        return err_make(ERR_INPUT,
                        "privacy: robust=%s picks by looking at all members, so the influence of "
                        "one member has no "
                        "bound: use robust=norm, or unit example",
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
            "privacy: a quorum makes one member's part depend on the others', but the accounting "
            "assumes "
            "independent draws: give no quorum; a round waits for its members or its deadline");
    return ERR_NONE;
}

static err check_bases(const struct plan *p)
{
    static const char *const bases[] = {"seed", "weights", "given", "private", NULL};
    const char *word = or_else(p->bases, "seed");
    if (!strcmp(word, "gradient") && !(p->basis_passes && p->basis_clip > 0))
        return err_make(ERR_INPUT,
                        "privacy: bases from gradients without noise reveal the data of the "
                        "gradients: expected a clip norm for them (--basis-clip), or "
                        "--option basis=seeded or weights");
    if (strcmp(word, "gradient") != 0 && !among(word, bases))
        return err_make(ERR_INPUT, "privacy: bases %s: expected seed, weights, given or private",
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
                        "privacy: noise multiplier %g: expected 0 (the least that the budget "
                        "allows) to 4096",
                        p->noise);
    if (!p->rounds || !p->steps || (!p->dim && p->unit == LEDGER_CLIENT))
        return err_make(ERR_INPUT, "privacy: expected rounds, steps and coordinates above 0");
    if (!p->basis_passes) return ERR_NONE;
    if (!(p->basis_noise >= 0) || p->basis_noise > 0x1p12)
        return err_make(ERR_INPUT,
                        "privacy: noise multiplier %g of the basis: expected 0 (a fifth of the "
                        "budget) to 4096",
                        p->basis_noise);
    err e = clip_bound_set(&bound, p->basis_clip);
    return err_is(e) ? err_in(e, "privacy: basis") : ERR_NONE;
}

/* The event that is spent before the first round. */
static err account_basis(struct account_event *out, const struct plan *p)
{
    struct account_event event = {.noise = p->basis_noise, .sampling = 1, .count = p->basis_passes};
    const struct account_budget share = {.epsilon = PLAN_BASIS_SHARE * p->epsilon,
                                         .delta = p->delta};
    if (p->basis_passes && p->basis_noise == 0)
        TRY(account_noise(&event.noise, &event, &share, NULL));
    *out = event;
    return ERR_NONE;
}

static err account(struct plan_summary *s, const struct plan *p)
{
    struct account_event basis, event = {.noise = p->noise,
                                         .sampling = p->sampling,
                                         .count = (uint64_t)p->rounds * p->steps};
    struct account_budget cap = {.epsilon = p->epsilon, .delta = p->delta, .before = &basis};
    struct spend budget = {0};
    struct spend_total spent;
    uint64_t steps = event.count;
    TRY(account_basis(&basis, p));
    cap.before_count = basis.count ? 1 : 0;
    if (p->noise == 0) TRY(account_noise(&event.noise, &event, &cap, NULL));
    TRY(spend_open(&budget, p->epsilon, p->delta));
    err e = basis.count ? spend_charge(&budget, &basis) : ERR_NONE;
    if (!err_is(e)) e = spend_after(&spent, &budget, &event);
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
    s->basis_noise = basis.noise;
    s->epsilon = spent.epsilon;
    s->rdp = spent.rdp;
    s->rounds = steps / p->steps;
    if (s->rounds < p->rounds)
        warn(s, "the budget ends after %llu of %u rounds, and the run will stop there",
             (unsigned long long)s->rounds, p->rounds);
    return ERR_NONE;
}

/* Refuses noise in the mean that is larger than the clip norm, because it would exceed the signal
 * even if every change were as large as allowed. */
static err judge_ratio(struct plan_summary *s, const struct plan *p, bool basis)
{
    const char *what = basis ? " for the basis" : "";
    double ratio = basis ? s->basis_ratio : s->ratio;
    double denominator = basis ? s->basis_denominator : s->denominator;
    uint64_t dim = basis ? p->basis_dim : p->dim;
    if (p->unit != LEDGER_CLIENT || ratio <= 1) return ERR_NONE;
    if (!p->force)
        return err_make(ERR_INPUT,
                        "privacy: hopeless: the noise in the mean%s is %s%.3g times the clip norm "
                        "(multiplier %.4g, %.4g members expected, %llu coordinates%s): expected at "
                        "most 1, in a new run with more members, a smaller rank, a larger budget, "
                        "or --force-noise",
                        what, dim > 1 ? "" : "at least ", ratio,
                        ratio * denominator / sqrt((double)dim),
                        basis ? (double)p->units : s->expected, (unsigned long long)dim,
                        dim > 1 ? "" : " or more");
    warn(s, "forced: the noise in the mean%s is %.3g times the clip norm", what, ratio);
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
                "adaptive clipping takes most of the noise budget; the changes get multiplier %.4g",
                z);
    }
    s->ratio = z / s->denominator * sqrt((double)p->dim);
    TRY(judge_ratio(s, p, /*basis*/ false));
    if (!p->basis_passes) return ERR_NONE;
    s->basis_denominator =
        p->weight ? cohort_denominator(1, p->weight, p->units) : (double)p->units;
    s->basis_ratio = s->basis_noise / s->basis_denominator * sqrt((double)p->basis_dim);
    return judge_ratio(s, p, /*basis*/ true);
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

static err print_ratio(struct bytes *out, double ratio)
{
    if (ratio > 0) TRY(bytes_printf(out, "; noise norm over clip norm %.4g", ratio));
    return bytes_printf(out, "\n");
}

err plan_text(struct bytes *out, const struct plan *p, const struct plan_summary *s)
{
    bool client = p->unit == LEDGER_CLIENT;
    TRY(bytes_printf(out,
                     "privacy: unit %s, %llu %s, epsilon %.4g of %.4g at delta %.3g after %llu "
                     "round%s\n",
                     client ? "client" : "example", (unsigned long long)p->units,
                     client ? "members" : "records", fmin(s->epsilon, p->epsilon), p->epsilon,
                     p->delta, (unsigned long long)s->rounds, s->rounds == 1 ? "" : "s"));
    TRY(bytes_printf(
        out, "privacy: noise multiplier %.6g, clip norm %.4g%s, rate %.4g, denominator %.6g",
        s->noise, p->clip, p->adaptive.on ? " at first" : "", p->sampling, s->denominator));
    TRY(print_ratio(out, s->ratio));
    if (p->basis_passes) {
        TRY(bytes_printf(out,
                         "privacy: basis by %u passes over everyone: noise multiplier %.6g, clip "
                         "norm %.4g",
                         p->basis_passes, s->basis_noise, p->basis_clip));
        TRY(print_ratio(out, s->basis_ratio));
    }
    for (size_t i = 0; i < s->warnings; i++)
        TRY(bytes_printf(out, "privacy: warning: %s\n", s->warning[i]));
    return ERR_NONE;
}

struct ledger_terms plan_terms(const struct plan *p, const struct plan_summary *s, const char *job,
                               const char *party)
{
    return (struct ledger_terms){.job = job,
                                 .party = party,
                                 .purpose = "training",
                                 .unit = p->unit,
                                 .method = p->method,
                                 .weights = or_else(p->weights, "uniform"),
                                 .bases = p->basis_passes ? "private" : or_else(p->bases, "seed"),
                                 .epsilon = p->epsilon,
                                 .delta = p->delta,
                                 .noise = s->noise,
                                 .sampling = p->sampling,
                                 .clip = p->clip,
                                 .adaptive = s->adaptive,
                                 .denominator = s->denominator,
                                 .cohorts = p->cohorts,
                                 .given = p->given,
                                 .units = p->units,
                                 .dim = p->dim,
                                 .rounds = p->rounds,
                                 .steps = p->steps,
                                 .simulated = p->simulated};
}

struct ledger_terms plan_basis_terms(const struct plan *p, const struct plan_summary *s,
                                     const char *job, const char *party)
{
    struct ledger_terms t = plan_terms(p, s, job, party);
    t.purpose = "basis";
    t.noise = s->basis_noise;
    t.sampling = 1;
    t.clip = p->basis_clip;
    t.adaptive = (struct adaptive){0};
    t.denominator = s->basis_denominator;
    t.dim = p->basis_dim;
    t.rounds = p->basis_passes;
    t.steps = 1;
    return t;
}
