#include "client/command/run_members.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static struct arena arena;
static Fedlora__V1__RunConfig config;

static void parse(const char *text)
{
    fedlora__v1__run_config__init(&config);
    ok(run_members_parse(&config, text, &arena));
}

static void refuses(const char *text, const char *why)
{
    fedlora__v1__run_config__init(&config);
    err e = run_members_parse(&config, text, &arena);
    cr_expect_eq(e.kind, ERR_INPUT, "%s", text);
    cr_expect(strstr(e.text, why) != NULL, "%s: \"%s\" does not say \"%s\"", text, e.text, why);
}

Test(run_members, reads_names_ranks_and_weights)
{
    parse("a, b:8,c:4:2.5");
    cr_assert_eq(config.n_members, 3);
    cr_expect_str_eq(config.members[0]->id, "a");
    cr_expect_eq(config.members[0]->rank, 0);
    cr_expect_str_eq(config.members[1]->id, "b");
    cr_expect_eq(config.members[1]->rank, 8);
    cr_expect_eq(config.members[2]->rank, 4);
    cr_expect_eq(config.members[2]->weight, 2.5);
    arena_close(&arena);
}

Test(run_members, reads_what_else_may_differ)
{
    parse("a:rank=8:alpha=16:rslora=yes:targets=q+v+down_proj,b:weight=3:rslora=no");
    const Fedlora__V1__MemberConfig *a = config.members[0], *b = config.members[1];
    cr_expect(a->rank == 8 && a->alpha == 16 && a->weight == 0);
    cr_expect_str_eq(a->rslora, "yes");
    cr_assert_eq(a->n_targets, 3);
    cr_expect_str_eq(a->targets[2], "down_proj");
    cr_expect(b->rank == 0 && b->weight == 3 && b->n_targets == 0);
    cr_expect_str_eq(b->rslora, "no");
    arena_close(&arena);
}

Test(run_members, all_linear_is_a_member_without_a_list)
{
    parse("a:rank=8:targets=all-linear");
    cr_expect_eq(config.members[0]->rank, 8);
    cr_expect_eq(config.members[0]->n_targets, 0);
    arena_close(&arena);
}

Test(run_members, refuses_what_it_cannot_read_and_names_it)
{
    refuses("a,,b", "empty part");
    refuses("a,b c", "\"b c\" is not a member id");
    refuses("a,b,a", "a is listed twice");
    refuses("a:many", "--members: a: rank many");
    refuses("a:99999", "rank 99999");
    refuses("a:8:-1", "weight -1");
    refuses("a:8:1:2", "\"2\"");
    refuses("a:rnk=8", "did you mean rank?");
    refuses("a:rslora=maybe", "yes or no");
    refuses("a:targets=q++v", "empty part");
    arena_close(&arena);
}
