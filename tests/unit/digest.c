/* BLAKE2b-256 against Python's hashlib. */
#include "base/digest.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static void expect_text(struct digest d, const char *want)
{
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, &d);
    cr_expect_str_eq(text, want);
}

Test(digest, gives_hashlibs_digests)
{
    static uint8_t data[100000];
    for (int i = 0; i < 100000; i++)
        data[i] = (uint8_t)(i % 251);
    expect_text(digest_of("", 0),
                "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
    expect_text(digest_of("abc", 3),
                "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    expect_text(digest_of(data, 100000),
                "916cfaa800ee55811e82095babeb88ea29c9ef8a36e8d7e20c7b772c344c9e1c");
}

Test(digest, does_not_depend_on_the_pieces)
{
    static uint8_t data[100000];
    for (int i = 0; i < 100000; i++)
        data[i] = (uint8_t)(i % 251);
    struct digest_stream s;
    digest_begin(&s);
    for (size_t at = 0, step = 1; at < 100000; step = step * 3 % 997 + 1) {
        size_t n = step < 100000 - at ? step : 100000 - at;
        digest_add(&s, data + at, n);
        digest_add(&s, NULL, 0);
        at += n;
    }
    struct digest pieces = digest_end(&s), whole = digest_of(data, 100000);
    cr_expect(digest_equal(&pieces, &whole));
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x"));
    ok(file_write(path, data, 100000, false));
    struct digest file;
    ok(digest_of_file(&file, path));
    cr_expect(digest_equal(&file, &whole));
    support_dir_remove(dir);
}

Test(digest, reads_its_text_and_no_other)
{
    struct digest d = digest_of("abc", 3), back = {{0}};
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, &d);
    ok(digest_parse(&back, text));
    cr_expect(digest_equal(&d, &back));
    back.byte[0] ^= 1;
    cr_expect(!digest_equal(&d, &back));
    struct digest kept = back;
    text[63] = 'g';
    refused(digest_parse(&back, text), ERR_INPUT, "expected 64 hexadecimal digits");
    text[63] = 0;
    refused(digest_parse(&back, text), ERR_INPUT, "expected 64 hexadecimal digits");
    refused(digest_parse(&back, ""), ERR_INPUT, "expected 64 hexadecimal digits");
    cr_expect(digest_equal(&kept, &back), "the output was touched");
}
