#include "privacy/ledger/ledger.h"
#include "base/file.h"
#include "base/json.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static struct ledger_key key;
static struct ledger_head head;
static struct bytes text;

static const struct ledger_terms terms = {.job = "trial",
                                          .party = "coordinator",
                                          .purpose = "training",
                                          .unit = LEDGER_CLIENT,
                                          .method = "fed-sb",
                                          .weights = "uniform",
                                          .bases = "seed",
                                          .epsilon = 3,
                                          .delta = 1e-5,
                                          .noise = 1.1,
                                          .sampling = 0.1,
                                          .clip = 0.3,
                                          .denominator = 100,
                                          .cohorts = {{1, 2}},
                                          .given = {{3}},
                                          .units = 1000,
                                          .dim = 12345,
                                          .rounds = 4,
                                          .steps = 1};

static struct ledger_release release_of(uint32_t round)
{
    struct ledger_release r = {.round = round,
                               .charged = {.noise = 1.1, .sampling = 0.1, .count = 1},
                               .clip = 0.3,
                               .sigma = 1417339208,
                               .denominator = 100,
                               .dim = 12345,
                               .epsilon = 0.1 * round,
                               .rdp = 0.2 * round,
                               .order = 5.5};
    memset(r.released.byte, (int)round, sizeof r.released.byte);
    return r;
}

static void make(void)
{
    uint8_t seed[32] = {1, 2, 3};
    cr_assert_geq(sodium_init(), 0);
    crypto_sign_seed_keypair(key.public, key.secret, seed);
    head = (struct ledger_head){0};
    text = (struct bytes){.max = 1 << 20};
    ok(ledger_start(&text, &head, &key, &terms));
    for (uint32_t round = 1; round <= 3; round++) {
        struct ledger_release r = release_of(round);
        ok(ledger_add(&text, &head, &key, &r));
    }
    ok(ledger_note(&text, &head, &key, "stop", "the budget is \"spent\""));
}

static struct ledger_terms other_terms(void)
{
    struct ledger_terms t = terms;
    t.job = "another";
    t.purpose = "basis";
    t.sampling = 1;
    t.noise = 7;
    return t;
}

static void drop(void)
{
    bytes_close(&text);
}

Test(ledger, reads_what_was_written, .init = make, .fini = drop)
{
    struct ledger got = {0};
    ok(ledger_read(&got, (const char *)text.data, text.size, "x.jsonl"));
    cr_assert_eq(got.count, 4);
    cr_expect_eq(got.head.count, 5);
    cr_expect(digest_equal(&got.head.hash, &head.hash));
    cr_expect_str_eq(got.terms.job, "trial");
    cr_expect_str_eq(got.terms.bases, "seed");
    cr_expect(got.terms.unit == LEDGER_CLIENT && !got.terms.adaptive.on);
    cr_expect(got.terms.epsilon == 3 && got.terms.delta == 1e-5 && got.terms.noise == 1.1);
    cr_expect(got.terms.sampling == 0.1 && got.terms.denominator == 100);
    cr_expect(digest_equal(&got.terms.cohorts, &terms.cohorts));
    cr_expect(digest_equal(&got.terms.given, &terms.given));
    cr_expect(got.terms.units == 1000 && got.terms.dim == 12345 && got.terms.rounds == 4);
    cr_expect_eq(memcmp(got.public, key.public, 32), 0);
    for (uint32_t i = 0; i < 3; i++) {
        struct ledger_release want = release_of(i + 1), *r = &got.entry[i].release;
        cr_expect_str_eq(got.entry[i].kind, "release");
        cr_expect(r->round == want.round && r->sigma == want.sigma && r->clip == want.clip);
        cr_expect(r->charged.noise == 1.1 && r->charged.sampling == 0.1 && r->charged.count == 1);
        cr_expect(r->epsilon == want.epsilon && r->rdp == want.rdp && r->order == 5.5);
        cr_expect(digest_equal(&r->released, &want.released));
    }
    cr_expect_str_eq(got.entry[3].text, "the budget is \"spent\"");
    ledger_close(&got);
    ledger_close(&got);
}

Test(ledger, goes_on_under_another_plan_and_in_parts, .init = make, .fini = drop)
{
    struct ledger got = {0};
    struct ledger_terms next = other_terms();
    struct ledger_release r = release_of(1);
    size_t size = text.size;
    ok(ledger_plan(&text, &head, &key, &next));
    ok(ledger_add(&text, &head, &key, &r));
    ok(ledger_read(&got, (const char *)text.data, size, "x.jsonl"));
    cr_expect_str_eq(got.in_force->job, "trial");
    ok(ledger_forget(&got));
    cr_expect(got.count == 0 && got.head.count == 5 && got.terms.units == 1000);
    refused(ledger_read_more(&got, (const char *)text.data + size + 1, 10, "x.jsonl"), ERR_INPUT,
            "x.jsonl:6: no newline");
    cr_expect_eq(got.head.count, 5, "as it was");
    ok(ledger_read_more(&got, (const char *)text.data + size, text.size - size, "x.jsonl"));
    cr_assert_eq(got.count, 2);
    cr_expect_eq(got.head.count, 7);
    cr_expect_str_eq(got.entry[0].kind, "plan");
    for (int i = 0; i < 2; i++) {
        const struct ledger_terms *t = got.entry[i].terms;
        cr_expect_str_eq(t->job, "another");
        cr_expect_str_eq(t->purpose, "basis");
        cr_expect_str_eq(t->party, "coordinator");
        cr_expect(t->sampling == 1 && t->noise == 7 && t->unit == LEDGER_CLIENT);
    }
    cr_expect_str_eq(got.terms.job, "trial");
    refused(ledger_read_more(&got, (const char *)text.data + size, text.size - size, "x.jsonl"),
            ERR_INPUT, "x.jsonl:8: does not follow");
    ledger_close(&got);
}

Test(ledger, knows_the_same_plan)
{
    struct ledger_terms t = terms;
    cr_expect(ledger_same_plan(&terms, &t));
    t.dim--;
    cr_expect(ledger_same_plan(&terms, &t), "fewer coordinates");
    t.dim += 2;
    cr_expect_not(ledger_same_plan(&terms, &t));
    t = terms;
    t.given.byte[7] = 1;
    cr_expect_not(ledger_same_plan(&terms, &t));
    t = other_terms();
    cr_expect_not(ledger_same_plan(&terms, &t));
}

/* Every byte of it, changed in three ways. */
Test(ledger, no_changed_byte_goes_unnoticed, .init = make, .fini = drop)
{
    static const uint8_t change[] = {0x01, 0x20, 0x80};
    size_t line = 1;
    for (size_t i = 0; i < text.size; i++) {
        uint8_t was = text.data[i];
        char here[32], after[32];
        snprintf(here, sizeof here, "x.jsonl:%zu: ", line);
        snprintf(after, sizeof after, "x.jsonl:%zu: ", line + 1);
        for (int c = 0; c < 3; c++) {
            struct ledger got = {0};
            text.data[i] = was ^ change[c];
            err e = ledger_read(&got, (const char *)text.data, text.size, "x.jsonl");
            cr_assert_eq(e.kind, ERR_INPUT, "byte %zu", i);
            /* A line may have become two. */
            cr_assert(strstr(e.text, here) == e.text || strstr(e.text, after) == e.text, "%s",
                      e.text);
        }
        text.data[i] = was;
        line += was == '\n';
    }
}

static const char *line_at(size_t n) /* from 0 */
{
    const char *at = (const char *)text.data;
    while (n--)
        at = strchr(at, '\n') + 1;
    return at;
}

static void expect_refused(const struct bytes *b, const char *part)
{
    struct ledger got = {0};
    refused(ledger_read(&got, (const char *)b->data, b->size, "x.jsonl"), ERR_INPUT, part);
}

Test(ledger, no_line_can_be_taken_out_doubled_or_moved, .init = make, .fini = drop)
{
    static const size_t order[][5] = {{0, 2, 3, 4, 9}, {0, 1, 1, 2, 3}, {0, 2, 1, 3, 4}};
    static const char *const part[] = {"x.jsonl:2: does not follow", "x.jsonl:3: does not follow",
                                       "x.jsonl:2: does not follow"};
    for (int i = 0; i < 3; i++) {
        struct bytes b = {.max = 1 << 20};
        for (int k = 0; k < 5 && order[i][k] != 9; k++)
            ok(bytes_append(&b, line_at(order[i][k]),
                            (size_t)(line_at(order[i][k] + 1) - line_at(order[i][k]))));
        expect_refused(&b, part[i]);
        bytes_close(&b);
    }
    struct bytes rest = {.data = (uint8_t *)(uintptr_t)line_at(1)};
    rest.size = text.size - (size_t)(line_at(1) - line_at(0));
    expect_refused(&rest, "x.jsonl:1: does not follow");
}

Test(ledger, a_cut_line_or_none_is_refused, .init = make, .fini = drop)
{
    struct bytes none = {.data = (uint8_t *)(uintptr_t) ""};
    expect_refused(&none, "x.jsonl:1: the ledger is empty");
    text.size--;
    expect_refused(&text, "x.jsonl:5: no newline at the end");
    text.size -= 40;
    expect_refused(&text, "x.jsonl:5: no newline at the end");
}

/* A chain can be rebuilt without the key, but its signatures then come from another key. */
Test(ledger, another_keys_lines_do_not_join, .init = make, .fini = drop)
{
    struct ledger_key other;
    uint8_t seed[32] = {9};
    struct ledger_release r = release_of(4);
    crypto_sign_seed_keypair(other.public, other.secret, seed);
    ok(ledger_add(&text, &head, &other, &r));
    expect_refused(&text, "x.jsonl:6: the signature is not of the key that the first line names");
}

/* The hash by its definition, from the line's text alone. */
Test(ledger, the_hash_is_what_the_header_says, .init = make, .fini = drop)
{
    json_t *line = NULL;
    struct bytes b = {.max = 1 << 16}, again = {.max = 1 << 16};
    size_t length = (size_t)(line_at(1) - line_at(0)) - 1;
    char hex[DIGEST_TEXT_BYTES], want[DIGEST_TEXT_BYTES];
    ok(json_parse(&line, line_at(0), length, "line"));
    ok(json_write(&again, line));
    cr_expect(again.size == length && !memcmp(again.data, line_at(0), length), "canonical");
    snprintf(want, sizeof want, "%s", json_string_value(json_object_get(line, "hash")));
    json_object_del(line, "hash");
    json_object_del(line, "signature");
    ok(bytes_append(&b, "fedlora ledger 1", 17));
    ok(json_write(&b, line));
    struct digest d = digest_of(b.data, b.size);
    digest_text(hex, &d);
    cr_expect_str_eq(hex, want);
    json_decref(line);
    bytes_close(&b);
    bytes_close(&again);
}

/* An Ed25519 key made by `openssl genpkey`, and its public half. */
Test(ledger, takes_the_keys_that_openssl_makes)
{
    static const char secret[] =
        "-----BEGIN PRIVATE KEY-----\n"
        "MC4CAQAwBQYDK2VwBCIEIEdgdlGfOMJXvujgH3v/pXlGgApdhGL/19wk2HEptZUl\n"
        "-----END PRIVATE KEY-----\n";
    static const char public[] = "-----BEGIN PUBLIC KEY-----\n"
                                 "MCowBQYDK2VwAyEAB12QP02KsRzHrIcwVDLW/tayW2zs35pi31MWn4qku9g=\n"
                                 "-----END PUBLIC KEY-----\n";
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
    uint8_t known[32];
    struct ledger_key got;
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/key", dir);
    ok(file_write(path, secret, strlen(secret), true));
    cr_assert_eq(chmod(path, 0600), 0);
    ok(ledger_key_open(&got, path));
    refused(ledger_public_open(known, path), ERR_INPUT, "expected an Ed25519 public key in PEM");
    cr_assert_eq(chmod(path, 0644), 0);
    refused(ledger_key_open(&got, path), ERR_INPUT, "others may read this key: expected mode 0600");
    ok(file_write(path, public, strlen(public), true));
    ok(ledger_public_open(known, path));
    cr_expect_eq(memcmp(known, got.public, 32), 0);
    refused(ledger_key_open(&got, path), ERR_INPUT, "expected an Ed25519 private key in PEM");
    ok(file_write(path, "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ==\n-----END PRIVATE KEY-----", 66,
                  true));
    refused(ledger_key_open(&got, path), ERR_INPUT, "expected an Ed25519 private key in PEM");
    ledger_key_close(&got);
    cr_expect_eq(got.secret[0] | got.secret[40], 0);
    support_dir_remove(dir);
}

/* ---- simulated ledgers ---- */

Test(ledger, says_in_its_first_line_that_it_is_simulated, .init = make, .fini = drop)
{
    struct ledger real = {0}, simulated = {0};
    struct ledger_terms t = terms;
    ok(ledger_read(&real, (const char *)text.data, text.size, "real"));
    cr_expect(!real.terms.simulated);
    cr_expect_null(strstr((const char *)text.data, "simulated"));
    ok(ledger_check_simulated(&real, false, "real"));
    refused(ledger_check_simulated(&real, true, "real"), ERR_INPUT, "is a real ledger");
    t.simulated = true;
    head = (struct ledger_head){0};
    bytes_clear(&text);
    ok(ledger_start(&text, &head, &key, &t));
    ok(ledger_plan(&text, &head, &key, &t));
    cr_expect_not_null(strstr((const char *)text.data, "\"simulated\":true"));
    ok(ledger_read(&simulated, (const char *)text.data, text.size, "s"));
    ok(ledger_forget(&simulated));
    cr_expect(simulated.terms.simulated && simulated.in_force->simulated);
    refused(ledger_check_simulated(&simulated, false, "s"), ERR_INPUT, "ledger of a simulation");
    ledger_close(&real);
    ledger_close(&simulated);
}

/* The mark is under the hash and the signature of its line. */
Test(ledger, does_not_lose_its_mark, .init = make, .fini = drop)
{
    struct ledger got = {0};
    struct ledger_terms t = terms;
    t.simulated = true;
    head = (struct ledger_head){0};
    bytes_clear(&text);
    ok(ledger_start(&text, &head, &key, &t));
    char *mark = strstr((char *)text.data, "\"simulated\":true,");
    cr_assert_not_null(mark);
    memmove(mark, mark + 17, strlen(mark + 17) + 1);
    refused(ledger_read(&got, (const char *)text.data, text.size - 17, "s"), ERR_INPUT,
            "line was changed");
}

Test(ledger, makes_a_key_that_openssl_reads)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 8], pub[SUPPORT_PATH_BYTES + 8];
    char command[4 * SUPPORT_PATH_BYTES];
    struct ledger_key made, again;
    uint8_t public[32];
    struct stat st;
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/key", dir);
    snprintf(pub, sizeof pub, "%s/pub", dir);
    ok(ledger_key_make(path, pub));
    ok(ledger_key_open(&made, path));
    ok(ledger_public_open(public, pub));
    cr_expect_eq(memcmp(made.public, public, 32), 0);
    cr_expect_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    refused(ledger_key_make(path, pub), ERR_INPUT, "exists already");
    ok(ledger_key_open(&again, path));
    cr_expect_eq(memcmp(&made, &again, sizeof made), 0, "the first key stays");
    snprintf(command, sizeof command, "openssl pkey -in %s -pubout | cmp - %s", path, pub);
    cr_expect_eq(system(command), 0, "not the public half that openssl gives");
    support_dir_remove(dir);
}
