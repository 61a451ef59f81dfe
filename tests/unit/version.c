/* Versions of the two programs that work together. */
#include "base/version.h"

#include <criterion/criterion.h>
#include <string.h>

static void expect(const char *software, const char *ours, bool fits, const char *number)
{
    char is[VERSION_NUMBER_BYTES];
    cr_expect_eq(version_fits(is, software, ours), fits, "%s with %s", software, ours);
    cr_expect_str_eq(is, number);
}

Test(version, neighbouring_minor_versions_fit)
{
    expect("fedlora 0.2.0+g4f829af12", "0.2.0", true, "0.2.0");
    expect("fedlora 0.2.9", "0.2.0", true, "0.2.9");
    expect("fedlora 0.1.0", "0.2.0", true, "0.1.0");
    expect("fedlora 0.3.17+unknown", "0.2.5", true, "0.3.17");
    expect("fedlora 0.0.1", "0.2.0", false, "0.0.1");
    expect("fedlora 0.4.0", "0.2.0", false, "0.4.0");
    expect("fedlora 1.2.0", "0.2.0", false, "1.2.0");
    expect("fedlora 0.9.0", "0.10.0", true, "0.9.0");
    expect("fedlora 0.1.0", "0.10.0", false, "0.1.0");
    expect("fedlora 0.1.0", "0.0.4", true, "0.1.0");
}

Test(version, other_programs_are_not_judged)
{
    expect("", "0.2.0", true, "");
    expect("fedlora", "0.2.0", true, "");
    expect("fedlora next", "0.2.0", true, "");
    expect("fedlora 7", "0.2.0", true, "");
    expect("another 9.9.9", "0.2.0", true, "");
    expect("fedlora 99999999999.1.1", "0.2.0", true, "");
    expect("fedlora 0.4.000000000000000000000000000000", "0.2.0", false, "0.4.0000000000000000000");
}

Test(version, the_text_has_the_number_of_the_build)
{
    const char *text = version_text();
    cr_expect(!strncmp(text, FEDLORA_VERSION "+", sizeof FEDLORA_VERSION), "%s", text);
    cr_expect_str_eq(version_commit(), "unknown", "tests are linked without a commit");
}
