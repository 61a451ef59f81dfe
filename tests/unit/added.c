#include "engine/tokens/added.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static void put(struct added *a, const char *text, int32_t id, struct added_token flags)
{
    flags.text = text;
    flags.size = (uint32_t)strlen(text);
    flags.id = id;
    ok(added_put(a, &flags));
}

/* Matches as "id:begin-end " in order. */
static void check(const struct added *a, const char *text, bool special, const char *want)
{
    struct added_matches m = {0};
    char got[512] = "";
    ok(added_find(&m, a, text, (uint32_t)strlen(text), special));
    for (size_t i = 0; i < m.count; i++)
        (void)snprintf(got + strlen(got), sizeof got - strlen(got), "%d:%u-%u ", m.match[i].id,
                       m.match[i].begin, m.match[i].end);
    cr_assert_str_eq(got, want, "\"%s\"", text);
    added_matches_close(&m);
}

#define PLAIN ((struct added_token){0})

Test(added, leftmost_then_longest_is_hugging_faces_rule)
{
    struct added a = {.order = ADDED_LEFTMOST};
    put(&a, "ab", 1, PLAIN);
    put(&a, "abc", 2, PLAIN);
    put(&a, "bcde", 3, PLAIN);
    added_seal(&a);
    check(&a, "abcde", false, "2:0-3 ");
    check(&a, "abbcde", false, "1:0-2 3:2-6 ");
    check(&a, "xabxabc", false, "1:1-3 2:4-7 ");
    check(&a, "", false, "");
    added_close(&a);
}

Test(added, longest_anywhere_first_is_llama_cpps_rule)
{
    struct added a = {.order = ADDED_LONGEST};
    put(&a, "ab", 1, PLAIN);
    put(&a, "abc", 2, PLAIN);
    put(&a, "bcde", 3, PLAIN);
    added_seal(&a);
    check(&a, "abcde", false, "3:1-5 ");
    check(&a, "abcabcdeab", false, "2:0-3 3:4-8 1:8-10 ");
    added_close(&a);
    a.order = ADDED_LONGEST; /* equally long: the lower id */
    put(&a, "st", 1, PLAIN);
    put(&a, "es", 2, PLAIN);
    added_seal(&a);
    check(&a, "est", false, "1:1-3 ");
    added_close(&a);
}

Test(added, special_tokens_are_text_unless_asked_for)
{
    for (int order = 0; order < 2; order++) {
        struct added a = {.order = (enum added_order)order};
        put(&a, "<s>", 1, (struct added_token){.special = true});
        put(&a, "<u>", 2, PLAIN);
        added_seal(&a);
        check(&a, "<s><u>", false, "2:3-6 ");
        check(&a, "<s><u>", true, "1:0-3 2:3-6 ");
        added_close(&a);
    }
}

Test(added, takes_the_white_space_its_token_asks_for)
{
    struct added a = {0};
    put(&a, "<l>", 1, (struct added_token){.lstrip = true});
    put(&a, "<r>", 2, (struct added_token){.rstrip = true});
    added_seal(&a);
    check(&a, "a  <l>  b", false, "1:1-6 ");
    check(&a, "a  <r>\xC2\xA0 b", false, "2:3-9 ");
    check(&a, "<r> <l>", false, "2:0-4 1:4-7 ");
    added_close(&a);
}

Test(added, single_words_stand_alone)
{
    struct added a = {0};
    put(&a, "cat", 1, (struct added_token){.single_word = true});
    added_seal(&a);
    check(&a,
          "cat concat cats cat_ (cat) \xC3\xA9"
          "cat",
          false, "1:0-3 1:22-25 ");
    added_close(&a);
}

/* The characters of each list on both sides of the token; tokenizers 0.23.3 gives the same for all
 * characters of Unicode 14. */
Test(added, words_have_joiners_marks_and_circled_letters)
{
    static const char *const word[] = {
        "\u200c", "\u200d",     "\u0301",     "\u20dd",     "\u203f",     "\u2160", "\u24b6",
        "\u24e9", "\U0001f130", "\U0001f149", "\U0001f150", "\U0001f189", "\u0660", "\u65e5",
    };
    static const char *const other[] = {
        "\u200b",     "\u2060",     "\ufeff",     "\u00bd",     "\u2460", "\u24ea", "\u24b5",
        "\U0001f12f", "\U0001f14a", "\U0001f16a", "\U0001f18a", "\u00a0", "\u00ad", "\U0001f44d",
    };
    struct added a = {0};
    char text[64], want[64];
    put(&a, "cat", 1, (struct added_token){.single_word = true});
    added_seal(&a);
    for (size_t i = 0; i < sizeof word / sizeof *word; i++) {
        (void)snprintf(text, sizeof text, "cat%s cat", word[i]);
        (void)snprintf(want, sizeof want, "1:%zu-%zu ", strlen(word[i]) + 4, strlen(word[i]) + 7);
        check(&a, text, false, want);
        (void)snprintf(text, sizeof text, "%scat", word[i]);
        check(&a, text, false, "");
    }
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        (void)snprintf(text, sizeof text, "cat%s", other[i]);
        check(&a, text, false, "1:0-3 ");
        (void)snprintf(text, sizeof text, "%scat", other[i]);
        (void)snprintf(want, sizeof want, "1:%zu-%zu ", strlen(other[i]), strlen(other[i]) + 3);
        check(&a, text, false, want);
    }
    added_close(&a);
}
