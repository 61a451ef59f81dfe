#include "coordinator/run/run_config.h"
#include "coordinator/run/run_privacy.h"

#include "base/digest.h"
#include "base/limits.h"
#include "base/text.h"
#include "proto/message.h"
#include "proto/training_wire.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef Fedlora__V1__RunConfig run_config_t;

/* protobuf-c shares one constant for all empty strings; it must not be freed. */
static err set_text(char **field, const char *text)
{
    char *copy = strdup(text);
    if (!copy) return err_sys(ENOMEM, "a run's configuration");
    if (*field != protobuf_c_empty_string) free(*field);
    *field = copy;
    return ERR_NONE;
}

static err one_of(const char *field, const char *value, const char *const *words)
{
    size_t n = 0;
    char list[160] = "";
    for (; words[n]; n++) {
        if (!strcmp(value, words[n])) return ERR_NONE;
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", n ? ", " : "", words[n]);
    }
    return err_make(ERR_INPUT, "%s: \"%s\", expected one of %s", field, value, list);
}

/* The test is written so that NaN fails it. */
static err in_range(const char *field, double value, double least, double most)
{
    if (isfinite(value) && value >= least && value <= most) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: %g, expected %g to %g", field, value, least, most);
}

static err complete_training(run_config_t *c, const struct method *method)
{
    Fedlora__V1__Training *complete = NULL;
    const Fedlora__V1__Training none = FEDLORA__V1__TRAINING__INIT;
    struct training_options t;
    training_options_defaults(&t);
    if (method->lr > 0) t.lr = method->lr; /* run_config_create() sets alpha */
    TRY(training_wire_read(&t, c->training ? c->training : &none));
    if (!c->seed) c->seed = (uint64_t)t.seed;
    TRY(in_range("seed", (double)c->seed, 0, 0x1p53)); /* the bound of training.seed */
    t.seed = (int64_t)c->seed;
    TRY(training_wire_make(&complete, &t));
    message_free(c->training);
    c->training = complete;
    return ERR_NONE;
}

/* A member may have its own alpha and rslora only if it does not continue training the state's
 * factors: those have one scale for all. */
static err check_member(const run_config_t *c, const Fedlora__V1__MemberConfig *m,
                        const struct method *method)
{
    static const char *const answers[] = {"", "yes", "no", NULL};
    if (!text_is_name(m->id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "member \"%s\" is not a name", m->id);
    err e = ERR_NONE;
    if (m->rank > LIMIT_RANK) e = err_make(ERR_INPUT, "rank %u, at most %d", m->rank, LIMIT_RANK);
    if (!err_is(e) && !strcmp(c->weights, "given")) e = in_range("weight", m->weight, 1e-9, 1e12);
    if (!err_is(e)) e = in_range("alpha", m->alpha, 0, 1e6);
    if (!err_is(e)) e = one_of("rslora", m->rslora, answers);
    if (!err_is(e) && (m->alpha > 0 || *m->rslora) && !method->fresh)
        e = err_make(ERR_INPUT,
                     "method %s trains at the state's scale, so %s can only be set for the run",
                     method->name, m->alpha > 0 ? "alpha" : "rslora");
    return err_is(e) ? err_in(e, "member %s", m->id) : e;
}

/* Methods that average factors one by one need the same rank everywhere. Methods with a state of
 * their own need to know its rank before any member has joined. */
static err check_members(const run_config_t *c, const struct method *method)
{
    bool differ = false, any = c->rank > 0;
    if (c->n_members == 0) return err_make(ERR_INPUT, "a run needs at least one member");
    for (size_t i = 0; i < c->n_members; i++) {
        const Fedlora__V1__MemberConfig *m = c->members[i];
        TRY(check_member(c, m, method));
        differ |= m->rank && m->rank != c->rank;
        any |= m->rank > 0;
    }
    if (!method->mixed_ranks && differ)
        return err_make(ERR_INPUT,
                        "method %s needs the same rank for all members; give the run's rank only",
                        method->name);
    if (!method->mixed_ranks && !c->rank)
        return err_make(ERR_INPUT, "method %s needs the run's rank (--rank)", method->name);
    if (!method->fresh && !any)
        return err_make(
            ERR_INPUT,
            "method %s needs the rank of its state: give the run's (--rank), or a member's "
            "(--members ID:rank=N)",
            method->name);
    return ERR_NONE;
}

static err find_method(const struct method **out, const char *name)
{
    const struct method *method = method_find(name);
    if (method) {
        *out = method;
        return ERR_NONE;
    }
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "method \"%s\" is not known%s", name, method_suggestion(near, name));
}

/* Combinations of method, options and files that the method cannot work with. Leaves the parsed
 * options in *out for the checks that follow. */
static err check_options(struct method_options *out, const run_config_t *c,
                         const struct method *method)
{
    struct method_options o;
    TRY(method_options_parse(&o, method, (const char *const *)c->method_options,
                             c->n_method_options));
    bool file = c->frozen_digest.len > 0;
    if (file && !method->frozen)
        return err_make(ERR_INPUT, "method %s has no frozen factors", method->name);
    if (method->frozen && o.basis == METHOD_BASIS_WEIGHTS && !file)
        return err_make(ERR_INPUT, "basis=weights: the file of frozen factors is not given "
                                   "(fedlora basis makes it)");
    if (method->frozen && o.basis == METHOD_BASIS_GRADIENT && file)
        return err_make(ERR_INPUT,
                        "basis=gradient finds the frozen factors itself; expected no file");
    if (run_config_late_rounds(c) && !method_takes_late(method))
        return err_make(ERR_INPUT,
                        "%s: method %s trains with factors that have changed by then; expected "
                        "%s",
                        c->late_rounds ? "late_rounds" : "late=next", method->name,
                        c->late_rounds ? "0" : "refuse");
    uint32_t setup = method_setup_rounds(&o);
    if (c->rounds <= setup)
        return err_make(ERR_INPUT, "rounds: %u, but the first %u only find the basis", c->rounds,
                        setup);
    *out = o;
    return ERR_NONE;
}

/* The cohort of a run with a secret draw is drawn by the rule that its accounting assumes. */
static err check_cohort(const run_config_t *c)
{
    if (!c->cohort && c->over_select)
        return err_make(ERR_INPUT, "over_select: %u has no effect without cohort", c->over_select);
    size_t drawn = c->cohort ? (size_t)c->cohort + c->over_select : c->n_members;
    if (drawn > LIMIT_MEMBERS)
        return err_make(ERR_INPUT, "%zu members take part in a round, expected at most %d%s", drawn,
                        LIMIT_MEMBERS, c->cohort || run_privacy_central(c) ? "" : ": set a cohort");
    if (!c->cohort) return ERR_NONE;
    if (run_privacy_central(c))
        return err_make(ERR_INPUT, "cohort: privacy of unit client draws members by "
                                   "privacy.sampling; expected no cohort");
    if (c->cohort > c->n_members || c->over_select > c->n_members - c->cohort)
        return err_make(ERR_INPUT,
                        "cohort %u and over_select %u are more than the %zu members together",
                        c->cohort, c->over_select, c->n_members);
    if (c->quorum > c->cohort)
        return err_make(ERR_INPUT, "quorum %u is more than the cohort of %u", c->quorum, c->cohort);
    return ERR_NONE;
}

/* When a round closes. A secret draw would be revealed by a round that ends early, or without the
 * members that are silent. */
static err check_waits(const run_config_t *c)
{
    static const char *const absents[] = {"wait", "skip", NULL};
    TRY(one_of("absent", c->absent, absents));
    if (c->grace_ms && !c->quorum)
        return err_make(ERR_INPUT, "grace: has no effect without a quorum; give both");
    if (!run_privacy_central(c) || (!c->grace_ms && strcmp(c->absent, "skip") != 0))
        return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: privacy of unit client closes each round at its deadline, whoever is "
                    "there",
                    c->grace_ms ? "grace" : "absent=skip");
}

/* Defaults come first, then ranges, then the checks that look at several fields, so that an error
 * names the simplest cause. privacy is last, because it sets conditions on everything else. */
err run_config_complete(run_config_t *c)
{
    static const char *const lates[] = {"refuse", "next", NULL};
    static const char *const weights[] = {"examples", "uniform", "given", NULL};
    const struct method *method = NULL;
    struct method_options options;
    if (!text_is_name(c->name, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT,
                        "run name \"%s\": letters, digits, '.', '_' and '-' only, at most %d",
                        c->name, LIMIT_NAME_BYTES - 1);
    TRY(find_method(&method, c->method));
    if (!*c->late) TRY(set_text(&c->late, "refuse"));
    if (!*c->absent) TRY(set_text(&c->absent, "wait"));
    if (!*c->weights) TRY(set_text(&c->weights, c->privacy ? "uniform" : "examples"));
    if (!c->report_every) c->report_every = RUN_CONFIG_REPORT_EVERY;
    if (c->carry_error == 0) c->carry_error = RUN_CONFIG_CARRY_ERROR;
    TRY(complete_training(c, method));
    TRY(in_range("rounds", c->rounds, 1, LIMIT_ROUNDS));
    TRY(in_range("rank", c->rank, 0, LIMIT_RANK));
    TRY(in_range("alpha", c->alpha, 0, 1e6));
    TRY(in_range("weight_cap", c->weight_cap, 0, 1));
    TRY(in_range("norm_bound", c->norm_bound, -1, 1e30));
    TRY(in_range("carry_error", c->carry_error, -1, 0.5));
    TRY(in_range("evaluate_every", c->evaluate_every, 0, LIMIT_ROUNDS));
    TRY(in_range("report_every", c->report_every, 1, LIMIT_ROUNDS));
    TRY(in_range("late_rounds", c->late_rounds, 0, RUN_CONFIG_LATE_ROUNDS_MAX));
    TRY(one_of("late", c->late, lates));
    TRY(one_of("weights", c->weights, weights));
    if (c->base_digest.len != DIGEST_BYTES)
        return err_make(ERR_INPUT, "base digest: %zu bytes, expected %d", c->base_digest.len,
                        DIGEST_BYTES);
    if (c->frozen_digest.len && c->frozen_digest.len != DIGEST_BYTES)
        return err_make(ERR_INPUT, "frozen digest: %zu bytes, expected %d", c->frozen_digest.len,
                        DIGEST_BYTES);
    if (c->quorum > c->n_members)
        return err_make(ERR_INPUT, "quorum %u is more than the %zu members", c->quorum,
                        c->n_members);
    TRY(check_cohort(c));
    TRY(check_waits(c));
    TRY(check_options(&options, c, method));
    TRY(check_members(c, method));
    return run_privacy_check(c, &options);
}

err run_config_create(run_config_t *c)
{
    const struct method *method = method_find(c->method);
    if (method && c->alpha == 0) c->alpha = method->alpha;
    return run_config_complete(c);
}

uint32_t run_config_late_rounds(const run_config_t *c)
{
    return c->late_rounds ? c->late_rounds : !strcmp(c->late, "next");
}

const struct method *run_config_method(const run_config_t *c)
{
    const struct method *method = method_find(c->method);
    REQUIRE(method);
    return method;
}

void run_config_options(struct method_options *out, const run_config_t *c)
{
    err e = method_options_parse(out, run_config_method(c), (const char *const *)c->method_options,
                                 c->n_method_options);
    REQUIRE(!err_is(e)); /* run_config_complete() has parsed them */
}

/* "q" stands for "q_proj", as targets are usually written; a full name stands for one layer, and
 * PEFT's word "all-linear" for all modules. */
bool run_config_target_is(const char *target, const char *module)
{
    if (!strcmp(target, module) || !strcmp(target, "all-linear")) return true;
    const char *last = strrchr(module, '.');
    last = last ? last + 1 : module;
    size_t n = strlen(target);
    return !strcmp(target, last) || (!strncmp(last, target, n) && !strcmp(last + n, "_proj"));
}

bool run_config_targets(const run_config_t *c, const char *module)
{
    for (size_t i = 0; i < c->n_targets; i++)
        if (run_config_target_is(c->targets[i], module)) return true;
    return c->n_targets == 0;
}

/* NULL for the state, which is no member. The search goes by halves first, because large
 * federations list their members in order; a list in another order is searched from its start. */
static const Fedlora__V1__MemberConfig *find_member(const run_config_t *c, const char *member)
{
    size_t low = 0, high = member ? c->n_members : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(c->members[middle]->id, member);
        if (order == 0) return c->members[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = 0; i < c->n_members && member; i++)
        if (!strcmp(c->members[i]->id, member)) return c->members[i];
    return NULL;
}

bool run_config_adapts(const run_config_t *c, const char *member, const char *module)
{
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    for (size_t i = 0; m && i < m->n_targets; i++)
        if (run_config_target_is(m->targets[i], module)) return true;
    return !m || m->n_targets == 0;
}

bool run_config_own_targets(const run_config_t *c, const char *member)
{
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    return m && m->n_targets > 0;
}

bool run_config_dropped(const run_config_t *c, const char *member)
{
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    return !m || m->dropped;
}

size_t run_config_left(const run_config_t *c)
{
    size_t left = 0;
    for (size_t i = 0; i < c->n_members; i++)
        left += !c->members[i]->dropped;
    return left;
}

double run_config_weight(const run_config_t *c, const char *member, uint64_t examples)
{
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    if (!strcmp(c->weights, "examples")) return (double)examples;
    return !strcmp(c->weights, "given") && m ? m->weight : 1;
}

bool run_config_rslora(const run_config_t *c, const char *member)
{
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    return m && *m->rslora ? !strcmp(m->rslora, "yes") : c->rslora;
}

/* The method trains R between frozen factors, a square matrix of the rank. */
static bool is_square(const struct method *method)
{
    return method->factors(1) & METHOD_R;
}

uint32_t run_config_rank_max(const run_config_t *c)
{
    uint32_t most = c->rank ? c->rank : 1;
    for (size_t i = 0; i < c->n_members; i++)
        if (c->members[i]->rank > most) most = c->members[i]->rank;
    return most;
}

/* A machine offers a rank of LoRA factors, so the offer is ignored for methods that send a
 * square R. Without a rank in the configuration, the offer decides. */
err run_config_rank(uint32_t *out, const run_config_t *c, const char *member, uint32_t offered)
{
    const struct method *method = run_config_method(c);
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    uint32_t given = m ? m->rank : 0;
    if (is_square(method)) offered = 0;
    uint32_t wanted = given           ? given
                      : c->rank       ? c->rank
                      : method->fresh ? 0
                                      : run_config_rank_max(c);
    if (!method->mixed_ranks || given) {
        if (offered && offered < wanted)
            return err_make(ERR_INPUT, "run %s needs rank %u from %s, but rank %u is offered",
                            c->name, wanted, given ? member : "every member", offered);
        *out = wanted;
        return ERR_NONE;
    }
    if (!wanted && !offered)
        return err_make(ERR_INPUT, "run %s has no rank and %s offers none; offer one (--rank)",
                        c->name, member);
    *out = !wanted ? offered : !offered || offered > wanted ? wanted : offered;
    return ERR_NONE;
}

/* The table is in run_config.h. A member of smaller rank trains leading rows of the state's
 * factors, so its alpha shrinks with its rank to keep the state's scale alpha / rank (or alpha /
 * sqrt(rank)). */
double run_config_alpha(const run_config_t *c, const char *member, uint32_t rank)
{
    return run_config_alpha_of(c, member, rank, run_config_rank_max(c));
}

double run_config_alpha_of(const run_config_t *c, const char *member, uint32_t rank, uint32_t whole)
{
    const struct method *method = run_config_method(c);
    const Fedlora__V1__MemberConfig *m = find_member(c, member);
    if (is_square(method)) return rank;
    if (method->fresh) return m && m->alpha > 0 ? m->alpha : c->alpha > 0 ? c->alpha : 2.0 * rank;
    double alpha = c->alpha > 0 ? c->alpha : 2.0 * whole, part = (double)rank / whole;
    if (method->frozen || rank == whole) return alpha;
    return alpha * (c->rslora ? sqrt(part) : part);
}

err run_config_digest(struct digest *out, const Fedlora__V1__RunConfig *config)
{
    struct bytes packed = {.max = protobuf_c_message_get_packed_size(&config->base) + 1};
    TRY(message_pack(&packed, &config->base));
    *out = digest_of(packed.data, packed.size);
    bytes_close(&packed);
    return ERR_NONE;
}
