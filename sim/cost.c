#include "sim/cost.h"

#include "client/session/session_describe.h"
#include "client/session/session_privacy.h"
#include "client/session/session_task.h"
#include "coordinator/run/run_config.h"
#include "coordinator/run/run_privacy.h"
#include "proto/message.h"
#include "sim/cost_memory.h"
#include "sim/cost_rounds.h"
#include "sim/federation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The states that a coordinator keeps, and the one that it is making. */
enum { STATES_KEPT = FEDERATION_STATES + 1 };

/* Everything of one run. */
struct making {
    const struct cost_options *o;
    Fedlora__V1__RunConfig *config; /* complete */
    Fedlora__V1__HelloRequest *modules;
    struct training_options training;
    struct method_options options;
    struct cost_files files;
    struct member_round *round; /* (members) without what the round decides */
    struct attack_plan faults;
    struct cost c;
    struct arena arena;
};

static void making_close(struct making *m)
{
    attack_close(&m->faults);
    cost_files_close(&m->files);
    message_free(m->config);
    message_free(m->modules);
    arena_close(&m->arena);
}

/* ---- the run as the coordinator would create it ---- */

static err open_run(struct making *m)
{
    const struct fleet *fleet = m->o->fleet;
    Fedlora__V1__RunConfig named = *m->o->config;
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
    const struct session_describe about = {.arch = &fleet->model.arch, .base = &fleet->base};
    named.method = (char *)(uintptr_t)m->o->method;
    TRY(federation_config(&m->config, fleet, &named));
    TRY(run_config_create(m->config));
    TRY(session_task_training(&m->training, m->config->training));
    run_config_options(&m->options, m->config);
    TRY(session_describe(&hello, &about, &m->arena));
    TRY(run_config_modules(&m->modules, m->config, &hello));
    TRY(cost_files_open(&m->files, m->config, m->modules));
    return fleet->frozen ? cost_files_give(&m->files, fleet->frozen) : ERR_NONE;
}

/* The configuration given names only the members that have settings of their own. */
static const Fedlora__V1__MemberConfig *own_settings(const struct making *m, const char *id)
{
    const Fedlora__V1__RunConfig *c = m->o->config;
    for (size_t i = 0; i < c->n_members; i++)
        if (!strcmp(c->members[i]->id, id)) return c->members[i];
    return NULL;
}

static err list_adapts(struct member_round *r, struct making *m)
{
    const char **list = NULL;
    TRY(arena_take(&list, &m->arena, m->files.count, sizeof *list));
    for (size_t i = 0; i < m->files.count; i++)
        if (run_config_adapts(m->config, r->member, m->files.module[i].name))
            list[r->adapts_count++] = m->files.module[i].name;
    r->adapts = (char *const *)(uintptr_t)list;
    return ERR_NONE;
}

static err set_member(struct member_round *r, struct making *m, const struct fleet_member *member)
{
    *r = (struct member_round){.run = m->config->name, .member = member->id};
    TRY(run_config_rank(&r->rank, m->config, member->id, member->rank));
    r->alpha = run_config_alpha(m->config, member->id, r->rank);
    r->rslora = run_config_rslora(m->config, member->id);
    const Fedlora__V1__MemberConfig *own = own_settings(m, member->id);
    return own && own->n_targets ? list_adapts(r, m) : ERR_NONE;
}

/* The coordinator's functions look for a member's settings in the whole list. Members without any
 * that offer the same rank are alike, so they are asked about once. */
static err set_members(struct making *m)
{
    const struct fleet *fleet = m->o->fleet;
    TRY(arena_take(&m->round, &m->arena, fleet->members, sizeof *m->round));
    for (size_t i = 0; i < fleet->members; i++) {
        const struct fleet_member *member = &fleet->member[i];
        bool own = own_settings(m, member->id) != NULL;
        size_t like = i;
        for (size_t k = i > COST_ROUNDS_ALIKE ? i - COST_ROUNDS_ALIKE : 0; k < i && !own; k++)
            if (fleet->member[k].rank == member->rank && !own_settings(m, fleet->member[k].id))
                like = k;
        if (like == i) TRY(set_member(&m->round[i], m, member));
        if (like == i) continue;
        m->round[i] = m->round[like];
        m->round[i].member = member->id;
    }
    return ERR_NONE;
}

/* ---- privacy ---- */

/* Coordinates of the larger kind of round, of the state's own ranks. */
static err coordinates(uint64_t *out, struct making *m, uint32_t first, uint32_t last)
{
    struct member_round r = {.member = ""};
    for (uint32_t round = first; round <= last; round++) {
        struct method_task task;
        struct cost_size size;
        method_task(&task, m->files.method, &m->options, round);
        r.round = round;
        r.trains = task.trains;
        r.gradient = task.gradient;
        TRY(cost_files_update(&size, &m->files, &r));
        if (size.values > *out) *out = size.values;
    }
    return ERR_NONE;
}

static err plan_central(struct making *m)
{
    struct private_terms terms;
    struct plan_summary s;
    uint32_t setup = method_setup_rounds(&m->options);
    TRY(run_privacy_terms(&terms, m->config, &m->options, NULL, &m->arena));
    terms.plan.dim = terms.plan.basis_dim = 0;
    if (!terms.plan.client_method) /* of a method with factors drawn anew no size is defined */
        terms.plan.dim = 1;
    else
        TRY(coordinates(&terms.plan.dim, m, setup + 1, setup + 2));
    if (setup) TRY(coordinates(&terms.plan.basis_dim, m, 1, setup));
    TRY(plan_check(&s, &terms.plan));
    m->c.private_client = true;
    m->c.epsilon = fmin(s.epsilon, terms.plan.epsilon);
    m->c.noise = (struct cost_noise){s.noise, s.noise};
    m->c.ratio = s.ratio;
    if (setup + s.rounds < m->c.rounds) m->c.rounds = setup + (uint32_t)s.rounds;
    return ERR_NONE;
}

/* A member plans for its own number of records. The noise is monotonic in that number, so the
 * smallest and the largest one are enough. */
static err plan_local(struct making *m)
{
    const struct fleet *fleet = m->o->fleet;
    const struct session_options files = {.ledger = "", .ledger_key = ""};
    const struct rpc_peer self = {.federation = "plan"};
    Fedlora__V1__HelloReply hello = FEDLORA__V1__HELLO_REPLY__INIT;
    uint64_t least = UINT64_MAX, most = 0;
    hello.run = m->config->name;
    hello.member = (char *)(uintptr_t)m->round[0].member;
    hello.method = m->config->method;
    hello.rounds = m->config->rounds;
    hello.training = m->config->training;
    hello.privacy = m->config->privacy;
    for (size_t i = 0; i < fleet->members; i++) {
        uint64_t n = fleet->member[i].data.count;
        if (n < least) least = n;
        if (n > most) most = n;
    }
    if (!least) return err_make(ERR_INPUT, "privacy: unit example needs the rows: give --data");
    m->c.private_example = true;
    m->c.noise.least = INFINITY;
    for (int i = 0; i < (least == most ? 1 : 2); i++) {
        struct session_privacy p;
        TRY(session_privacy_plan(&p, &files, &hello, &self, i ? most : least));
        m->c.epsilon = fmax(m->c.epsilon, fmin(p.ledger.summary.epsilon, p.ledger.plan.epsilon));
        m->c.noise.least = fmin(m->c.noise.least, p.ledger.summary.noise);
        m->c.noise.most = fmax(m->c.noise.most, p.ledger.summary.noise);
    }
    return ERR_NONE;
}

static err plan_privacy(struct making *m)
{
    m->c.rounds = m->config->rounds;
    if (!m->config->privacy) return ERR_NONE;
    m->c.budget = m->config->privacy->epsilon;
    m->c.delta = m->config->privacy->delta;
    return run_privacy_central(m->config) ? plan_central(m) : plan_local(m);
}

/* Rows are not read, so the contents of an attack are left out. */
static err open_faults(struct making *m)
{
    const struct attack *given = m->o->attack;
    struct attack a = {0};
    if (given) a = (struct attack){.vanish = given->vanish, .seed = given->seed};
    return attack_open(&m->faults, &a, m->o->fleet, m->config->rounds);
}

static err make(struct making *m)
{
    struct cost_rounds rounds;
    TRY(open_run(m));
    TRY(open_faults(m));
    TRY(set_members(m));
    TRY(plan_privacy(m));
    TRY(cost_files_frozen(&m->c.frozen, &m->files));
    rounds = (struct cost_rounds){.fleet = m->o->fleet,
                                  .config = m->config,
                                  .training = &m->training,
                                  .options = &m->options,
                                  .files = &m->files,
                                  .round = m->round,
                                  .vanishes = m->faults.vanishes};
    TRY(cost_rounds(&m->c, &rounds));
    const struct cost_memory memory = {.o = m->o,
                                       .training = &m->training,
                                       .options = &m->options,
                                       .files = &m->files,
                                       .round = m->round};
    TRY(cost_memory(&m->c, &memory));
    if (!size_mul(&m->c.store_bytes, m->c.result.bytes, STATES_KEPT) ||
        !size_add(&m->c.store_bytes, m->c.store_bytes, m->c.frozen.bytes))
        return err_make(ERR_LIMIT, "the states are larger than can be counted");
    m->c.bound = m->files.bound;
    return ERR_NONE;
}

err cost_make(struct cost *out, const struct cost_options *o)
{
    struct making m = {.o = o};
    err e = make(&m);
    if (!err_is(e)) {
        *out = m.c;
        out->method = m.files.method->name;
    }
    making_close(&m);
    return e;
}
