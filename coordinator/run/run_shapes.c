#include "coordinator/run/run_shapes.h"

#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MODULES_BYTES_MAX = 16 << 20, NAMED_MAX = 4 };

/* ---- sizes ---- */

/* Modules that a file is about: their number, the bytes of their names, and the sums of their
 * sides. */
struct sum {
    size_t count, name_bytes;
    uint64_t in, out;
};

static bool adapts(const struct run_member *m, const char *module)
{
    return m->adapts_count > 0 &&
           bsearch(&module, m->adapts, m->adapts_count, sizeof *m->adapts, text_order);
}

static struct sum sum_of(const struct run *run, const struct run_member *m)
{
    struct sum sum = {0};
    for (size_t i = 0; i < run->modules->n_modules; i++) {
        const Fedlora__V1__ModuleShape *shape = run->modules->modules[i];
        if (!adapts(m, shape->name)) continue;
        sum.count++;
        sum.name_bytes += strlen(shape->name);
        sum.in += shape->d_in;
        sum.out += shape->d_out;
    }
    return sum;
}

/* A late update was trained in an earlier round, which may have asked for other factors. The rank
 * of factors is that of the state, which is at most the run's, except where members have their own
 * (method_check.c). Cannot overflow: a sum of sides is below 2^32, and a rank below 2^13. */
void run_update_sizes(struct run_sizes *out, const struct run *run, size_t member, uint32_t round)
{
    const struct run_member *m = &run->member[member];
    struct method_task trained, now;
    *out = (struct run_sizes){0};
    if (!run->modules) return;
    struct sum sum = sum_of(run, m);
    method_task(&now, run->method, &run->options, round_under_way(&run->round));
    method_task(&trained, run->method, &run->options, round ? round : 1);
    unsigned factors = now.trains | trained.trains;
    bool own = run->method->mixed_ranks && !(factors & METHOD_R) && !now.gradient;
    uint64_t rank = own || m->rank > run->rank_max ? m->rank : run->rank_max, values = 0;
    if (factors & METHOD_A) values += rank * sum.in;
    if (factors & METHOD_B) values += rank * sum.out;
    if (factors & METHOD_R) values += rank * rank * sum.count;
    out->header = adapter_file_header_most(sum.count, sum.name_bytes);
    out->file = sizeof(uint64_t) + out->header + sizeof(float) * values;
}

/* The memory and the disk of the start state, before any of it is made. */
static err check_size(const struct run *run, const Fedlora__V1__HelloRequest *modules)
{
    uint64_t most = run->shop->config->update_bytes_max, sides = 0;
    for (size_t i = 0; i < modules->n_modules; i++)
        sides += (uint64_t)modules->modules[i]->d_in + modules->modules[i]->d_out;
    uint64_t bytes = sizeof(float) * sides * run->rank_max;
    if (!most || bytes <= most) return ERR_NONE;
    return err_make(
        ERR_INPUT,
        "the factors of %zu modules of these shapes have %llu bytes at rank %u, at most "
        "%llu (limits.update_bytes)",
        modules->n_modules, (unsigned long long)bytes, run->rank_max, (unsigned long long)most);
}

/* ---- where shapes come from ---- */

err run_shapes_given(struct run *run)
{
    Fedlora__V1__HelloRequest given = FEDLORA__V1__HELLO_REQUEST__INIT;
    given.modules = run->config->modules;
    given.n_modules = run->config->n_modules;
    if (!given.n_modules) return ERR_NONE;
    TRY(run_config_modules(&run->modules, run->config, &given));
    TRY(check_size(run, run->modules));
    return run_learn_members(run);
}

void run_shapes_close(struct run *run)
{
    for (size_t k = 0; k < RUN_PROPOSALS_MAX; k++) {
        message_free(run->proposal[k].modules);
        run->proposal[k] = (struct run_proposal){0};
    }
    for (size_t i = 0; run->member && i < run->round.members; i++)
        run->member[i].proposal = 0;
}

/* The first round opens with a quorum of members, so no run waits longer for shapes than for it. A
 * secret draw begins without a quorum; there it is the number of members that a round draws, or a
 * majority if that is less. */
static size_t wanted(const struct run *run)
{
    size_t members = run->round.members, majority = members / 2 + 1;
    if (!run->round.rules.secret) return round_quorum(&run->round);
    double rate = run->config->privacy->sampling;
    size_t drawn = (size_t)ceil((rate > 0 ? rate : 1) * (double)members);
    return drawn < majority ? drawn : majority;
}

/* The place of this list: that of an equal one, or a free one. */
static err find_place(size_t *out, const struct run *run, const struct digest *digest)
{
    size_t place = RUN_PROPOSALS_MAX;
    for (size_t k = RUN_PROPOSALS_MAX; k-- > 0;) {
        const struct run_proposal *p = &run->proposal[k];
        if (p->modules && digest_equal(&p->digest, digest)) {
            *out = k;
            return ERR_NONE;
        }
        if (!p->modules) place = k;
    }
    *out = place;
    if (place < RUN_PROPOSALS_MAX) return ERR_NONE;
    return err_make(ERR_STATE,
                    "members of run %s have said %d different lists of modules; the operator must "
                    "give the shapes (run create --base)",
                    run->config->name, RUN_PROPOSALS_MAX);
}

/* The member's list of names points into the proposal. */
static void withdraw(struct run *run, struct run_member *m)
{
    if (!m->proposal) return;
    struct run_proposal *p = &run->proposal[m->proposal - 1];
    free(m->adapts);
    m->adapts = NULL;
    m->adapts_count = 0;
    m->proposal = 0;
    if (--p->members) return;
    message_free(p->modules);
    *p = (struct run_proposal){0};
}

/* A member has one vote: a list that no member says any more is forgotten. Takes `modules`. */
static err vote(size_t *out, struct run *run, size_t member, Fedlora__V1__HelloRequest *modules)
{
    struct run_member *m = &run->member[member];
    struct digest digest;
    size_t k = 0;
    err e = run_config_modules_digest(&digest, modules);
    withdraw(run, m);
    if (!err_is(e)) e = find_place(&k, run, &digest);
    struct run_proposal *p = &run->proposal[k];
    if (!err_is(e)) e = run_learn_member(run, member, p->modules ? p->modules : modules);
    if (!err_is(e) && !p->modules) {
        *p = (struct run_proposal){.digest = digest, .modules = modules};
        modules = NULL;
    }
    message_free(modules);
    if (err_is(e)) return e;
    p->members++;
    m->proposal = (unsigned)k + 1;
    *out = k;
    return e;
}

static err propose(size_t *out, struct run *run, size_t member,
                   const Fedlora__V1__HelloRequest *hello)
{
    Fedlora__V1__HelloRequest *modules = NULL;
    TRY(run_config_modules(&modules, run->config, hello));
    err e = check_size(run, modules);
    if (!err_is(e)) return vote(out, run, member, modules);
    message_free(modules);
    return e;
}

/* The member must say Hello again: it has no task, and is told why in the answer to it. */
static void send_back(struct run *run, size_t member, const char *why)
{
    const struct round_member *was = &run->round.member[member];
    struct store_event event = {.event = "member.differs", .text = why, .member = was->id};
    LOG(LOG_WARN, event.event, LOG_STR("run", run->config->name), LOG_STR("member", was->id),
        LOG_STR("error", why));
    err e = store_event_add(run->shop->store, run->id, &event);
    (void)e; /* for people only */
    round_restore_member(&run->round, member,
                         &(struct round_member){.evaluates = was->evaluates, .gone = was->gone});
}

static void send_back_others(struct run *run, const Fedlora__V1__HelloRequest *modules)
{
    err differs[RUN_PROPOSALS_MAX] = {0};
    for (size_t k = 0; k < RUN_PROPOSALS_MAX; k++)
        if (run->proposal[k].modules)
            differs[k] = run_config_same_modules(modules, run->proposal[k].modules, "its");
    for (size_t i = 0; i < run->round.members; i++) {
        unsigned p = run->member[i].proposal;
        if (p && err_is(differs[p - 1])) send_back(run, i, differs[p - 1].text);
    }
}

/* Durable before they are used, because the start state is made from them. */
static err agree(struct run *run, size_t k)
{
    Fedlora__V1__HelloRequest *modules = run->proposal[k].modules;
    struct bytes packed = {.max = MODULES_BYTES_MAX};
    err e = message_pack(&packed, &modules->base);
    if (!err_is(e)) e = store_modules(run->shop->store, run->id, packed.data, packed.size);
    bytes_close(&packed);
    if (err_is(e)) return e;
    send_back_others(run, modules);
    LOG(LOG_INFO, "run.shapes", LOG_STR("run", run->config->name),
        LOG_INT("modules", modules->n_modules), LOG_INT("members", run->proposal[k].members));
    run->proposal[k].modules = NULL;
    run_forget_members(run);
    run_shapes_close(run);
    run->modules = modules;
    e = run_learn_members(run);
    if (!err_is(e)) return e;
    /* Without memory for the lists nobody has agreed, and all begin again. */
    run->modules = NULL;
    message_free(modules);
    for (size_t i = 0; i < run->round.members; i++)
        round_restore_member(&run->round, i,
                             &(struct round_member){.gone = run->round.member[i].gone});
    return e;
}

err run_shapes_said(struct run *run, size_t member, const Fedlora__V1__HelloRequest *hello)
{
    size_t k = 0;
    if (run->modules) return run_config_same_modules(run->modules, hello, "your");
    TRY(propose(&k, run, member, hello));
    return run->proposal[k].members < wanted(run) ? ERR_NONE : agree(run, k);
}

void run_shapes_settle(struct run *run)
{
    for (size_t k = 0; k < RUN_PROPOSALS_MAX && !run->modules; k++) {
        if (!run->proposal[k].modules || run->proposal[k].members < wanted(run)) continue;
        err e = agree(run, k);
        if (err_is(e)) return; /* the next Hello tries again */
    }
    if (run->modules && !run->round.shapes_known) run_apply_member(run, ROUND_ON_SHAPES, 0);
}

/* The others may agree without it. */
void run_shapes_left(struct run *run, size_t member)
{
    withdraw(run, &run->member[member]);
    run_shapes_settle(run);
}

/* ---- for operators ---- */

static const struct run_proposal *largest(const struct run *run, size_t *lists)
{
    const struct run_proposal *most = NULL;
    *lists = 0;
    for (size_t k = 0; k < RUN_PROPOSALS_MAX; k++) {
        const struct run_proposal *p = &run->proposal[k];
        if (!p->modules) continue;
        ++*lists;
        if (!most || p->members > most->members) most = p;
    }
    return most;
}

/* "m0, m2 and 7 more" */
static void say_names(struct bytes *out, const struct run *run, const struct run_proposal *p)
{
    size_t k = (size_t)(p - run->proposal), named = 0;
    err e = ERR_NONE;
    for (size_t i = 0; i < run->round.members && named < NAMED_MAX; i++)
        if (run->member[i].proposal == k + 1)
            e = bytes_printf(out, "%s%s", named++ ? ", " : "", run->round.member[i].id);
    if (p->members > named) e = bytes_printf(out, " and %zu more", p->members - named);
    (void)e; /* a text too long is cut */
}

/* Either list may have modules that the other lacks. */
static void say_difference(struct bytes *out, const struct run_proposal *most,
                           const struct run_proposal *other)
{
    err differs = run_config_same_modules(most->modules, other->modules, "their");
    if (!err_is(differs))
        differs = run_config_same_modules(other->modules, most->modules, "the first");
    err e = bytes_printf(out, ": %s", differs.text);
    (void)e;
}

void run_waiting_for(char *out, size_t bytes, const struct run *run)
{
    struct bytes b = {.max = bytes - 1};
    size_t lists = 0;
    const struct run_proposal *most = largest(run, &lists);
    bool held = run->round.hold != ROUND_WAITING;
    if (held || !most || (lists == 1 && round_present(&run->round) < round_quorum(&run->round))) {
        round_waiting_for(out, bytes, &run->round, run_now_ms(run));
        return;
    }
    err e =
        bytes_printf(&b,
                     "%zu members with the same shapes of the base; %zu have said Hello with %zu "
                     "modules (",
                     wanted(run), most->members, most->modules->n_modules);
    say_names(&b, run, most);
    if (!err_is(e)) e = bytes_printf(&b, ")");
    for (size_t k = 0; k < RUN_PROPOSALS_MAX; k++) {
        const struct run_proposal *p = &run->proposal[k];
        if (!p->modules || p == most) continue;
        if (!err_is(e)) e = bytes_printf(&b, "; ");
        say_names(&b, run, p);
        say_difference(&b, most, p);
    }
    snprintf(out, bytes, "%s", b.data ? (char *)b.data : "");
    bytes_close(&b);
}

/* ---- forgetting ---- */

static err may_forget(const struct run *run)
{
    const struct round *r = &run->round;
    const char *name = run->config->name;
    bool aggregates = r->stage == ROUND_AGGREGATING && r->hold != ROUND_FAILED && !r->retry_at_ms;
    if (run->config->n_modules)
        return err_make(ERR_INPUT,
                        "run %s has the shapes that its operator gave; create another run", name);
    if (r->rules.secret && r->started)
        return err_make(ERR_INPUT, "the privacy ledger of run %s has begun; create another run",
                        name);
    if (r->hold == ROUND_STOPPED) return err_make(ERR_STATE, "run %s is stopped", name);
    if (r->published)
        return err_make(ERR_STATE,
                        "run %s has published %u rounds of these shapes; create another run", name,
                        r->published);
    if (r->starting || aggregates || r->counts.admitting[0] || r->counts.admitting[1])
        return err_make(ERR_LIMIT, "run %s has work under way; try again in a moment", name);
    return ERR_NONE;
}

/* The same members in the same order, so that indices stay. Those that are gone stay so. */
static err begin_again(struct round *out, const struct round *was)
{
    const char **id = calloc(was->members, sizeof *id);
    if (!id) return err_sys(ENOMEM, "%zu members", was->members);
    for (size_t i = 0; i < was->members; i++)
        id[i] = was->member[i].id;
    err e = round_init(out, &was->rules, id, was->members);
    free(id);
    if (err_is(e)) return e;
    for (size_t i = 0; i < was->members; i++)
        out->member[i].gone = was->member[i].gone;
    out->counts = round_recount(out);
    return ERR_NONE;
}

err run_shapes_forget(struct run *run)
{
    struct round again;
    TRY(may_forget(run));
    TRY(begin_again(&again, &run->round));
    err e = store_forget_shapes(run->shop->store, run->id, run->config->frozen_digest.len > 0);
    if (err_is(e)) {
        round_close(&again);
        return e;
    }
    LOG(LOG_WARN, "run.shapes_forgotten", LOG_STR("run", run->config->name));
    run_forget_members(run);
    run_shapes_close(run);
    message_free(run->modules);
    run->modules = NULL;
    round_close(&run->round);
    run->round = again;
    run->opened_saved = 0;
    run->newest.state = run->newest.memory = (struct store_blob){0};
    if (!run->config->frozen_digest.len) run->newest.frozen = (struct store_blob){0};
    for (size_t i = 0; i < run->round.members; i++)
        run->member[i].pruned = 0;
    run_apply(run, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = run_now_ms(run)});
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}
