#include "coordinator/run_privacy.h"

#include "agg/method_options.h"
#include "coordinator/run_config.h"
#include "proto/message.h"

#include <stdlib.h>
#include <string.h>

typedef Fedlora__V1__RunConfig run_config_t;

static const double sampling_default = 1, quantile_default = 0.5, rate_default = 0.2;

struct given {
    const char *id;
    double weight;
};

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct given *)a)->id, ((const struct given *)b)->id);
}

/* Members and their public weights, sorted by id. */
static err take_weights(struct private_terms *out, const run_config_t *c, struct arena *arena)
{
    struct given *given = NULL;
    const char **id = NULL;
    double *weight = NULL;
    TRY(arena_take(&given, arena, c->n_members, sizeof *given));
    TRY(arena_take(&id, arena, c->n_members, sizeof *id));
    TRY(arena_take(&weight, arena, c->n_members, sizeof *weight));
    for (size_t i = 0; i < c->n_members; i++)
        given[i] = (struct given){c->members[i]->id, c->members[i]->weight};
    qsort(given, c->n_members, sizeof *given, by_id);
    for (size_t i = 0; i < c->n_members; i++) {
        TRY(arena_text(&id[i], arena, given[i].id, strlen(given[i].id)));
        weight[i] = given[i].weight;
    }
    out->id = id;
    if (!strcmp(c->weights, "given")) out->plan.weight = weight;
    return ERR_NONE;
}

static const char *robust_word(const struct method_options *o)
{
    static const char *const words[] = {"none", "norm", "krum", "median", "trimmed", "geometric"};
    return words[o->robust];
}

static const char *basis_word(const struct method_options *o)
{
    static const char *const words[] = {"seed", "weights", "gradient"};
    return words[o->basis];
}

err run_privacy_terms(struct private_terms *out, const run_config_t *c, const char *key_path,
                      struct arena *arena)
{
    const Fedlora__V1__Privacy *p = c->privacy;
    struct private_terms terms = {.on = p != NULL};
    struct method_options options;
    if (!p) {
        *out = terms;
        return ERR_NONE;
    }
    run_config_options(&options, c);
    terms.plan = (struct plan){.unit = LEDGER_CLIENT,
                               .bases = basis_word(&options),
                               .robust = robust_word(&options),
                               .epsilon = p->epsilon,
                               .delta = p->delta,
                               .noise = p->noise,
                               .sampling = p->sampling,
                               .clip = p->clip,
                               .adaptive = {.on = p->adaptive,
                                            .quantile = p->quantile,
                                            .rate = p->rate,
                                            .sigma_b = p->sigma_b},
                               .units = c->n_members,
                               .dim = 1,
                               .rounds = c->rounds,
                               .steps = 1,
                               .quorum = c->quorum > 0,
                               .force = p->force};
    TRY(arena_text(&terms.run, arena, c->name, strlen(c->name)));
    TRY(arena_text(&terms.plan.method, arena, c->method, strlen(c->method)));
    TRY(arena_text(&terms.plan.weights, arena, c->weights, strlen(c->weights)));
    if (key_path) TRY(arena_text(&terms.key_path, arena, key_path, strlen(key_path)));
    TRY(take_weights(&terms, c, arena));
    *out = terms;
    return ERR_NONE;
}

double run_privacy_sampling(const run_config_t *c)
{
    return c->privacy ? c->privacy->sampling : 1;
}

static err check_plan(const run_config_t *c)
{
    struct arena arena = {0};
    struct private_terms terms;
    struct plan_summary summary;
    err e = run_privacy_terms(&terms, c, NULL, &arena);
    if (!err_is(e)) e = plan_check(&summary, &terms.plan);
    arena_close(&arena);
    return e;
}

err run_privacy_check(run_config_t *c)
{
    Fedlora__V1__Privacy *p = c->privacy;
    if (!p) return ERR_NONE;
    if (!strcmp(p->unit, "none")) {
        message_free(p);
        c->privacy = NULL;
        return ERR_NONE;
    }
    if (strcmp(p->unit, "client"))
        return err_make(ERR_INPUT,
                        "privacy: unit \"%s\": a coordinator gives unit client; unit example is "
                        "given by each member's own training",
                        p->unit);
    if (p->sampling == 0) p->sampling = sampling_default;
    if (p->quantile == 0) p->quantile = quantile_default;
    if (p->rate == 0) p->rate = rate_default;
    if (!(p->quantile > 0 && p->quantile < 1) || !(p->rate > 0 && p->rate <= 10) ||
        !(p->sigma_b >= 0))
        return err_make(
            ERR_INPUT,
            "privacy: adaptive clipping: quantile %g, rate %g, sigma_b %g: expected 0 to "
            "1, 0 to 10, 0 or more",
            p->quantile, p->rate, p->sigma_b);
    if (strcmp(c->late, "refuse"))
        return err_make(ERR_INPUT,
                        "privacy: late updates would count a member in a round it was not "
                        "drawn for: expected late refuse");
    if (c->evaluate_every)
        return err_make(ERR_INPUT, "privacy: members' evaluations reveal what the budget does not "
                                   "count: expected evaluate_every 0");
    return check_plan(c);
}
