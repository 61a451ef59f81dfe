/* Every row of the registry is filled in, so that a method added with a field forgotten fails here
 * and not in a program. */
#include "agg/round/method_options.h"
#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `run create --help` in 100 columns; a summary is short enough to be read at a glance. */
enum { NAME_MAX_BYTES = 11, LINE_BYTES = 100 - 14, SUMMARY_BYTES = 75 };

static bool one_line(const char *text)
{
    return text && text[0] && !strchr(text, '\n') && strlen(text) <= LINE_BYTES;
}

Test(registry, every_method_has_a_name_of_its_own_and_a_summary_of_one_line)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        size_t n = strlen(*name);
        cr_expect(n >= 1 && n <= NAME_MAX_BYTES, "%s", *name);
        for (const char *c = *name; *c; c++)
            cr_expect(islower((unsigned char)*c) || isdigit((unsigned char)*c) || *c == '-', "%s",
                      *name);
        cr_expect_str_eq(m->name, *name, "two methods have the name %s", *name);
        for (const char *const *other = method_names(); other < name; other++)
            cr_expect_str_neq(*other, *name);
        cr_expect(one_line(m->summary) && strlen(m->summary) <= SUMMARY_BYTES, "%s: summary",
                  *name);
    }
}

Test(registry, every_method_can_start_and_combine_a_round)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        cr_expect(m->factors && m->start && m->next, "%s", *name);
        for (uint32_t round = 1; m->factors && round <= 4; round++) {
            unsigned set = m->factors(round);
            cr_expect(set == METHOD_A || set == METHOD_B || set == METHOD_R ||
                          set == (METHOD_A | METHOD_B),
                      "%s: factors of round %u", *name, round);
        }
        cr_expect(!m->truncates || m->mixed_ranks, "%s: truncates", *name);
        cr_expect(!m->fresh || m->carries, "%s: what fresh members learn must go to the carry",
                  *name);
    }
}

Test(registry, every_method_says_how_aggregate_and_client_privacy_treat_it)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        cr_expect_neq(m->aggregate.way, METHOD_AGGREGATE_UNSET, "%s: aggregate.way", *name);
        cr_expect(one_line(m->aggregate.text), "%s: aggregate.text", *name);
        if (m->aggregate.way != METHOD_AGGREGATE_SUM)
            cr_expect(!m->aggregate.stack && m->aggregate.cut == METHOD_AGGREGATE_CUT_NONE, "%s",
                      *name);
        cr_expect(m->client_private != (m->client_refusal && m->client_refusal[0]),
                  "%s: expected client_private or client_refusal", *name);
        for (uint32_t round = 1; m->client_private && round <= 4; round++) {
            unsigned set = m->factors(round); /* the sum must be linear in one factor */
            cr_expect_eq(set & (set - 1), 0, "%s: client_private, but two factors are sent", *name);
        }
        cr_expect(!m->client_private || ((m->exact || m->keeps) && !m->fresh), "%s: client_private",
                  *name);
    }
}

Test(registry, every_own_option_is_in_the_table)
{
    size_t count = 0;
    const struct method_option *table = method_options_table(&count);
    for (const char *const *name = method_names(); *name; name++)
        for (const char *const *key = method_find(*name)->options; *key; key++) {
            bool found = false;
            for (size_t i = 0; i < count; i++)
                found |= table[i].own && strcmp(table[i].key, *key) == 0;
            cr_expect(found, "%s: option %s", *name, *key);
        }
}

Test(registry, every_method_has_a_section_in_the_docs)
{
    char path[SUPPORT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    support_source(path, sizeof path, "docs/methods.md");
    ok(file_read_all(&text, &size, path, 1 << 20));
    for (const char *const *name = method_names(); *name; name++) {
        char heading[64];
        snprintf(heading, sizeof heading, "\n### %s (", *name);
        cr_expect_not_null(strstr(text, heading), "docs/methods.md: no section \"### %s (\"",
                           *name);
    }
    free(text);
}
