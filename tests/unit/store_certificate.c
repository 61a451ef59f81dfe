/* Certificates that were issued, and those that are refused. */
#include "coordinator/store/store_identity.h"

#include "tests/support/store_fixture.h"

TestSuite(store_certificate, .init = begin, .fini = end);

static const struct store_who north = {"client", "north"};

static struct store_certificate certificate(const char *serial, int64_t ends_s)
{
    return (struct store_certificate){.who = north,
                                      .serial = serial,
                                      .how = "signed",
                                      .key = digest_of(serial, strlen(serial)),
                                      .begins_s = 1,
                                      .ends_s = ends_s};
}

static void issue(const char *serial, int64_t ends_s, uint64_t now_ms)
{
    const struct store_certificate row = certificate(serial, ends_s);
    ok(store_certificate_add(&store, &row, &(struct store_act){"admin/ops", now_ms}));
}

static bool is_good(const char *serial)
{
    bool good = false;
    ok(store_certificate_good(&good, &store, serial));
    return good;
}

Test(store_certificate, makes_its_owner_active_and_lists_the_newest_first)
{
    struct arena arena = {0};
    struct store_certificate *row = NULL;
    struct store_identity one;
    size_t count = 0;
    bool found = false;
    issue("aa", 100, 1);
    issue("bb", 200, 2);
    ok(store_certificates(&row, &count, &store, &north, 10, &arena));
    cr_assert_eq(count, 2);
    cr_expect_str_eq(row[0].serial, "bb");
    cr_expect_str_eq(row[1].how, "signed");
    const struct digest key = digest_of("aa", 2);
    cr_expect(digest_equal(&row[1].key, &key));
    ok(store_identity_find(&found, &one, &store, &north, &arena));
    cr_assert(found);
    cr_expect_str_eq(one.state, STORE_ACTIVE);
    cr_expect_eq(one.ends_s, 200);
    arena_close(&arena);
}

Test(store_certificate, one_that_is_revoked_is_refused_until_it_ends_anyway)
{
    struct arena arena = {0};
    const char **serial = NULL;
    size_t count = 0;
    bool found = false;
    issue("bb", 200, 1);
    issue("aa", 100, 2);
    ok(store_certificate_revoke(&found, &store, &north, "aa", "lost", 3));
    cr_expect(found);
    cr_expect(!is_good("aa") && is_good("bb") && !is_good("cc"));
    ok(store_certificate_revoke(&found, &store, &north, "00", "from another tool", 3));
    cr_expect_not(found);
    ok(store_certificates_revoked(&serial, &count, &store, 50, &arena));
    cr_assert_eq(count, 2);
    cr_expect_str_eq(serial[0], "00");
    cr_expect_str_eq(serial[1], "aa");
    ok(store_certificates_revoked(&serial, &count, &store, 150, &arena));
    cr_expect_eq(count, 1, "a certificate that has ended needs no place in memory");
    arena_close(&arena);
}

Test(store_certificate, of_somebody_else_is_not_revoked_by_a_slip)
{
    const struct store_who south = {"client", "south"}, admin = {"admin", "north"};
    bool found = false;
    issue("aa", 100, 1);
    refused(store_certificate_revoke(&found, &store, &south, "aa", "", 2), ERR_INPUT,
            "certificate aa is not of south");
    refused(store_certificate_revoke(&found, &store, &admin, "aa", "", 2), ERR_INPUT,
            "certificate aa is not of north as admin");
    cr_expect(is_good("aa"));
}

Test(store_certificate, of_a_revoked_owner_is_neither_good_nor_made)
{
    const struct store_act act = {"admin/ops", 5};
    const struct store_certificate row = certificate("cc", 100);
    issue("aa", 100, 1);
    ok(store_identity_revoke(&store, &north, "", false, &act));
    cr_expect_not(is_good("aa"));
    refused(store_certificate_add(&store, &row, &act), ERR_REFUSED, "north was revoked");
    ok(store_identity_add(&store, &north, STORE_ACTIVE, true, &act));
    cr_expect_not(is_good("aa"), "old certificates stay bad");
    ok(store_certificate_add(&store, &row, &act));
    cr_expect(is_good("cc"));
}

Test(store_certificate, is_forgotten_a_year_after_its_end)
{
    const uint64_t day_ms = 24 * 60 * 60 * 1000ull;
    struct arena arena = {0};
    struct store_certificate *row = NULL;
    size_t count = 0;
    issue("aa", 1000, 1);
    ok(store_identity_sweep(&store, 300 * day_ms));
    ok(store_certificates(&row, &count, &store, &north, 10, &arena));
    cr_expect_eq(count, 1);
    ok(store_identity_sweep(&store, 400 * day_ms));
    ok(store_certificates(&row, &count, &store, &north, 10, &arena));
    cr_expect_eq(count, 0);
    arena_close(&arena);
}
