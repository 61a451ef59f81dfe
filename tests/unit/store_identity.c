/* The list of the federation's members and operators. */
#include "coordinator/store/store_identity.h"

#include "tests/support/store_fixture.h"

TestSuite(store_identity, .init = begin, .fini = end);

static const struct store_act act = {"admin/ops", 1000};
static const struct store_who north = {"client", "north"};

static const char *state(const char *role, const char *id)
{
    static char out[STORE_STATE_BYTES];
    ok(store_identity_state(out, &store.db, &(struct store_who){role, id}));
    return out;
}

static size_t import(const char *const *id, size_t count, uint64_t now_ms)
{
    size_t changed = 99;
    ok(store_identity_import(&changed, &store, "client", id, count, now_ms));
    return changed;
}

Test(store_identity, follows_the_file_only_for_names_that_came_from_it)
{
    static const char *const first[] = {"south", "east"}, *const second[] = {"west", "east"};
    ok(store_identity_add(&store, &north, STORE_ACTIVE, false, &act));
    cr_expect_eq(import(first, 2, 1), 2);
    cr_expect_eq(import(first, 2, 2), 0);
    cr_expect_eq(import(NULL, 0, 3), 0, "an empty list says nothing");
    cr_expect_eq(import(second, 2, 4), 2);
    cr_expect_str_eq(state("client", "south"), STORE_REMOVED);
    cr_expect_str_eq(state("client", "east"), STORE_ACTIVE);
    cr_expect_str_eq(state("client", "north"), STORE_ACTIVE);
    cr_expect_eq(import(first, 2, 5), 2);
    cr_expect_str_eq(state("client", "south"), STORE_ACTIVE);
    cr_expect_str_eq(state("client", "west"), STORE_REMOVED);
    cr_expect_str_eq(state("admin", "east"), "", "roles are apart");
}

Test(store_identity, a_revoked_member_in_the_file_stays_revoked)
{
    static const char *const list[] = {"north"};
    import(list, 1, 1);
    ok(store_identity_revoke(&store, &north, "stolen", false, &act));
    cr_expect_eq(import(list, 1, 2), 0);
    cr_expect_str_eq(state("client", "north"), STORE_REVOKED);
    refused(store_identity_add(&store, &north, STORE_ACTIVE, false, &act), ERR_REFUSED,
            "fedlora member add north admits it again");
    ok(store_identity_add(&store, &north, STORE_ACTIVE, true, &act));
    cr_expect_str_eq(state("client", "north"), STORE_ACTIVE);
}

Test(store_identity, keeps_all_facts_and_lists_them_in_order)
{
    struct arena arena = {0};
    struct store_identity *row = NULL, one;
    size_t count = 0;
    bool found = false;
    const struct store_identity seen = {
        .who = north, .seen_ms = 7, .address = "10.0.0.1", .software = "fedlora 1", .ends_s = 9};
    ok(store_identity_add(&store, &(struct store_who){"client", "a"}, STORE_ACTIVE, false, &act));
    ok(store_identity_add(&store, &(struct store_who){"admin", "z"}, STORE_ACTIVE, false, &act));
    ok(store_identity_add(&store, &north, STORE_INVITED, false, &act));
    ok(store_identity_rename(&found, &store, &north, "St. Mary's"));
    cr_expect(found);
    ok(store_identity_rename(&found, &store, &(struct store_who){"client", "none"}, "x"));
    cr_expect_not(found);
    ok(store_identity_seen(&store, &seen, 1));
    ok(store_identities(&row, &count, &store, NULL, 10, &arena));
    cr_assert_eq(count, 3);
    cr_expect_str_eq(row[0].who.id, "z");
    cr_expect_str_eq(row[1].who.id, "a");
    cr_expect_str_eq(row[2].name, "St. Mary's");
    cr_expect_str_eq(row[2].address, "10.0.0.1");
    cr_expect(row[2].seen_ms == 7 && row[2].ends_s == 9 && row[2].added_ms == act.now_ms);
    ok(store_identities(&row, &count, &store, &row[0].who, 1, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(row[0].who.id, "a", "the page after the first");
    ok(store_identity_revoke(&store, &north, "lost", true, &act));
    ok(store_identity_find(&found, &one, &store, &north, &arena));
    cr_assert(found);
    cr_expect(one.recorded && one.keep_runs);
    cr_expect_str_eq(one.reason, "lost");
    ok(store_identity_revoke(&store, &north, "", true, &act));
    ok(store_identity_find(&found, &one, &store, &north, &arena));
    cr_expect_str_eq(one.reason, "lost", "kept by a second revocation without one");
    cr_expect_str_eq(one.added_by, "admin/ops");
    arena_close(&arena);
}

Test(store_identity, an_active_member_is_never_only_invited_again)
{
    ok(store_identity_add(&store, &north, STORE_ACTIVE, false, &act));
    ok(store_identity_add(&store, &north, STORE_INVITED, false, &act));
    cr_expect_str_eq(state("client", "north"), STORE_ACTIVE);
}
