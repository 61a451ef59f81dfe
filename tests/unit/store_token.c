/* Tokens: each is used once, whatever happens. */
#include "coordinator/store/store_identity.h"

#include "tests/support/store_fixture.h"

#include <errno.h>

enum { TOKENS_MAX = 3 };
TestSuite(store_token, .init = begin, .fini = end);

static struct store_token token(const char *id, const char *secret, uint64_t ends_ms)
{
    return (struct store_token){.who = {"client", id},
                                .secret = digest_of(secret, strlen(secret)),
                                .server = "h:1",
                                .made_by = "admin/ops",
                                .made_ms = 10,
                                .ends_ms = ends_ms};
}

static struct store_certificate certificate(const struct store_who *who, const char *serial)
{
    return (struct store_certificate){.who = *who,
                                      .serial = serial,
                                      .how = "enrolled",
                                      .key = digest_of(serial, strlen(serial)),
                                      .ends_s = 100};
}

static bool find(struct store_token *out, const char *secret, struct arena *arena)
{
    const struct digest digest = digest_of(secret, strlen(secret));
    bool found = false;
    ok(store_token_find(&found, out, &store, &digest, arena));
    return found;
}

static void state_is(const char *id, const char *state)
{
    char is[STORE_STATE_BYTES];
    ok(store_identity_state(is, &store.db, &(struct store_who){"client", id}));
    cr_expect_str_eq(is, state);
}

Test(store_token, invites_its_owner_and_makes_it_active_once)
{
    struct arena arena = {0};
    struct store_token t = token("north", "s", 1000), is;
    const struct store_certificate first = certificate(&t.who, "aa");
    const struct store_certificate second = certificate(&t.who, "bb");
    ok(store_token_add(&store, &t, TOKENS_MAX));
    state_is("north", STORE_INVITED);
    cr_expect_not(find(&is, "other", &arena));
    cr_assert(find(&is, "s", &arena));
    cr_expect_str_eq(is.server, "h:1");
    ok(store_token_use(&store, &is, "chain", &first, "10.0.0.1", 20));
    state_is("north", STORE_ACTIVE);
    /* The second use began before the first had ended, so it still has the row as it was. */
    refused(store_token_use(&store, &is, "other", &second, "10.0.0.2", 21), ERR_STATE,
            "used or revoked a moment ago");
    bool good = true;
    ok(store_certificate_good(&good, &store, "bb"));
    cr_expect_not(good, "a certificate without its token");
    cr_assert(find(&is, "s", &arena));
    cr_expect_str_eq(is.chain, "chain");
    cr_expect_str_eq(is.used_from, "10.0.0.1");
    cr_expect(is.used_ms == 20 && digest_equal(&is.used_key, &first.key));
    arena_close(&arena);
}

/* The commit fails as on a full disk: the token is as new. */
static err fail_commit(void)
{
    return err_sys(ENOSPC, "a test");
}
Test(store_token, is_not_used_up_by_a_use_that_fails)
{
    struct arena arena = {0};
    struct store_token t = token("north", "s", 1000), is;
    const struct store_certificate row = certificate(&t.who, "aa");
    ok(store_token_add(&store, &t, TOKENS_MAX));
    cr_assert(find(&is, "s", &arena));
    db_before_commit = fail_commit;
    err e = store_token_use(&store, &is, "chain", &row, "10.0.0.1", 20);
    db_before_commit = NULL;
    cr_expect(err_is(e));
    cr_assert(find(&is, "s", &arena));
    cr_expect_eq(is.used_ms, 0);
    state_is("north", STORE_INVITED);
    ok(store_token_use(&store, &is, "chain", &row, "10.0.0.1", 21));
    arena_close(&arena);
}

Test(store_token, of_a_revoked_owner_is_worthless)
{
    struct arena arena = {0};
    struct store_token t = token("north", "s", 1000), again = token("north", "r", 1000), is;
    const struct store_certificate row = certificate(&t.who, "aa");
    const struct store_act act = {"admin/ops", 30};
    ok(store_token_add(&store, &t, TOKENS_MAX));
    ok(store_identity_revoke(&store, &t.who, "", false, &act));
    cr_assert(find(&is, "s", &arena));
    cr_expect_eq(is.revoked_ms, 30);
    refused(store_token_use(&store, &is, "chain", &row, "10.0.0.1", 31), ERR_STATE, "revoked");
    refused(store_token_add(&store, &again, TOKENS_MAX), ERR_REFUSED, "north was revoked");
    arena_close(&arena);
}

Test(store_token, are_limited_listed_and_swept)
{
    struct arena arena = {0};
    struct store_token *row = NULL, one = token("a", "1", 1000), two = token("b", "2", 1000);
    struct store_token ended = token("c", "3", 5), three = token("b", "4", 1000);
    struct store_token more = token("d", "5", 1000);
    size_t count = 0;
    ok(store_token_add(&store, &ended, TOKENS_MAX));
    ok(store_token_add(&store, &one, TOKENS_MAX));
    ok(store_token_add(&store, &two, TOKENS_MAX));
    ok(store_token_add(&store, &three, TOKENS_MAX));
    refused(store_token_add(&store, &more, TOKENS_MAX), ERR_LIMIT, "3 tokens are open");
    ok(store_token_revoke(&count, &store, &two.who, 20));
    cr_expect_eq(count, 2);
    ok(store_token_revoke(&count, &store, &ended.who, 20));
    cr_expect_eq(count, 0, "it has ended");
    ok(store_token_add(&store, &more, TOKENS_MAX));
    ok(store_tokens(&row, &count, &store, 0, 2, &arena));
    cr_assert_eq(count, 2);
    cr_expect_str_eq(row[0].who.id, "d");
    ok(store_tokens(&row, &count, &store, row[1].number, 10, &arena));
    cr_expect_eq(count, 3);
    ok(store_identity_sweep(&store, 31ull * 24 * 60 * 60 * 1000));
    ok(store_tokens(&row, &count, &store, 0, 10, &arena));
    cr_expect_eq(count, 0);
    arena_close(&arena);
}
