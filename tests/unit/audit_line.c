#include "lineage/audit_line.h"
#include "privacy/ledger/ledger.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct ledger_key key;

static void make_key(void)
{
    uint8_t seed[32] = {7};
    cr_assert_geq(sodium_init(), 0);
    crypto_sign_seed_keypair(key.public, key.secret, seed);
}
TestSuite(audit_line, .init = make_key);

static struct bytes make(struct audit_line_head *head, bool signs)
{
    struct bytes text = {.max = AUDIT_LINE_BYTES};
    const struct log_field detail[] = {LOG_STR("reason", "a \"reason\""), LOG_INT("count", 3),
                                       LOG_NUM("weight", 0.1)};
    const struct audit_line line = {.time_ms = 1796077639123,
                                    .role = "admin",
                                    .id = "ops",
                                    .serial = "1f",
                                    .address = "10.0.0.7",
                                    .action = signs ? NULL : "run.created",
                                    .object = "triage",
                                    .outcome = "ok",
                                    .detail = detail,
                                    .details = signs ? 0 : 3};
    ok(audit_line_make(&text, head, &line, signs ? &key : NULL));
    return text;
}

Test(audit_line, is_one_canonical_line_with_the_number_and_the_hash_of_the_line_before)
{
    struct audit_line_head head = {0};
    struct audit_line_read first, second;
    struct bytes a = make(&head, false), b = make(&head, false);
    static const char begins[] =
        "{\"action\":\"run.created\",\"actor\":{\"address\":\"10.0.0.7\",\"id\":\"ops\","
        "\"role\":\"admin\",\"serial\":\"1f\"},\"detail\":{\"count\":3,"
        "\"reason\":\"a \\\"reason\\\"\",\"weight\":0.10000000000000001},\"hash\":\"";
    cr_expect_eq(strncmp((char *)a.data, begins, strlen(begins)), 0, "%s", (char *)a.data);
    cr_expect(strstr((char *)a.data, "\"time\":\"2026-11-30T22:27:19.123Z\"}\n"));
    ok(audit_line_parse(&first, (char *)a.data, a.size - 1));
    ok(audit_line_parse(&second, (char *)b.data, b.size - 1));
    cr_expect(first.whole && second.whole);
    cr_expect_eq(first.seq, 1);
    cr_expect_eq(second.seq, 2);
    cr_expect(digest_equal(&second.prev, &first.hash));
    cr_expect(digest_equal(&head.hash, &second.hash));
    bytes_close(&a);
    bytes_close(&b);
}

/* BLAKE2b by python's hashlib, so that the hash is not checked against itself. */
Test(audit_line, has_the_hash_that_another_program_computes)
{
    struct audit_line_head head = {0};
    struct bytes a = make(&head, false);
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16], command[3 * SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/line", dir);
    FILE *f = fopen(path, "w");
    fwrite(a.data, 1, a.size, f);
    fclose(f);
    snprintf(command, sizeof command,
             "python3 -c \"import json,hashlib,sys\n"
             "o=json.loads(open('%s').read())\n"
             "h=o.pop('hash')\n"
             "t=json.dumps(o,sort_keys=True,separators=(',',':'))\n"
             "t=t.replace('0.1}','0.10000000000000001}')\n"
             "d=hashlib.blake2b(b'fedlora audit 1\\0'+t.encode(),digest_size=32).hexdigest()\n"
             "sys.exit(h!=d)\"",
             path);
    cr_expect_eq(system(command), 0);
    support_dir_remove(dir);
    bytes_close(&a);
}

Test(audit_line, no_byte_of_a_line_can_be_changed)
{
    struct audit_line_head head = {0};
    struct bytes line[] = {make(&head, false), make(&head, true)};
    for (size_t n = 0; n < 2; n++)
        for (size_t i = 0; i + 1 < line[n].size; i++)
            for (unsigned flip = 1; flip < 256; flip <<= 1) {
                struct audit_line_read read = {0};
                line[n].data[i] ^= (uint8_t)flip;
                err e = audit_line_parse(&read, (char *)line[n].data, line[n].size - 1);
                bool good = !err_is(e) && read.whole && (!n || (read.signs && read.signature));
                cr_expect(!good, "byte %zu, bit %u of line %zu", i, flip, n + 1);
                line[n].data[i] ^= (uint8_t)flip;
            }
    for (size_t n = 0; n < 2; n++)
        bytes_close(&line[n]);
}

Test(audit_line, only_a_head_has_a_signature)
{
    struct audit_line_head head = {0};
    struct audit_line_read read;
    char text[AUDIT_LINE_BYTES];
    struct bytes a = make(&head, false);
    char *seq = strstr((char *)a.data, "\"time\"");
    snprintf(text, sizeof text, "%.*s\"signature\":\"00\",%s", (int)(seq - (char *)a.data),
             (char *)a.data, seq);
    refused(audit_line_parse(&read, text, strlen(text) - 1), ERR_INPUT, "only a head");
    bytes_close(&a);
}

Test(audit_line, stays_one_line_whatever_a_peer_sends)
{
    struct audit_line_head head = {0};
    struct audit_line_read read;
    char wild[3000];
    memset(wild, 'a', sizeof wild - 1);
    memcpy(wild, "\xff\n\x01 \"", 5);
    wild[sizeof wild - 1] = 0;
    const struct log_field detail = LOG_STR("reason", wild);
    const struct audit_line line = {
        .action = "call.denied", .object = wild, .detail = &detail, .details = 1};
    struct bytes text = {.max = AUDIT_LINE_BYTES};
    ok(audit_line_make(&text, &head, &line, NULL));
    cr_expect_eq(strchr((char *)text.data, '\n'), (char *)text.data + text.size - 1);
    ok(audit_line_parse(&read, (char *)text.data, text.size - 1));
    cr_expect(read.whole);
    cr_expect_lt(text.size, 2600);
    bytes_close(&text);
}

Test(audit_line, knows_the_names_of_its_files)
{
    char name[AUDIT_LINE_FILE_BYTES];
    audit_line_file(name, 1796077639123);
    cr_expect_str_eq(name, "2026-11.jsonl");
    cr_expect(audit_line_is_file(name));
    cr_expect(!audit_line_is_file("2026-11.jsonl.part") && !audit_line_is_file("audit.pub") &&
              !audit_line_is_file("2026-1x.jsonl"));
}
