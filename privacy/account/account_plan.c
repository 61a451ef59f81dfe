/* Plans: the noise that a budget needs and the steps that it allows. */
#include "base/arena.h"
#include "base/limits.h"
#include "privacy/account/account.h"

#include <math.h>
#include <string.h>

static const double noise_least = 0.01, noise_most = 1e6, noise_precision = 1e-6;

/* A bracket of the point where epsilon, which falls in x, crosses the budget: at `out` it is over
 * the budget, at `in` within. Values are logarithms of x and of epsilon / budget, clipped to be
 * finite. */
struct bracket {
    double out, in, at_out, at_in;
    int same; /* how often the same end moved in a row; > 0: out, < 0: in */
};

static double log_excess(double epsilon, double budget)
{
    return fmin(fmax(log(epsilon / budget), -20), 20);
}

/* The Illinois variant of regula falsi: a line through both ends, where the value of an end that
 * stays is halved. By bisection if a value was clipped. */
static double bracket_guess(const struct bracket *b)
{
    if (b->at_out >= 20 || b->at_in <= -20 || b->at_out <= b->at_in) return (b->out + b->in) / 2;
    return b->out + (b->in - b->out) * b->at_out / (b->at_out - b->at_in);
}

static void bracket_move(struct bracket *b, double x, double at)
{
    if (at > 0) {
        b->out = x;
        b->at_out = at;
        b->same = b->same > 0 ? b->same + 1 : 1;
        if (b->same > 1) b->at_in /= 2;
    } else {
        b->in = x;
        b->at_in = at;
        b->same = b->same < 0 ? b->same - 1 : -1;
        if (b->same < -1) b->at_out /= 2;
    }
}

/* The events spent before, and the new event whose noise or count is searched for. */
struct plan {
    struct account_event *event; /* (before_count + 1), with the new event last */
    struct account_event *asked;
    const struct account_budget *budget;
    struct account_options options;
};

static err plan_excess(double *out, struct plan *plan)
{
    const struct account_budget *b = plan->budget;
    struct account_spent spent;
    TRY(account_epsilon(&spent, plan->event, b->before_count + 1, b->delta, &plan->options));
    *out = log_excess(spent.epsilon, b->epsilon);
    return ERR_NONE;
}

static err plan_open(struct plan *out, const struct account_event *event,
                     const struct account_budget *budget, const struct account_options *options,
                     struct arena *arena)
{
    struct account_spent spent;
    struct plan plan = {.budget = budget};
    if (options) plan.options = *options;
    if (!(budget->epsilon > 0 && budget->epsilon < INFINITY))
        return err_make(ERR_INPUT, "epsilon %g: expected above 0", budget->epsilon);
    TRY(arena_take(&plan.event, arena, budget->before_count + 1, sizeof *plan.event));
    if (budget->before_count)
        memcpy(plan.event, budget->before, budget->before_count * sizeof *plan.event);
    TRY(account_epsilon(&spent, plan.event, budget->before_count, budget->delta, &plan.options));
    if (spent.epsilon > budget->epsilon)
        return err_make(ERR_INPUT, "epsilon %g is spent already: %.6g at delta %g", budget->epsilon,
                        spent.epsilon, budget->delta);
    plan.asked = &plan.event[budget->before_count];
    *plan.asked = *event;
    *out = plan;
    return ERR_NONE;
}

/* ---- the noise ---- */

static err noise_excess(double *out, struct plan *plan, double log_noise)
{
    plan->asked->noise = exp(log_noise);
    return plan_excess(out, plan);
}

/* Goes outwards from a guess, in growing steps, until one end is over the budget and one within. */
static err noise_bracket(struct bracket *out, struct plan *plan, double guess, double step)
{
    const double least = log(noise_least), most = log(noise_most);
    struct bracket b = {.out = -INFINITY, .in = INFINITY};
    double x = fmin(fmax(guess, least), most);
    while (b.out == -INFINITY || b.in == INFINITY) {
        double at;
        TRY(noise_excess(&at, plan, x));
        if (at > 0) {
            if (x >= most)
                return err_make(ERR_INPUT,
                                "epsilon %g at delta %g cannot be kept, even with a noise "
                                "multiplier of %g",
                                plan->budget->epsilon, plan->budget->delta, noise_most);
            b.out = x;
            b.at_out = at;
            x = fmin(x + step, most);
        } else {
            b.in = x;
            b.at_in = at;
            if (x <= least) break; /* less noise than this is not accounted for */
            x = fmax(x - step, least);
        }
        step *= 2;
    }
    *out = b;
    return ERR_NONE;
}

struct search {
    double guess, step; /* a starting point, and the likely distance to the answer */
    double precision;
};

static err noise_search(double *out, struct plan *plan, const struct search *s)
{
    struct bracket b = {0};
    double precision = s->precision;
    TRY(noise_bracket(&b, plan, s->guess, s->step));
    while (b.in - b.out > precision && b.out > -INFINITY) {
        double x = bracket_guess(&b), edge = precision / 4, at;
        x = fmin(fmax(x, b.out + edge), b.in - edge);
        TRY(noise_excess(&at, plan, x));
        bracket_move(&b, x, at);
    }
    *out = b.in;
    return ERR_NONE;
}

/* A guess by cheap accountants, each starting at the result of the one before. */
static void guess_noise(struct search *out, struct plan *plan)
{
    struct search s = {.guess = 0, .step = 0.1, .precision = 1e-2};
    struct plan cheap = *plan;
    bool pld = plan->options.engine == ACCOUNT_PLD && plan->options.interval == 0;
    if (plan->options.engine != ACCOUNT_RDP && plan->options.adjacency == ACCOUNT_ADD_REMOVE) {
        cheap.options.engine = ACCOUNT_RDP;
        err failed = noise_search(&s.guess, &cheap, &s);
        if (err_is(failed)) s.guess = 0;
    }
    if (pld) {
        cheap.options = plan->options;
        cheap.options.rough = true;
        s.precision = 1e-4;
        err failed = noise_search(&s.guess, &cheap, &s);
        s.step = err_is(failed) ? 0.1 : 2e-3;
    }
    s.precision = noise_precision;
    *out = s;
}

err account_noise(double *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options)
{
    struct arena arena = {0};
    struct plan plan;
    struct search first;
    double x = 0;
    struct account_event valid = *event;
    valid.noise = 1;
    err e = ERR_NONE;
    TRY(account_check_event(&valid));
    TRY_OUT(e, plan_open(&plan, &valid, budget, options, &arena));
    guess_noise(&first, &plan);
    TRY_OUT(e, noise_search(&x, &plan, &first));
    *out = exp(x);
out:
    arena_close(&arena);
    return e;
}

/* ---- the steps ---- */

/* A number of steps that the mesh of PRV cannot resolve counts as over the budget. */
static err steps_excess(double *out, struct plan *plan, uint64_t steps)
{
    plan->asked->count = steps;
    err e = plan_excess(out, plan);
    if (e.kind != ERR_LIMIT || plan->options.engine != ACCOUNT_PRV || steps == 1) return e;
    *out = 20;
    return ERR_NONE;
}

/* The least power of two of steps that is over the budget; 0 if there is none. */
static err steps_bracket(struct bracket *out, uint64_t *within, uint64_t *over, struct plan *plan)
{
    struct bracket b = {.at_in = -20};
    uint64_t in = 0, n = 1;
    for (;;) {
        double at;
        TRY(steps_excess(&at, plan, n));
        if (at > 0) {
            b.out = log((double)n);
            b.at_out = at;
            break;
        }
        b.in = log((double)n);
        b.at_in = at;
        in = n;
        if (n == LIMIT_ACCOUNT_STEPS) {
            n = 0;
            break;
        }
        n = n > LIMIT_ACCOUNT_STEPS / 4 ? LIMIT_ACCOUNT_STEPS : 4 * n;
    }
    *out = b;
    *within = in;
    *over = n;
    return ERR_NONE;
}

/* Goes outwards from a cheap answer, which is nearly right. */
static err steps_near(struct bracket *out, uint64_t *within, uint64_t *over, struct plan *plan,
                      uint64_t guess)
{
    struct bracket b = {.at_in = -20, .in = 0};
    uint64_t in = 0, beyond = 0, n = guess, away = guess / 512 + 1;
    while (!beyond || (!in && beyond > 1)) {
        double at;
        TRY(steps_excess(&at, plan, n));
        if (at > 0) {
            beyond = n;
            b.out = log((double)n);
            b.at_out = at;
            n = n > away ? n - away : 1;
        } else {
            in = n;
            b.in = log((double)n);
            b.at_in = at;
            if (n == LIMIT_ACCOUNT_STEPS) break;
            n = away < LIMIT_ACCOUNT_STEPS - n ? n + away : LIMIT_ACCOUNT_STEPS;
        }
        if (away < LIMIT_ACCOUNT_STEPS) away *= 4;
    }
    *out = b;
    *within = in;
    *over = beyond;
    return ERR_NONE;
}

static err steps_search(uint64_t *out, struct plan *plan, uint64_t near)
{
    struct bracket b = {0};
    uint64_t in = 0, over = 0;
    if (near)
        TRY(steps_near(&b, &in, &over, plan, near));
    else
        TRY(steps_bracket(&b, &in, &over, plan));
    while (over - in > 1 && over) {
        double guess = exp(bracket_guess(&b)), at;
        uint64_t n = guess < (double)over ? (uint64_t)guess : over - 1;
        n = n <= in ? in + 1 : n;
        TRY(steps_excess(&at, plan, n));
        bracket_move(&b, log((double)n), at);
        if (at > 0)
            over = n;
        else
            in = n;
    }
    *out = in;
    return ERR_NONE;
}

err account_steps(uint64_t *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options)
{
    struct arena arena = {0};
    struct plan plan;
    uint64_t steps = 0, guess = 0;
    struct account_event valid = *event;
    valid.count = 1;
    err e = ERR_NONE;
    TRY(account_check_event(&valid));
    TRY_OUT(e, plan_open(&plan, &valid, budget, options, &arena));
    if (plan.options.engine == ACCOUNT_PLD && plan.options.interval == 0) {
        struct plan rough = plan;
        rough.options.rough = true;
        err failed = steps_search(&guess, &rough, 0);
        if (err_is(failed)) guess = 0;
    }
    TRY_OUT(e, steps_search(&steps, &plan, guess));
    *out = steps;
out:
    arena_close(&arena);
    return e;
}
