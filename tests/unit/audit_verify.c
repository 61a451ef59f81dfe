#include "lineage/audit_verify.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINES = 23, HEAD_EVERY = 7 }; /* heads are the lines 7, 14 and 21 */

static struct ledger_key key;
static char *line[LINES];       /* with newlines */
static char other[LINES][1024]; /* the same with another text and a good hash */

static void add(char **out, struct audit_line_head *head, int number, const char *object)
{
    struct bytes text = {.max = AUDIT_LINE_BYTES};
    bool signs = number % HEAD_EVERY == 0;
    const struct audit_line l = {.time_ms = 1796077639000 + (uint64_t)number,
                                 .action = signs ? NULL : "run.created",
                                 .object = object};
    ok(audit_line_make(&text, head, &l, signs ? &key : NULL));
    *out = (char *)text.data;
}

static void make(void)
{
    uint8_t seed[32] = {7};
    struct audit_line_head head = {0};
    cr_assert_geq(sodium_init(), 0);
    crypto_sign_seed_keypair(key.public, key.secret, seed);
    for (int i = 0; i < LINES; i++) {
        struct audit_line_head before = head;
        char *replaced = NULL;
        add(&replaced, &before, i + 1, "another object");
        snprintf(other[i], sizeof other[i], "%s", replaced);
        free(replaced);
        add(&line[i], &head, i + 1, "triage");
    }
}
static void drop(void)
{
    for (int i = 0; i < LINES; i++)
        free(line[i]);
}
TestSuite(audit_verify, .init = make, .fini = drop);

struct findings {
    uint64_t seq[LINES * 4];
    char text[LINES * 4][256];
    size_t count;
};
static void found(void *context, uint64_t seq, const char *file, size_t row, const char *text)
{
    struct findings *f = context;
    cr_assert_str_eq(file, "log");
    cr_assert_gt(row, 0);
    cr_assert_lt(f->count, LINES * 4);
    f->seq[f->count] = seq;
    snprintf(f->text[f->count++], 256, "%s", text);
}

static struct audit_verify verify(struct findings *f, const char *text)
{
    struct audit_verify v = {
        .key = (const uint8_t(*)[32])key.public, .keys = 1, .found = found, .context = f};
    *f = (struct findings){0};
    audit_verify_add(&v, "log", text, strlen(text));
    audit_verify_end(&v);
    cr_assert_eq(v.findings, f->count);
    return v;
}

static bool names(const struct findings *f, uint64_t seq)
{
    for (size_t i = 0; i < f->count; i++)
        if (f->seq[i] == seq) return true;
    return false;
}

static char joined[LINES * 1024];
static const char *join(char *const *l, size_t count)
{
    size_t used = 0;
    *joined = 0;
    for (size_t i = 0; i < count; i++)
        used += (size_t)snprintf(joined + used, sizeof joined - used, "%s", l[i]);
    return joined;
}

Test(audit_verify, proves_a_whole_log_up_to_its_last_head)
{
    struct findings f;
    struct audit_verify v = verify(&f, join(line, LINES));
    cr_expect_eq(f.count, 0);
    cr_expect(v.first == 1 && v.last == LINES && v.lines == LINES && v.heads == 3);
    cr_expect_eq(v.proven, 21);
    v = verify(&f, join(line + 9, LINES - 9));
    cr_expect(f.count == 0 && v.first == 10 && v.proven == 21, "a part of a log");
    v = verify(&f, join(line, 6));
    cr_expect(f.count == 0 && v.proven == 0, "no head, nothing proven");
}

/* The last head before the damage still proves the lines up to it. */
static void expect_proven(const struct audit_verify *v, size_t number)
{
    uint64_t before = (number - 1) / HEAD_EVERY * HEAD_EVERY;
    cr_expect_eq(v->proven, before, "line %zu: proven %zu", number, (size_t)v->proven);
}

Test(audit_verify, names_every_line_that_was_changed)
{
    struct findings f;
    for (size_t i = 0; i < LINES; i++) {
        char *changed[LINES], copy[1024];
        memcpy(changed, line, sizeof changed);
        for (size_t at = 1; at + 2 < strlen(line[i]); at += 5) {
            snprintf(copy, sizeof copy, "%s", line[i]);
            copy[at] ^= 1;
            changed[i] = copy;
            struct audit_verify v = verify(&f, join(changed, LINES));
            cr_expect(names(&f, i + 1), "line %zu, byte %zu: %zu findings, first %zu", i + 1, at,
                      f.count, (size_t)f.seq[0]);
            if (at == 1) expect_proven(&v, i + 1);
        }
    }
}

Test(audit_verify, names_every_line_that_was_replaced_by_one_with_a_good_hash)
{
    struct findings f;
    for (size_t i = 0; i + 1 < LINES; i++) {
        char *changed[LINES];
        memcpy(changed, line, sizeof changed);
        changed[i] = other[i];
        struct audit_verify v = verify(&f, join(changed, LINES));
        cr_expect(f.count == 1 && names(&f, i + 1), "line %zu: %zu findings", i + 1, f.count);
        (void)v;
    }
}

Test(audit_verify, names_every_line_that_was_dropped)
{
    struct findings f;
    for (size_t i = 1; i + 1 < LINES; i++) {
        char *left[LINES];
        memcpy(left, line, i * sizeof *left);
        memcpy(left + i, line + i + 1, (LINES - i - 1) * sizeof *left);
        struct audit_verify v = verify(&f, join(left, LINES - 1));
        cr_expect(f.count == 1 && names(&f, i + 1), "line %zu: %zu findings", i + 1, f.count);
        expect_proven(&v, i + 1);
    }
}

/* The file alone cannot show it, but a later line that is known from elsewhere can. */
Test(audit_verify, misses_lines_that_were_dropped_at_the_end_by_a_known_hash)
{
    struct audit_line_read last;
    struct findings f;
    ok(audit_line_parse(&last, line[LINES - 1], strlen(line[LINES - 1]) - 1));
    for (size_t left = 1; left <= LINES; left++) {
        struct audit_verify v = {.key = (const uint8_t(*)[32])key.public,
                                 .keys = 1,
                                 .wanted = &last.hash,
                                 .found = found,
                                 .context = &f};
        f = (struct findings){0};
        join(line, left);
        audit_verify_add(&v, "log", joined, strlen(joined));
        audit_verify_end(&v);
        cr_expect(left == LINES ? !f.count : f.count == 1 && names(&f, left + 1), "%zu lines",
                  left);
    }
}

Test(audit_verify, names_every_two_lines_that_were_swapped)
{
    struct findings f;
    for (size_t i = 1; i < LINES; i++)
        for (size_t k = i + 1; k < LINES; k++) {
            char *swapped[LINES];
            memcpy(swapped, line, sizeof swapped);
            swapped[i] = line[k];
            swapped[k] = line[i];
            struct audit_verify v = verify(&f, join(swapped, LINES));
            cr_expect(f.count == 2 && names(&f, i + 1) && names(&f, k + 1),
                      "lines %zu and %zu: %zu findings", i + 1, k + 1, f.count);
            expect_proven(&v, i + 1);
        }
}

Test(audit_verify, names_every_line_that_was_cut)
{
    struct findings f;
    for (size_t i = 0; i < LINES; i++) {
        char half[1024], *cut[LINES];
        memcpy(cut, line, sizeof cut);
        snprintf(half, sizeof half, "%.*s\n", (int)strlen(line[i]) / 2, line[i]);
        cut[i] = half;
        verify(&f, join(cut, LINES));
        cr_expect(f.count == 1 && names(&f, i + 1), "line %zu, with its end: %zu", i + 1, f.count);
        half[strlen(half) - 1] = 0; /* it runs into the next line */
        verify(&f, join(cut, LINES));
        /* Of the first two lines nothing is left that says whether the log began before them. */
        cr_expect(names(&f, i + 1) || (!i && names(&f, 2)), "line %zu, without its end", i + 1);
        verify(&f, join(cut, i + 1)); /* and it is the last */
        cr_expect(f.count == 1 && names(&f, i + 1), "line %zu, as the last", i + 1);
    }
}

Test(audit_verify, names_a_line_that_is_there_twice_and_one_that_was_put_in)
{
    struct findings f;
    for (size_t i = 1; i + 1 < LINES; i++) {
        char *more[LINES + 1], *const junk = "{}\n";
        memcpy(more, line, (i + 1) * sizeof *more);
        memcpy(more + i + 1, line + i, (LINES - i) * sizeof *more);
        verify(&f, join(more, LINES + 1));
        cr_expect(f.count == 1 && names(&f, i + 1), "line %zu: %zu findings", i + 1, f.count);
        more[i] = junk;
        verify(&f, join(more, LINES + 1));
        cr_expect_eq(f.count, 1, "before line %zu: %zu findings", i + 1, f.count);
    }
}

/* The owner of the files can make the chain anew without the key; the heads then do not fit. */
Test(audit_verify, accepts_no_head_of_another_key)
{
    struct findings f;
    uint8_t seed[32] = {8};
    struct ledger_key ours = key;
    drop();
    crypto_sign_seed_keypair(key.public, key.secret, seed);
    struct audit_line_head head = {0};
    for (int i = 0; i < LINES; i++)
        add(&line[i], &head, i + 1, "forged");
    key = ours;
    struct audit_verify v = verify(&f, join(line, LINES));
    cr_expect(f.count == 3 && names(&f, 7) && v.proven == 0);
    cr_expect(strstr(f.text[0], "another key"));
}

/* With the openssl command, so that the signature is not checked against itself. */
Test(audit_verify, heads_have_a_signature_that_openssl_accepts)
{
    struct audit_line_read head;
    uint8_t signature[64];
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 32], command[4 * SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    ok(audit_line_parse(&head, line[6], strlen(line[6]) - 1));
    const char *hex = strstr(line[6], "\"signature\":\"") + strlen("\"signature\":\"");
    cr_assert_eq(sodium_hex2bin(signature, sizeof signature, hex, 128, NULL, NULL, NULL), 0);
    snprintf(path, sizeof path, "%s/message", dir);
    FILE *f = fopen(path, "w");
    fwrite("fedlora audit 1", 1, 16, f);
    fwrite(head.hash.byte, 1, DIGEST_BYTES, f);
    fclose(f);
    snprintf(path, sizeof path, "%s/signature", dir);
    f = fopen(path, "w");
    fwrite(signature, 1, sizeof signature, f);
    fclose(f);
    snprintf(path, sizeof path, "%s/audit.pub", dir);
    ok(ledger_public_write(key.public, path));
    snprintf(command, sizeof command,
             "cd %s && openssl pkeyutl -verify -rawin -pubin -inkey audit.pub -in message"
             " -sigfile signature && printf x >> message && ! openssl pkeyutl -verify -rawin"
             " -pubin -inkey audit.pub -in message -sigfile signature",
             dir);
    cr_expect_eq(system(command), 0);
    support_dir_remove(dir);
}
