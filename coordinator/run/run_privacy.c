#include "coordinator/run/run_privacy.h"

#include "agg/round/method_options.h"
#include "proto/message.h"

#include <math.h>
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

/* The weights are public and part of the plan. They are sorted by id, because the plan must not
 * depend on the order in the configuration. */
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

/* Under the names that the privacy ledger uses for the origin of the frozen factors. */
static const char *basis_word(const struct method_options *o, const run_config_t *c)
{
    static const char *const words[] = {"seed", "weights", "gradient"};
    return o->basis == METHOD_BASIS_SEEDED && c->frozen_digest.len ? "given" : words[o->basis];
}

/* dim and basis_dim are placeholders: the worker fills in the real dimensions once the start
 * state exists (private_measure). */
err run_privacy_terms(struct private_terms *out, const run_config_t *c,
                      const struct method_options *options, const char *key_path,
                      struct arena *arena)
{
    const Fedlora__V1__Privacy *p = c->privacy;
    struct private_terms terms = {.on = run_privacy_central(c)};
    if (!terms.on) {
        *out = terms;
        return ERR_NONE;
    }
    const struct method *method = method_find(c->method);
    REQUIRE(method);
    terms.plan = (struct plan){.unit = LEDGER_CLIENT,
                               .bases = basis_word(options, c),
                               .robust = method_options_choice(options, "robust"),
                               .client_method = method->client_private,
                               .client_refusal = method->client_refusal,
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
                               .rounds = c->rounds - method_setup_rounds(options),
                               .steps = 1,
                               .basis_passes = method_setup_rounds(options),
                               .basis_noise = p->basis_noise,
                               .basis_clip = p->basis_clip,
                               .basis_dim = 1,
                               .quorum = c->quorum > 0,
                               .force = p->force};
    if (c->frozen_digest.len == DIGEST_BYTES)
        memcpy(terms.plan.given.byte, c->frozen_digest.data, DIGEST_BYTES);
    terms.rounds = c->rounds;
    TRY(arena_text(&terms.run, arena, c->name, strlen(c->name)));
    TRY(arena_text(&terms.plan.method, arena, c->method, strlen(c->method)));
    TRY(arena_text(&terms.plan.weights, arena, c->weights, strlen(c->weights)));
    if (key_path) TRY(arena_text(&terms.key_path, arena, key_path, strlen(key_path)));
    TRY(take_weights(&terms, c, arena));
    *out = terms;
    return ERR_NONE;
}

static bool has_unit(const run_config_t *c, const char *unit)
{
    return c->privacy && !strcmp(c->privacy->unit, unit);
}

bool run_privacy_central(const run_config_t *c)
{
    return has_unit(c, "client");
}

bool run_privacy_local(const run_config_t *c)
{
    return has_unit(c, "example");
}

/* In a pass that finds a basis every member takes part, so sampling does not amplify the privacy of
 * its plan. */
double run_privacy_sampling(const run_config_t *c, const struct method_options *options,
                            uint32_t round)
{
    bool samples = run_privacy_central(c) && round > method_setup_rounds(options);
    return samples ? c->privacy->sampling : 1;
}

/* ---- refusals ---- */

/* Conditions of the accountant: each member is drawn independently, in one round at a time, and
 * the end of a round does not depend on who answered. */
static err check_central(run_config_t *c)
{
    Fedlora__V1__Privacy *p = c->privacy;
    if (p->sampling == 0) p->sampling = sampling_default;
    if (p->quantile == 0) p->quantile = quantile_default;
    if (p->rate == 0) p->rate = rate_default;
    if (!(p->quantile > 0 && p->quantile < 1) || !(p->rate > 0 && p->rate <= 10) ||
        !(p->sigma_b >= 0 && p->sigma_b <= 65536))
        return err_make(
            ERR_INPUT,
            "privacy: adaptive clipping: quantile %g, rate %g, sigma_b %g: expected 0 to "
            "1, 0 to 10, 0 to 65536",
            p->quantile, p->rate, p->sigma_b);
    if (!c->deadline_ms)
        return err_make(ERR_INPUT, "privacy: without a deadline, one member that never answers "
                                   "would decide whether a round is released: expected --deadline");
    if (strcmp(c->late, "refuse") || c->late_rounds)
        return err_make(ERR_INPUT,
                        "privacy: late updates would count a member in a round it was not "
                        "drawn for: expected --late refuse");
    if (c->weight_cap > 0)
        return err_make(ERR_INPUT, "privacy: the weights are part of the plan, so they must not "
                                   "depend on who answers: expected --weight-cap 0");
    return ERR_NONE;
}

/* Example-level training refuses dropout (engine/train/train_private.c). Saying so here keeps
 * every member from failing in its first round. */
static err check_local(const run_config_t *c)
{
    double dropout = c->training->dropout;
    if (c->privacy->adaptive)
        return err_make(ERR_INPUT, "privacy: adaptive clipping needs unit client");
    if (dropout > 0)
        return err_make(ERR_INPUT, "privacy: dropout %g: expected 0 with unit example", dropout);
    if (c->training->keep_optimizer)
        return err_make(ERR_INPUT, "privacy: keep_optimizer: the averages of a round that was "
                                   "never charged would enter later updates; expected no with "
                                   "unit example");
    return ERR_NONE;
}

/* The same checks that the worker makes with the start state, as far as they do not need its
 * dimensions. */
static err judge_central(const run_config_t *c, const struct method_options *options)
{
    struct arena arena = {0};
    struct private_terms terms;
    struct plan_summary summary;
    err e = run_privacy_terms(&terms, c, options, NULL, &arena);
    if (!err_is(e)) e = plan_check(&summary, &terms.plan);
    arena_close(&arena);
    return e;
}

/* Only the parts that are the same for all members, because the number of records, and so the
 * sampling rate, is known to each member alone. */
static err judge_local(const run_config_t *c, const struct method_options *options)
{
    const Fedlora__V1__Privacy *p = c->privacy;
    const Fedlora__V1__Training *t = c->training;
    struct plan_summary summary;
    uint64_t steps = t->steps;
    if (p->sampling > 0 && !steps) steps = (uint64_t)ceil(t->epochs / p->sampling);
    struct plan plan = {.unit = LEDGER_EXAMPLE,
                        .method = c->method,
                        .bases = basis_word(options, c),
                        .epsilon = p->epsilon,
                        .delta = p->delta,
                        .noise = p->sampling > 0 ? p->noise : 0,
                        .sampling = p->sampling > 0 ? p->sampling : 1,
                        .clip = p->clip,
                        .units = 1,
                        .rounds = c->rounds - method_setup_rounds(options),
                        .steps = steps > 0 && steps <= UINT32_MAX ? (uint32_t)steps : 1,
                        .basis_passes = method_setup_rounds(options),
                        .basis_noise = p->basis_noise,
                        .basis_clip = p->basis_clip};
    TRY(plan_check(&summary, &plan));
    if (summary.rounds == plan.rounds) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "privacy: noise multiplier %g spends epsilon %g after %llu of %u rounds: "
                    "expected a larger one, or fewer rounds",
                    p->noise, p->epsilon, (unsigned long long)summary.rounds, plan.rounds);
}

/* Evaluations are refused too, because a loss on a member's rows is not covered by the budget. */
err run_privacy_check(run_config_t *c, const struct method_options *options)
{
    Fedlora__V1__Privacy *p = c->privacy;
    if (!p) return ERR_NONE;
    if (!strcmp(p->unit, "none")) {
        message_free(p);
        c->privacy = NULL;
        return ERR_NONE;
    }
    if (!run_privacy_central(c) && !run_privacy_local(c))
        return err_make(ERR_INPUT, "privacy: unit \"%.40s\": expected client, example or none",
                        p->unit);
    if (c->evaluate_every)
        return err_make(ERR_INPUT, "privacy: members' evaluations reveal something that the budget "
                                   "does not count: expected --evaluate-every 0");
    if ((p->basis_clip != 0 || p->basis_noise != 0) && !method_setup_rounds(options))
        return err_make(ERR_INPUT, "privacy: a clip norm or noise for the basis has no effect "
                                   "without basis=gradient");
    return run_privacy_central(c) ? check_central(c) : check_local(c);
}

err run_privacy_judge(const run_config_t *c, const struct method_options *options)
{
    if (!c->privacy) return ERR_NONE;
    return run_privacy_central(c) ? judge_central(c, options) : judge_local(c, options);
}
