/* Changes of an open run by an operator; contract in run.h. The new configuration is checked as
 * that of a new run, stored, and then used. Values on which a privacy plan or the state of a
 * method depends cannot change. */
#include "coordinator/run/run.h"
#include "coordinator/run/run_draw.h"
#include "coordinator/run/run_shapes.h"

#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANGE_CONFIG_BYTES_MAX = 16 << 20, CHANGE_TEXT_BYTES = 320 };

typedef Fedlora__V1__RunConfig run_config_t;

struct run_retired {
    struct run_retired *next;
    run_config_t *config;
};

void run_retired_free(struct run *run)
{
    while (run->retired) {
        struct run_retired *r = run->retired;
        run->retired = r->next;
        message_free(r->config);
        free(r);
    }
}

static err check_open(const struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    if (phase != ROUND_FINISHED && phase != ROUND_STOPPED) return ERR_NONE;
    return err_make(ERR_STATE, "run %s is %s, so it cannot be changed", run->config->name,
                    round_phase_name(phase));
}

/* A deep copy, with room for one member more. */
static err copy_config(run_config_t **out, const struct run *run)
{
    struct bytes packed = {.max = CHANGE_CONFIG_BYTES_MAX};
    run_config_t *copy = NULL;
    err e = message_pack(&packed, &run->config->base);
    if (!err_is(e))
        e = message_unpack(&copy, &fedlora__v1__run_config__descriptor, packed.data, packed.size);
    bytes_close(&packed);
    if (err_is(e)) return e;
    Fedlora__V1__MemberConfig **more = realloc(copy->members, (copy->n_members + 1) * sizeof *more);
    if (!more) {
        message_free(copy);
        return err_sys(ENOMEM, "the configuration of run %s", run->config->name);
    }
    copy->members = more;
    *out = copy;
    return ERR_NONE;
}

/* A change of the run, until it is durable. */
struct change {
    run_config_t *config; /* owned */
    const char *member;   /* that is added or dropped; NULL: none */
    struct store_event event;
    char text[CHANGE_TEXT_BYTES]; /* of the event */
};

/* The run goes on with the new configuration only after it is durable, in the same bytes as a new
 * run's. Workers read the old one until they have finished. */
static err commit(struct run *run, struct change *c)
{
    struct bytes packed = {.max = CHANGE_CONFIG_BYTES_MAX};
    struct run_retired *old = calloc(1, sizeof *old);
    struct method_options options;
    err e = old ? run_config_complete(c->config) : err_sys(ENOMEM, "run %s", run->config->name);
    if (!err_is(e)) {
        run_config_options(&options, c->config);
        e = run_privacy_judge(c->config, &options);
    }
    if (!err_is(e) && run->modules) e = run_config_own_modules(c->config, run->modules);
    if (!err_is(e)) e = message_pack(&packed, &c->config->base);
    const struct store_run row = {.config = packed.data, .config_size = packed.size};
    c->event.text = c->text;
    c->event.round = round_under_way(&run->round);
    c->event.member = c->member;
    if (!err_is(e)) e = store_change(run->shop->store, run->id, &row, c->member, &c->event);
    bytes_close(&packed);
    if (err_is(e)) {
        free(old);
        return e;
    }
    if (run->round.stage != ROUND_AGGREGATING) run_retired_free(run);
    *old = (struct run_retired){.next = run->retired, .config = run->config};
    run->retired = old;
    run->config = c->config;
    c->config = NULL;
    run->rank_max = run_config_rank_max(run->config);
    LOG(LOG_INFO, c->event.event, LOG_STR("run", run->config->name),
        LOG_STR("member", c->member ? c->member : ""), LOG_INT("round", c->event.round),
        LOG_STR("change", c->text), LOG_STR("by", run->shop->by));
    return ERR_NONE;
}

/* Members are drawn again, because they are others now. A restart makes the same draw. */
static void go_on(struct run *run)
{
    struct round *r = &run->round;
    if (r->rules.cohort && r->stage == ROUND_TRAINING) {
        r->drawn_for = 0;
        err e = run_save_opening(run);
        (void)e; /* run_tick() tries again */
    }
    run_apply(run, &(struct round_event){.kind = ROUND_ON_TICK, .now_ms = run_now_ms(run)});
    run->shop->changed(run, run->shop->context);
}

/* ---- values ---- */

enum value_type { VALUE_COUNT, VALUE_DURATION, VALUE_NUMBER, VALUE_TEXT };

/* The values that can change: a field of the configuration, and the least and the largest value. */
/* clang-format off */
static const struct value {
    const char *key;
    enum value_type type;
    size_t at;
    double least, most;
} values[] = {
    {"absent",         VALUE_TEXT,     offsetof(run_config_t, absent),         0, 0},
    {"cohort",         VALUE_COUNT,    offsetof(run_config_t, cohort),         0, LIMIT_MEMBERS},
    {"deadline",       VALUE_DURATION, offsetof(run_config_t, deadline_ms),    0, 0},
    {"evaluate_every", VALUE_COUNT,    offsetof(run_config_t, evaluate_every), 0, LIMIT_ROUNDS},
    {"grace",          VALUE_DURATION, offsetof(run_config_t, grace_ms),       0, 0},
    {"late",           VALUE_TEXT,     offsetof(run_config_t, late),           0, 0},
    {"late_rounds",    VALUE_COUNT,    offsetof(run_config_t, late_rounds),    0, LIMIT_ROUNDS},
    {"norm_bound",     VALUE_NUMBER,   offsetof(run_config_t, norm_bound),    -1, 1e30},
    {"over_select",    VALUE_COUNT,    offsetof(run_config_t, over_select),    0, LIMIT_MEMBERS},
    {"quorum",         VALUE_COUNT,    offsetof(run_config_t, quorum),         0, LIMIT_POPULATION},
    {"report_every",   VALUE_COUNT,    offsetof(run_config_t, report_every),   0, LIMIT_ROUNDS},
    {"rounds",         VALUE_COUNT,    offsetof(run_config_t, rounds),         0, LIMIT_ROUNDS},
    {"weight_cap",     VALUE_NUMBER,   offsetof(run_config_t, weight_cap),     0, 1},
};
/* clang-format on */
enum { VALUES = sizeof values / sizeof *values };

static err set_text(char **out, const char *text)
{
    char *copy = strdup(text);
    if (!copy) return err_sys(ENOMEM, "a run's configuration");
    if (*out != protobuf_c_empty_string) free(*out);
    *out = copy;
    return ERR_NONE;
}

static err set_value(run_config_t *c, const struct value *v, const char *text)
{
    void *field = (char *)c + v->at;
    int64_t count = 0;
    switch (v->type) {
    case VALUE_COUNT:
        TRY(text_parse_int(&count, text, (int64_t)v->least, (int64_t)v->most));
        *(uint32_t *)field = (uint32_t)count;
        return ERR_NONE;
    case VALUE_DURATION:
        return text_parse_duration_ms(field, text);
    case VALUE_NUMBER:
        return text_parse_num(field, text, v->least, v->most);
    default:
        return set_text(field, text);
    }
}

static err no_such_value(const char *key)
{
    const char *known[VALUES];
    char near[TEXT_SUGGESTION_BYTES], list[CHANGE_TEXT_BYTES] = "";
    for (size_t i = 0, n = 0; i < VALUES; i++) {
        known[i] = values[i].key;
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", known[i],
                              i + 2 < VALUES   ? ", "
                              : i + 1 < VALUES ? " or "
                                               : "");
        REQUIRE(n < sizeof list);
    }
    return err_make(ERR_INPUT, "\"%.40s\" cannot be changed; expected %s%s", key, list,
                    text_suggestion(near, key, known, VALUES));
}

/* Unit client: the plan counts on all these values; only the length of a round reveals nothing.
 * Unit example: each member has planned its noise for the number of rounds. */
static err check_key(const struct run *run, const char *key)
{
    bool is_harmless = !strcmp(key, "deadline") || !strcmp(key, "report_every");
    if (run_privacy_central(run->config) && !is_harmless)
        return err_make(ERR_INPUT,
                        "%s: run %s has privacy of unit client, and its ledger commits to a plan "
                        "that counts on it",
                        key, run->config->name);
    if (run_privacy_local(run->config) && !strcmp(key, "rounds"))
        return err_make(ERR_INPUT,
                        "rounds: run %s has privacy of unit example, and its members have planned "
                        "their noise for %u rounds",
                        run->config->name, run->config->rounds);
    if (!strcmp(key, "cohort") && !run->config->cohort)
        return err_make(ERR_INPUT, "cohort: run %s has none, so it cannot get one",
                        run->config->name);
    return ERR_NONE;
}

static err assign(struct change *c, const struct run *run, const char *assignment)
{
    char key[32];
    const char *equal = strchr(assignment, '=');
    size_t n = equal ? (size_t)(equal - assignment) : 0;
    if (!equal || n == 0 || n >= sizeof key)
        return err_make(ERR_INPUT, "\"%.60s\": expected KEY=VALUE", assignment);
    snprintf(key, sizeof key, "%.*s", (int)n, assignment);
    const struct value *v = values;
    while (v < values + VALUES && strcmp(v->key, key) != 0)
        v++;
    if (v == values + VALUES) return no_such_value(key);
    TRY(check_key(run, key));
    err e = set_value(c->config, v, equal + 1);
    if (err_is(e)) return err_in(e, "%s", key);
    size_t used = strlen(c->text);
    snprintf(c->text + used, sizeof c->text - used, "%s%.80s", used ? " " : "", assignment);
    return ERR_NONE;
}

static err check_values(const struct run *run, const run_config_t *c)
{
    size_t left = run_config_left(c);
    uint32_t under_way = round_under_way(&run->round);
    if (c->rounds != run->config->rounds && run->round.stage == ROUND_AGGREGATING)
        return err_make(ERR_LIMIT, "rounds: round %u is being combined; ask again", under_way);
    if (c->rounds < under_way)
        return err_make(ERR_INPUT, "rounds: %u, but the run is at round %u", c->rounds, under_way);
    if (c->quorum > left)
        return err_make(ERR_INPUT, "quorum %u is more than the %zu members", c->quorum, left);
    if (run->config->cohort && !c->cohort)
        return err_make(ERR_INPUT, "cohort: 0, expected at least 1");
    return ERR_NONE;
}

err run_set(struct run *run, char *const *assignment, size_t count)
{
    struct change c = {.event = {.event = "run.changed"}};
    struct round_rules rules;
    double bound = run->config->norm_bound;
    err e = ERR_NONE;
    TRY(check_open(run));
    if (count == 0) return err_make(ERR_INPUT, "nothing to change: expected KEY=VALUE");
    TRY(copy_config(&c.config, run));
    for (size_t i = 0; i < count; i++)
        TRY_OUT(e, assign(&c, run, assignment[i]));
    TRY_OUT(e, check_values(run, c.config));
    TRY_OUT(e, commit(run, &c));
    run_rules(&rules, run->shop, run->config);
    round_set_rules(&run->round, &rules);
    run_shapes_settle(run);
    if (bound != run->config->norm_bound) { /* refused updates are judged by the new bound */
        e = store_forgive(run->shop->store, run->id, round_under_way(&run->round));
        if (!err_is(e)) round_forgive(&run->round);
    }
    go_on(run);
out:
    message_free(c.config);
    return e;
}

/* ---- members ---- */

static Fedlora__V1__MemberConfig *find(const run_config_t *c, const char *id)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (!strcmp(c->members[i]->id, id)) return c->members[i];
    return NULL;
}

static err check_membership(const struct run *run)
{
    TRY(check_open(run));
    if (!run_privacy_central(run->config)) return ERR_NONE;
    return err_make(
        ERR_INPUT,
        "run %s has privacy of unit client, and its ledger commits to the number of its "
        "members",
        run->config->name);
}

static err check_added(const struct run *run, const run_config_t *c, const char *id)
{
    const struct method *method = run->method;
    if (!config_allows(run->shop->config, id))
        return err_make(ERR_INPUT,
                        "member %s is not known here: fedlora token create %s invites it", id, id);
    if (method->keeps && run->round.published)
        return err_make(ERR_INPUT,
                        "method %s: each member has kept factors of its own since round 1, which a "
                        "new member does not have",
                        method->name);
    if (!method->fresh && run->round.started && run_config_rank_max(c) > run->rank_max)
        return err_make(ERR_INPUT,
                        "method %s: the state has rank %u, expected at most this rank for %s",
                        method->name, run->rank_max, id);
    return ERR_NONE;
}

/* Takes a copy of the member into the configuration, in the order of ids if the list has one. */
static err insert(run_config_t *c, const Fedlora__V1__MemberConfig *member)
{
    struct bytes packed = {.max = 1 << 20};
    Fedlora__V1__MemberConfig *copy = NULL, *was = find(c, member->id);
    if (was && !was->dropped) return err_make(ERR_INPUT, "%s is a member already", member->id);
    err e = message_pack(&packed, &member->base);
    if (!err_is(e))
        e = message_unpack(&copy, &fedlora__v1__member_config__descriptor, packed.data,
                           packed.size);
    bytes_close(&packed);
    if (err_is(e)) return e;
    copy->dropped = false;
    size_t at = 0;
    if (was) {
        while (c->members[at] != was)
            at++;
        message_free(was);
    } else {
        while (at < c->n_members && strcmp(c->members[at]->id, member->id) < 0)
            at++;
        memmove(&c->members[at + 1], &c->members[at], (c->n_members - at) * sizeof *c->members);
        c->n_members++;
    }
    c->members[at] = copy;
    return ERR_NONE;
}

/* The arrays grow before anything is durable. A member that the round has and the configuration
 * does not is gone, so a failure after this does no harm. */
static err make_room(struct run *run, const char *id)
{
    size_t m;
    if (round_find(&m, &run->round, id)) return ERR_NONE;
    struct run_member *more = realloc(run->member, (run->round.members + 1) * sizeof *more);
    if (!more) return err_sys(ENOMEM, "member %s", id);
    run->member = more;
    more[run->round.members] = (struct run_member){0};
    TRY(round_add(&run->round, id));
    run_apply_member(run, ROUND_ON_LEAVE, run->round.members - 1);
    return ERR_NONE;
}

/* A member that comes back may have other targets than before. */
static err relearn(struct run *run, size_t member)
{
    if (!run->modules) return ERR_NONE;
    TRY(run_learn_member(run, member, run->modules));
    run->member[member].adapts_shared = false;
    return ERR_NONE;
}

err run_member_add(struct run *run, const Fedlora__V1__MemberConfig *member)
{
    struct change c = {.member = member->id, .event = {.event = "member.added"}};
    size_t m = 0;
    err e = ERR_NONE;
    TRY(check_membership(run));
    if (!text_is_name(member->id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "member \"%.60s\" is not a name", member->id);
    TRY(copy_config(&c.config, run));
    TRY_OUT(e, insert(c.config, member));
    TRY_OUT(e, check_added(run, c.config, member->id));
    TRY_OUT(e, make_room(run, member->id));
    REQUIRE(round_find(&m, &run->round, member->id));
    if (run->round.member[m].admitting) { /* its list of modules is in use */
        e = err_make(ERR_LIMIT, "an update of %s is being made durable; ask again", member->id);
        goto out;
    }
    TRY_OUT(e, commit(run, &c));
    TRY_OUT(e, relearn(run, m));
    run_apply_member(run, ROUND_ON_RETURN, m);
    go_on(run);
out:
    message_free(c.config);
    return e;
}

err run_member_drop(struct run *run, const char *id)
{
    struct change c = {.event = {.event = "member.dropped"}};
    size_t m = 0;
    err e = ERR_NONE;
    TRY(check_membership(run));
    TRY(copy_config(&c.config, run));
    Fedlora__V1__MemberConfig *member = find(c.config, id);
    if (!member || member->dropped) {
        e = err_make(ERR_INPUT, "%.60s is not a member of run %s", id, run->config->name);
        goto out;
    }
    c.member = member->id;
    member->dropped = true;
    size_t left = run_config_left(c.config);
    if (left == 0)
        e = err_make(ERR_INPUT, "%s is the last member; fedlora run stop ends the run", id);
    else if (c.config->quorum > left)
        e = err_make(ERR_INPUT,
                     "quorum %u would be more than the %zu members left: first fedlora run set %s "
                     "quorum=%zu",
                     c.config->quorum, left, run->config->name, left);
    if (err_is(e)) goto out;
    TRY_OUT(e, commit(run, &c));
    REQUIRE(round_find(&m, &run->round, c.member));
    if (run->round.rules.cohort) run->round.drawn_for = 0;
    run_apply_member(run, ROUND_ON_LEAVE, m);
    run_shapes_left(run, m);
    go_on(run);
out:
    message_free(c.config);
    return e;
}

err run_drop_update(struct run *run, const char *id)
{
    size_t m = 0;
    uint32_t round = round_under_way(&run->round);
    TRY(check_open(run));
    if (!round_find(&m, &run->round, id))
        return err_make(ERR_INPUT, "%.60s is not a member of run %s", id, run->config->name);
    const struct round_member *r = &run->round.member[m];
    bool combining = run->round.stage == ROUND_AGGREGATING && run->round.hold != ROUND_FAILED;
    if (run->round.opened < round) return err_make(ERR_STATE, "round %u is not open yet", round);
    if (combining || r->admitting)
        return err_make(ERR_LIMIT, "round %u is being combined; ask again", round);
    if (run->round.rules.secret)
        return err_make(ERR_INPUT,
                        "run %s has privacy of unit client: which updates a round has was fixed by "
                        "its draw",
                        run->config->name);
    TRY(store_excuse(run->shop->store, run->id, round, r->id));
    LOG(LOG_WARN, "update.dropped", LOG_STR("run", run->config->name), LOG_STR("member", r->id),
        LOG_INT("round", round), LOG_STR("by", run->shop->by));
    run_apply_member(run, ROUND_ON_EXCUSE, m);
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

static void record_allowed(struct run *run, const char *id, bool gone)
{
    struct store_event event = {
        .event = gone ? "member.removed" : "member.returned",
        .text = gone ? "it was revoked, or is not in federation.members any more"
                     : "it is a member of the federation again",
        .round = round_under_way(&run->round),
        .member = id};
    LOG(LOG_WARN, event.event, LOG_STR("run", run->config->name), LOG_STR("member", id));
    err e = store_event_add(run->shop->store, run->id, &event);
    (void)e; /* the log has it */
}

/* The update of a member that left the federation still counts if it is in. A run that is over
 * records nothing, because a member of long standing is in hundreds of them. */
void run_members_allowed(struct run *run)
{
    bool is_over = err_is(check_open(run));
    for (size_t i = 0; i < run->round.members; i++) {
        const struct round_member *m = &run->round.member[i];
        bool gone = run_is_gone(run, m->id);
        if (gone == m->gone) continue;
        if (!is_over) record_allowed(run, m->id, gone);
        run_apply_member(run, gone ? ROUND_ON_LEAVE : ROUND_ON_RETURN, i);
        if (gone) run_shapes_left(run, i);
    }
    run->shop->changed(run, run->shop->context);
}
