/* Names and texts of peers inside HTML and labels. */
#include "coordinator/http/escape.h"

#include <criterion/criterion.h>
#include <string.h>

static const char *html(struct bytes *out, const char *text)
{
    bytes_clear(out);
    cr_assert(!err_is(escape_html(out, text)));
    return out->data ? (const char *)out->data : "";
}

Test(escape, leaves_no_character_that_html_gives_a_meaning)
{
    struct bytes b = {.max = 4096};
    cr_expect_str_eq(html(&b, "<script>alert('x')&\"</script>"),
                     "&lt;script&gt;alert(&#39;x&#39;)&amp;&quot;&lt;/script&gt;");
    cr_expect_str_eq(html(&b, ""), "");
    cr_expect_str_eq(html(&b, "a\nb\x1b[31m"), "a b?[31m");
    cr_expect_str_eq(html(&b, "\xff<"), "?&lt;");
    bytes_close(&b);
}

Test(escape, keeps_characters_of_several_bytes_in_long_texts)
{
    struct bytes b = {.max = 16384};
    char text[3 * 1000 + 1];
    for (int i = 0; i < 1000; i++)
        memcpy(text + 3 * i, "\xe2\x82\xac", 3); /* the euro sign, across every boundary */
    text[sizeof text - 1] = 0;
    cr_expect_str_eq(html(&b, text), text);
    cr_expect_str_eq(html(&b, text + 1), html(&b, text + 1));
    bytes_close(&b);
}

Test(escape, quotes_labels)
{
    struct bytes b = {.max = 4096};
    cr_assert(!err_is(escape_label(&b, "a\"b\\c\nd")));
    cr_expect_str_eq((char *)b.data, "a\\\"b\\\\c d");
    bytes_close(&b);
}

Test(escape, stops_at_the_limit_of_the_output)
{
    struct bytes b = {.max = 5};
    cr_expect_eq(escape_html(&b, "<<").kind, ERR_LIMIT);
    bytes_close(&b);
}
