#include "lineage/manifest.h"
#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 32];
static struct ledger_key key;
static struct digest state[4];
enum { ROUNDS = 4 };

static void make(void)
{
    uint8_t seed[32] = {7};
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/manifest.json", dir);
    cr_assert_geq(sodium_init(), 0);
    crypto_sign_seed_keypair(key.public, key.secret, seed);
    for (int i = 0; i < ROUNDS; i++)
        state[i] = digest_of(&i, sizeof i);
}
static void drop(void)
{
    support_dir_remove(dir);
}
TestSuite(manifest, .init = make, .fini = drop);

static void write_round(struct bytes *out, struct manifest_writer *w, uint32_t round, int listed)
{
    static const char *const members[] = {"ann", "ben"};
    struct digest config = digest_of("config", 6);
    ok(manifest_round(out, w,
                      &(struct manifest_round){.round = round,
                                               .state = state[round],
                                               .state_bytes = 1000,
                                               .config = &config,
                                               .software = round ? "fedlorad 1" : "",
                                               .updates = round ? 2 : 0}));
    for (int i = 0; round && i < listed; i++)
        ok(manifest_update(out, w,
                           &(struct manifest_update){.member = members[i],
                                                     .software = "fedlora 1; a \"processor\"",
                                                     .trained_round = round,
                                                     .digest = digest_of(members[i], 3),
                                                     .bytes = 500,
                                                     .examples = 7,
                                                     .weight = 0.1}));
}

/* In a buffer that is emptied after each piece, as a stream is. */
static void write_manifest(int listed)
{
    struct bytes all = {.max = 1 << 20}, part = {.max = 1 << 20};
    struct manifest_writer w;
    char last[DIGEST_TEXT_BYTES];
    digest_text(last, &state[ROUNDS - 1]);
    ok(manifest_begin(&part, &w,
                      json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "run", "triage", "method",
                                "fedit", "base", "b", "frozen", "", "state", last, "published",
                                ROUNDS - 1)));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        write_round(&part, &w, round, listed);
        ok(bytes_append(&all, part.data, part.size));
        bytes_clear(&part);
    }
    ok(manifest_end(&part, &w, &key));
    ok(bytes_append(&all, part.data, part.size));
    ok(file_write(path, all.data, all.size, true));
    manifest_close(&w);
    bytes_close(&all);
    bytes_close(&part);
}

static char said[2000];
static void differs(void *context, const char *text)
{
    (void)context;
    size_t used = strlen(said);
    snprintf(said + used, sizeof said - used, "%s\n", text);
}

static size_t compare(const struct manifest_state *with)
{
    json_t *manifest = NULL;
    *said = 0;
    ok(manifest_read(&manifest, path, key.public));
    size_t n = manifest_compare(manifest, with, differs, NULL);
    json_decref(manifest);
    return n;
}

Test(manifest, accepts_the_state_that_it_is_about_and_names_every_difference)
{
    struct manifest_state is = {
        .digest = state[3], .run = "triage", .method = "fedit", .base = "b", .frozen = ""};
    write_manifest(2);
    cr_expect_eq(compare(&is), 0, "%s", said);
    is.digest = state[1];
    cr_expect_eq(compare(&is), 1);
    cr_expect(strstr(said, "this is the state of round 1, the manifest is about round 3"));
    is.digest = digest_of("other", 5);
    is.run = "other";
    is.base = "c";
    cr_expect_eq(compare(&is), 3);
    cr_expect(strstr(said, "digest: the state has ") &&
              strstr(said, "run: the state has \"other\"") &&
              strstr(said, "base: the state has \"c\", the manifest \"b\""));
}

Test(manifest, says_where_it_contradicts_itself)
{
    struct manifest_state is = {.digest = state[3]};
    write_manifest(1);
    cr_expect_eq(compare(&is), 3);
    cr_expect(strstr(said, "round 2: 1 updates are listed, 2 were counted"), "%s", said);
}

Test(manifest, no_byte_of_it_can_be_changed)
{
    char *text = NULL;
    size_t size = 0;
    json_t *manifest = NULL;
    write_manifest(2);
    ok(file_read_all(&text, &size, path, 1 << 20));
    for (size_t i = 0; i < size; i += 7) {
        text[i] ^= 1;
        ok(file_write(path, text, size, true));
        err e = manifest_read(&manifest, path, key.public);
        cr_assert_eq(e.kind, ERR_INPUT, "byte %zu of %zu", i, size);
        text[i] ^= 1;
    }
    free(text);
}

Test(manifest, is_not_that_of_another_key)
{
    json_t *manifest = NULL;
    uint8_t other[32] = {1};
    write_manifest(2);
    refused(manifest_read(&manifest, path, other), ERR_INPUT, "signed by another key");
}

/* By python's json and hashlib and the openssl command. */
Test(manifest, is_accepted_by_other_programs)
{
    char command[4 * SUPPORT_PATH_BYTES], public[SUPPORT_PATH_BYTES + 32];
    write_manifest(2);
    snprintf(public, sizeof public, "%s/audit.pub", dir);
    ok(ledger_public_write(key.public, public));
    snprintf(command, sizeof command,
             "cd %s && python3 -c \"import json,hashlib\n"
             "d=json.load(open('manifest.json'))\n"
             "t=json.dumps(d['manifest'],sort_keys=True,separators=(',',':'))\n"
             "t=t.replace(':0.1}',':0.10000000000000001}')\n"
             "h=hashlib.blake2b(b'fedlora manifest 1\\0'+t.encode(),digest_size=32).digest()\n"
             "assert h.hex()==d['signature']['hash']\n"
             "assert len(d['manifest']['rounds'][2]['updates'])==2\n"
             "open('message','wb').write(b'fedlora manifest 1\\0'+h)\n"
             "open('value','wb').write(bytes.fromhex(d['signature']['value']))\" && "
             "openssl pkeyutl -verify -rawin -pubin -inkey audit.pub -in message -sigfile value",
             dir);
    cr_expect_eq(system(command), 0);
}
