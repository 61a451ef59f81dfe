#include "coordinator/run/run_config.h"

#include "base/digest.h"
#include "base/limits.h"
#include "proto/message.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef Fedlora__V1__RunConfig config_t;

/* As it comes from the wire, so that it may be changed in place and freed. */
static config_t *make(void (*change)(config_t *c))
{
    static char name[] = "r", method[] = "flora", id[2][8] = {"a", "b"};
    static uint8_t digest[DIGEST_BYTES];
    config_t c = FEDLORA__V1__RUN_CONFIG__INIT, *out = NULL;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig member[2], *list[2] = {&member[0], &member[1]};
    struct bytes packed = {.max = 1 << 16};
    for (int i = 0; i < 2; i++) {
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = id[i];
    }
    training.steps = 3;
    c.name = name;
    c.method = method;
    c.rounds = 2;
    c.rank = 8;
    c.members = list;
    c.n_members = 2;
    c.training = &training;
    c.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest};
    if (change) change(&c);
    ok(message_pack(&packed, &c.base));
    ok(message_unpack(&out, &fedlora__v1__run_config__descriptor, packed.data, packed.size));
    bytes_close(&packed);
    return out;
}

static void expect_refused(void (*change)(config_t *c), const char *why)
{
    config_t *c = make(change);
    refused(run_config_complete(c), ERR_INPUT, why);
    message_free(c);
}

static void no_steps(config_t *c)
{
    c->training->steps = 0;
}
static void bad_lr(config_t *c)
{
    c->training->lr = NAN;
}
static void bad_schedule(config_t *c)
{
    c->training->schedule = "steep";
}
static void no_rounds(config_t *c)
{
    c->rounds = 0;
}
static void short_digest(config_t *c)
{
    c->base_digest.len = 5;
}
static void bad_name(config_t *c)
{
    c->name = "../r";
}
static void no_members(config_t *c)
{
    c->n_members = 0;
}
static void bad_weights(config_t *c)
{
    c->weights = "given";
}
static void unwanted_basis(config_t *c)
{
    c->frozen_digest = c->base_digest;
}
static void mixed_fedit(config_t *c)
{
    c->method = "fedit";
    c->members[0]->rank = 4;
}
static void rankless_fedit(config_t *c)
{
    c->method = "fedit";
    c->rank = 0;
}
static void private_kept(config_t *c)
{
    static Fedlora__V1__Privacy p = FEDLORA__V1__PRIVACY__INIT;
    p.unit = "example";
    c->privacy = &p;
    c->training->keep_optimizer = true;
}

Test(run_config, refuses_each_field_by_name)
{
    expect_refused(private_kept, "privacy: keep_optimizer: ");
    expect_refused(no_steps, "train.steps and train.epochs are both 0");
    expect_refused(bad_lr, "train.lr: \"nan\"");
    expect_refused(bad_schedule,
                   "train.schedule: \"steep\": expected one of constant, linear, cosine");
    expect_refused(no_rounds, "rounds: 0");
    expect_refused(short_digest, "base digest: 5 bytes, expected 32");
    expect_refused(bad_name, "run name \"../r\"");
    expect_refused(no_members, "at least one member");
    expect_refused(bad_weights, "member a: weight: 0");
    expect_refused(unwanted_basis, "method flora has no frozen factors");
    expect_refused(mixed_fedit, "the same rank for all members");
    expect_refused(rankless_fedit, "needs the run's rank (--rank)");
}

Test(run_config, fills_in_what_is_absent)
{
    config_t *c = make(NULL);
    ok(run_config_complete(c));
    cr_expect_str_eq(c->late, "refuse");
    cr_expect_str_eq(c->weights, "examples");
    cr_expect_str_eq(c->training->schedule, "linear");
    cr_expect_eq(c->training->batch, 4);
    cr_expect_eq(c->training->seq, 1024);
    cr_expect_eq(c->training->lr, method_find("flora")->lr);
    cr_expect_eq(c->carry_error, 1e-4);
    message_free(c);
}

static void given_rank(config_t *c)
{
    c->members[1]->rank = 16;
}
static void no_rank(config_t *c)
{
    c->rank = 0;
}
static void fed_sb(config_t *c)
{
    c->method = "fed-sb";
}
static void fedit(config_t *c)
{
    c->method = "fedit";
}

static uint32_t rank_of(void (*change)(config_t *c), const char *member, uint32_t offered)
{
    config_t *c = make(change);
    uint32_t rank = 0;
    ok(run_config_rank(&rank, c, member, offered));
    message_free(c);
    return rank;
}

Test(run_config, gives_each_member_the_rank_it_can_carry)
{
    uint32_t rank;
    cr_expect_eq(rank_of(NULL, "a", 0), 8);
    cr_expect_eq(rank_of(NULL, "a", 4), 4, "what it offers");
    cr_expect_eq(rank_of(NULL, "a", 64), 8, "capped by the run");
    cr_expect_eq(rank_of(no_rank, "a", 64), 64, "where the run sets none");
    cr_expect_eq(rank_of(given_rank, "b", 0), 16);
    cr_expect_eq(rank_of(fed_sb, "a", 2), 8, "R is no LoRA factor");
    cr_expect_eq(rank_of(fedit, "a", 32), 8);
    config_t *c = make(fedit);
    refused(run_config_rank(&rank, c, "a", 4), ERR_INPUT,
            "needs rank 8 from every member, but rank 4 is offered");
    message_free(c);
    c = make(given_rank);
    refused(run_config_rank(&rank, c, "b", 4), ERR_INPUT,
            "needs rank 16 from b, but rank 4 is offered");
    message_free(c);
    c = make(no_rank);
    refused(run_config_rank(&rank, c, "a", 0), ERR_INPUT, "run r has no rank and a offers none");
    message_free(c);
}

static char *targets[] = {"q", "v_proj", "model.layers.1.mlp.up_proj"};
static void targeted(config_t *c)
{
    c->targets = targets;
    c->n_targets = 3;
}

Test(run_config, finds_targets_by_short_and_full_names)
{
    config_t *c = make(targeted);
    cr_expect(run_config_targets(c, "model.layers.0.self_attn.q_proj"));
    cr_expect(run_config_targets(c, "model.layers.5.self_attn.v_proj"));
    cr_expect(run_config_targets(c, "model.layers.1.mlp.up_proj"));
    cr_expect(!run_config_targets(c, "model.layers.0.mlp.up_proj"));
    cr_expect(!run_config_targets(c, "model.layers.0.self_attn.qq_proj"));
    message_free(c);
    c = make(NULL);
    cr_expect(run_config_targets(c, "anything"), "no targets: every module");
    message_free(c);
}

/* ---- methods' options, and members that differ */
static const char *words[2];
static void with_options(config_t *c)
{
    c->method_options = (char **)(uintptr_t)words;
    c->n_method_options = words[1] ? 2 : 1;
}
static void fed_sb_options(config_t *c)
{
    with_options(c);
    c->method = "fed-sb";
}
static void fed_sb_file(config_t *c)
{
    fed_sb_options(c);
    c->frozen_digest = c->base_digest;
}

Test(run_config, checks_options_against_the_method_and_the_run)
{
    words[0] = "tali=carry";
    expect_refused(with_options, "option \"tali\" is not known; did you mean tail?");
    words[0] = "tail=carry";
    expect_refused(with_options, "option tail: flora has no such option, only flexlora");
    words[0] = "prox";
    expect_refused(with_options, "option \"prox\": expected key=value");
    words[0] = "prox=-1";
    expect_refused(with_options, "option prox");
    words[0] = "basis=weights";
    expect_refused(fed_sb_options, "basis=weights: the file of frozen factors is not given");
    words[0] = "basis=gradient";
    expect_refused(fed_sb_options, "rounds: 2, but the first 2 only find the basis");
    expect_refused(fed_sb_file, "expected no file");
    words[0] = "prox=0.5";
    words[1] = "server=fedavgm";
    config_t *c = make(with_options);
    struct method_options o;
    ok(run_config_complete(c));
    run_config_options(&o, c);
    cr_expect(o.prox == 0.5 && o.server == METHOD_SERVER_FEDAVGM);
    message_free(c);
}

static void late_rolora(config_t *c)
{
    c->method = "rolora";
    c->late = "next";
}

Test(run_config, takes_late_updates_only_where_they_say_all_that_their_member_ran)
{
    expect_refused(late_rolora, "late=next: method rolora trains with factors that have changed");
}

static void late_rounds_rolora(config_t *c)
{
    c->method = "rolora";
    c->late_rounds = 3;
}
static void many_late_rounds(config_t *c)
{
    c->late_rounds = 65;
}
static void some_late_rounds(config_t *c)
{
    c->late_rounds = 3;
}

Test(run_config, counts_updates_some_rounds_late_if_the_run_says_so)
{
    expect_refused(late_rounds_rolora, "late_rounds: method rolora trains with factors that have");
    expect_refused(many_late_rounds, "late_rounds: 65, expected 0 to 64");
    config_t *c = make(some_late_rounds);
    ok(run_config_complete(c));
    cr_expect_eq(run_config_late_rounds(c), 3);
    c->late_rounds = 0;
    cr_expect_eq(run_config_late_rounds(c), 0);
    message_free(c);
}

static void over_without_cohort(config_t *c)
{
    c->over_select = 1;
}
static void large_cohort(config_t *c)
{
    c->cohort = 2;
    c->over_select = 1;
}
static void large_quorum(config_t *c)
{
    c->cohort = 1;
    c->quorum = 2;
}
static void huge_cohort(config_t *c)
{
    c->cohort = LIMIT_MEMBERS + 1;
}
static void private_cohort(config_t *c)
{
    static Fedlora__V1__Privacy p = FEDLORA__V1__PRIVACY__INIT;
    p.unit = "client";
    p.epsilon = 8;
    p.delta = 1e-3;
    c->privacy = &p;
    c->cohort = 1;
}
static void good_cohort(config_t *c)
{
    c->cohort = c->over_select = 1;
}

Test(run_config, refuses_cohorts_that_cannot_be_drawn)
{
    expect_refused(over_without_cohort, "over_select: 1 has no effect without cohort");
    expect_refused(large_cohort, "cohort 2 and over_select 1 are more than the 2 members together");
    expect_refused(large_quorum, "quorum 2 is more than the cohort of 1");
    expect_refused(huge_cohort, "10001 members take part in a round, expected at most 10000");
    expect_refused(private_cohort, "cohort: privacy of unit client draws members by");
    config_t *c = make(good_cohort);
    ok(run_config_complete(c));
    message_free(c);
}

static void unsorted(config_t *c)
{
    Fedlora__V1__MemberConfig *first = c->members[0];
    c->members[0] = c->members[1];
    c->members[1] = first;
    c->members[0]->rank = 4;
    c->members[1]->rank = 2;
}

Test(run_config, finds_members_in_any_order_of_their_list)
{
    config_t *c = make(unsorted);
    uint32_t rank = 0;
    ok(run_config_rank(&rank, c, "b", 0));
    cr_expect_eq(rank, 4);
    ok(run_config_rank(&rank, c, "a", 0));
    cr_expect_eq(rank, 2);
    message_free(c);
}

static char *own_targets[] = {"q"};
static void own_alpha(config_t *c)
{
    c->alpha = 16;
    c->members[1]->alpha = 4;
    c->members[1]->rslora = "yes";
    c->members[1]->targets = own_targets;
    c->members[1]->n_targets = 1;
}
static void fedit_alpha(config_t *c)
{
    c->method = "fedit";
    c->members[1]->alpha = 4;
}
static void fedit_rslora(config_t *c)
{
    c->method = "fedit";
    c->members[0]->rslora = "no";
}
static void odd_rslora(config_t *c)
{
    c->members[0]->rslora = "maybe";
}
static void negative_alpha(config_t *c)
{
    c->members[0]->alpha = -1;
}
static void too_high_rank(config_t *c)
{
    c->members[0]->rank = LIMIT_RANK + 1;
}
static void no_alpha(config_t *c)
{
    c->alpha = -8;
}

Test(run_config, lets_members_differ_where_the_method_can_bear_it)
{
    expect_refused(fedit_alpha, "member b: method fedit trains at the state's scale, so alpha can");
    expect_refused(fedit_rslora, "member a: method fedit trains at the state's scale, so rslora");
    expect_refused(odd_rslora, "member a: rslora: \"maybe\"");
    expect_refused(negative_alpha, "member a: alpha: -1");
    expect_refused(too_high_rank, "member a: rank 4097");
    expect_refused(no_alpha, "alpha: -8");
    config_t *c = make(own_alpha);
    ok(run_config_complete(c));
    cr_expect_eq(run_config_alpha(c, "a", 8), 16);
    cr_expect_eq(run_config_alpha(c, "b", 8), 4);
    cr_expect(!run_config_rslora(c, "a") && run_config_rslora(c, "b"));
    cr_expect(run_config_adapts(c, "b", "model.layers.0.self_attn.q_proj"));
    cr_expect(!run_config_adapts(c, "b", "model.layers.0.self_attn.v_proj"));
    cr_expect(run_config_adapts(c, "a", "model.layers.0.self_attn.v_proj"));
    message_free(c);
}

static void flexlora(config_t *c)
{
    c->method = "flexlora";
    c->alpha = 24;
}
static void flexlora_rslora(config_t *c)
{
    flexlora(c);
    c->rslora = true;
}
static void ffa(config_t *c)
{
    c->method = "ffa";
    c->alpha = 24;
}
static void rankless_ffa(config_t *c)
{
    c->method = "ffa";
    c->rank = 0;
}

static void no_settings(config_t *c)
{
    c->alpha = 0;
    c->training->lr = 0;
}
static void hetlora(config_t *c)
{
    no_settings(c);
    c->method = "hetlora";
}

Test(run_config, a_new_run_takes_the_methods_alpha_and_a_stored_run_keeps_its_own)
{
    config_t *made = make(no_settings), *stored = make(no_settings), *other = make(hetlora);
    ok(run_config_create(made));
    cr_expect_eq(run_config_alpha(made, "a", 8), method_find("flora")->alpha);
    cr_expect_eq(made->training->lr, method_find("flora")->lr);
    ok(run_config_complete(stored)); /* created before the method had a default */
    cr_expect_eq(run_config_alpha(stored, "a", 8), 16);
    ok(run_config_create(other));
    cr_expect_eq(method_find("hetlora")->lr, 0);
    cr_expect_eq(other->training->lr, 2e-4);
    message_free(made);
    message_free(stored);
    message_free(other);
}

static double alpha_of(void (*change)(config_t *c), uint32_t rank)
{
    config_t *c = make(change);
    ok(run_config_complete(c));
    double alpha = run_config_alpha(c, "a", rank);
    message_free(c);
    return alpha;
}

Test(run_config, gives_a_part_of_the_state_the_states_scale)
{
    cr_expect_eq(alpha_of(flexlora, 8), 24);
    cr_expect_eq(alpha_of(flexlora, 2), 6, "24/8 = 6/2");
    cr_expect_float_eq(alpha_of(flexlora_rslora, 2), 12, 1e-12, "24/sqrt(8) = 12/sqrt(2)");
    cr_expect_eq(alpha_of(ffa, 2), 24, "beside frozen factors the rank is the state's");
    cr_expect_eq(alpha_of(fed_sb, 2), 2, "scale 1");
    cr_expect_eq(alpha_of(NULL, 4), 8, "flora: twice the rank");
    expect_refused(rankless_ffa, "method ffa needs the rank of its state: give the run's (--rank)");
}

static void other_targets(config_t *c)
{
    own_alpha(c);
    own_targets[0] = "up";
}

Test(run_config, wants_what_members_adapt_to_be_of_the_run)
{
    static Fedlora__V1__ModuleShape shape = FEDLORA__V1__MODULE_SHAPE__INIT, *list[] = {&shape};
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT, *modules = NULL;
    shape.name = "model.layers.0.self_attn.q_proj";
    shape.d_out = shape.d_in = 8;
    hello.modules = list;
    hello.n_modules = 1;
    config_t *c = make(other_targets);
    refused(run_config_modules(&modules, c, &hello), ERR_INPUT,
            "member b: target \"up\" names no module of this run");
    message_free(c);
    own_targets[0] = "q";
    c = make(own_alpha);
    ok(run_config_modules(&modules, c, &hello));
    message_free(modules);
    message_free(c);
}
