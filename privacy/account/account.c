#include "privacy/account/account.h"

#include "base/arena.h"
#include "base/limits.h"
#include "privacy/account/account_gaussian.h"
#include "privacy/account/pld.h"
#include "privacy/account/prv.h"
#include "privacy/account/rdp.h"

#include <math.h>

static const struct account_options defaults = {0};
static const double prv_error_default = 0.01, rough_cells = 1 << 15;

const char *account_engine_name(enum account_engine engine)
{
    static const char *const name[] = {"pld", "rdp", "prv"};
    return name[engine];
}

err account_check_event(const struct account_event *event)
{
    if (event->mechanism != ACCOUNT_GAUSSIAN && event->mechanism != ACCOUNT_FIXED_SIZE)
        return err_make(ERR_INPUT,
                        "mechanism %d: expected Gaussian noise under Poisson or "
                        "fixed-size sampling",
                        event->mechanism);
    if (!(event->noise >= 0.01 && event->noise <= 1e6))
        return err_make(ERR_INPUT, "noise multiplier %g: expected 0.01 to 1e6", event->noise);
    if (!(event->sampling > 0 && event->sampling <= 1))
        return err_make(ERR_INPUT, "sampling rate %g: expected above 0 and at most 1",
                        event->sampling);
    if (event->count > LIMIT_ACCOUNT_STEPS)
        return err_make(ERR_INPUT, "%llu steps: expected at most %llu",
                        (unsigned long long)event->count, LIMIT_ACCOUNT_STEPS);
    return ERR_NONE;
}

static err check(const struct account_event *event, size_t count, double delta,
                 const struct account_options *o)
{
    if (!(delta > 0 && delta < 1))
        return err_make(ERR_INPUT, "delta %g: expected above 0 and below 1", delta);
    for (size_t i = 0; i < count; i++) {
        TRY(account_check_event(&event[i]));
        if (event[i].mechanism == ACCOUNT_FIXED_SIZE &&
            (o->engine != ACCOUNT_RDP || o->adjacency != ACCOUNT_REPLACE_ONE))
            return err_make(ERR_INPUT, "sampling of a fixed size is accounted for only by rdp, "
                                       "with neighbours that replace one unit by another");
        if (event[i].mechanism == ACCOUNT_GAUSSIAN && event[i].sampling < 1 &&
            o->engine == ACCOUNT_RDP && o->adjacency == ACCOUNT_REPLACE_ONE)
            return err_make(ERR_INPUT, "Poisson sampling with neighbours that replace one unit by "
                                       "another is accounted for only by pld");
    }
    if (o->engine == ACCOUNT_PRV && o->adjacency == ACCOUNT_REPLACE_ONE)
        return err_make(ERR_INPUT, "prv accounts only for adding or removing a unit");
    return ERR_NONE;
}

/* ---- RDP ---- */

static double rdp_of(const struct account_event *event, double order,
                     const struct account_options *o)
{
    /* Replacing a unit that takes part moves the sum by 2 C. */
    double z = o->adjacency == ACCOUNT_REPLACE_ONE ? event->noise / 2 : event->noise;
    if (event->mechanism == ACCOUNT_FIXED_SIZE) return rdp_fixed_size(event->sampling, z, order);
    return rdp_poisson(event->sampling, z, order, o->rdp_signed);
}

static err spend_rdp(struct account_spent *out, const struct account_event *event, size_t count,
                     double delta, const struct account_options *o)
{
    struct arena arena = {0};
    const double *order = o->order ? o->order : rdp_orders();
    size_t orders = o->order ? o->order_count : RDP_ORDERS;
    double *rdp;
    REQUIRE(orders > 0);
    TRY(arena_take(&rdp, &arena, orders, sizeof *rdp));
    for (size_t k = 0; k < orders; k++)
        for (size_t i = 0; i < count; i++)
            if (event[i].count) rdp[k] += (double)event[i].count * rdp_of(&event[i], order[k], o);
    struct account_spent spent = {0};
    spent.epsilon = rdp_epsilon(&spent.order, order, rdp, orders, delta);
    arena_close(&arena);
    *out = spent;
    return ERR_NONE;
}

/* ---- PLD and PRV ---- */

/* Merges the events: equal ones are added up, and all releases of full participation become one
 * Gaussian mechanism, to which they compose exactly. */
static size_t merge(struct pld_event *out, const struct account_event *event, size_t count)
{
    size_t merged = 0;
    double square = 0; /* squares of mu, for releases of full participation */
    for (size_t i = 0; i < count; i++) {
        const struct account_event *e = &event[i];
        size_t k = 0;
        if (e->count == 0) continue;
        if (e->sampling == 1) {
            square += (double)e->count / (e->noise * e->noise);
            continue;
        }
        while (k < merged && (out[k].z != e->noise || out[k].q != e->sampling))
            k++;
        if (k == merged) out[merged++] = (struct pld_event){e->noise, e->sampling, 0};
        out[k].count += e->count;
    }
    if (square > 0) out[merged++] = (struct pld_event){1 / sqrt(square), 1, 1};
    return merged;
}

static err spend_pld(struct account_spent *out, const struct pld_event *event, size_t count,
                     double delta, const struct account_options *o)
{
    bool replace = o->adjacency == ACCOUNT_REPLACE_ONE;
    struct account_spent spent = {0};
    if (count == 1 && event->q == 1) {
        double mu = (replace ? 2 : 1) / event->z;
        spent.epsilon = account_gaussian_epsilon(mu, delta);
    } else {
        struct pld_options how = {.interval = o->interval, .replace_one = replace};
        if (o->rough) how.cells = rough_cells;
        struct pld_result r;
        TRY(pld_epsilon(&r, event, count, delta, &how));
        spent.epsilon = r.epsilon;
        spent.interval = r.interval;
    }
    *out = spent;
    return ERR_NONE;
}

static err spend_prv(struct account_spent *out, const struct pld_event *event, size_t count,
                     double delta, const struct account_options *o)
{
    struct prv_result r;
    double error = o->prv_error > 0 ? o->prv_error : prv_error_default;
    TRY(prv_epsilon(&r, event, count, delta, error));
    *out = (struct account_spent){.epsilon = r.upper, .lower = r.lower};
    return ERR_NONE;
}

err account_epsilon(struct account_spent *out, const struct account_event *event, size_t count,
                    double delta, const struct account_options *options)
{
    const struct account_options *o = options ? options : &defaults;
    struct arena arena = {0};
    struct pld_event *few;
    err e = ERR_NONE;
    TRY(check(event, count, delta, o));
    if (o->engine == ACCOUNT_RDP) return spend_rdp(out, event, count, delta, o);
    TRY(arena_take(&few, &arena, count + 1, sizeof *few));
    size_t merged = merge(few, event, count);
    if (merged == 0)
        *out = (struct account_spent){0};
    else if (o->engine == ACCOUNT_PLD)
        e = spend_pld(out, few, merged, delta, o);
    else
        e = spend_prv(out, few, merged, delta, o);
    arena_close(&arena);
    return e;
}
