#include "coordinator/run_config.h"

#include "base/digest.h"
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

Test(run_config, refuses_each_field_by_name)
{
    expect_refused(no_steps, "steps or epochs");
    expect_refused(bad_lr, "lr: nan");
    expect_refused(bad_schedule, "schedule: \"steep\", expected one of constant, linear, cosine");
    expect_refused(no_rounds, "rounds: 0");
    expect_refused(short_digest, "base digest: 5 bytes, expected 32");
    expect_refused(bad_name, "run name \"../r\"");
    expect_refused(no_members, "at least one member");
    expect_refused(bad_weights, "member a: weight: 0");
    expect_refused(unwanted_basis, "method flora has no frozen factors");
    expect_refused(mixed_fedit, "one rank for everyone");
    expect_refused(rankless_fedit, "needs the run's rank");
}

Test(run_config, fills_in_what_is_absent)
{
    config_t *c = make(NULL);
    ok(run_config_complete(c));
    cr_expect_str_eq(c->late, "refuse");
    cr_expect_str_eq(c->weights, "examples");
    cr_expect_str_eq(c->training->schedule, "linear");
    cr_expect_eq(c->training->batch, 4);
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
            "needs rank 8 of everyone, which offers 4");
    message_free(c);
    c = make(given_rank);
    refused(run_config_rank(&rank, c, "b", 4), ERR_INPUT, "needs rank 16 of b, which offers 4");
    message_free(c);
    c = make(no_rank);
    refused(run_config_rank(&rank, c, "a", 0), ERR_INPUT, "neither run r nor a says a rank");
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
