#include "base/version.h"

#include "base/err.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Weak, because only the installed programs link the file with the commit, which the build makes
 * (version_commit.cmake): a new commit then links two programs again, and not every test. */
__attribute__((weak)) const char *version_commit(void)
{
    return "unknown";
}

const char *version_text(void)
{
    static _Thread_local char text[64];
    const char *commit = version_commit();
    bool known = strcmp(commit, "unknown") != 0;
    snprintf(text, sizeof text, "%s+%s%s", FEDLORA_VERSION, known ? "g" : "", commit);
    return text;
}

/* The first two numbers of "0.3.1". */
static bool read_number(unsigned *major, unsigned *minor, const char *text)
{
    int end = 0;
    return sscanf(text, "%3u.%3u.%n", major, minor, &end) == 2 && end > 0;
}

bool version_fits(char number[VERSION_NUMBER_BYTES], const char *software, const char *ours)
{
    static const char name[] = "fedlora ";
    unsigned major_is = 0, minor_is = 0, major_ours = 0, minor_ours = 0;
    *number = 0;
    if (strncmp(software, name, sizeof name - 1) != 0) return true;
    software += sizeof name - 1;
    if (!read_number(&major_is, &minor_is, software)) return true;
    REQUIRE(read_number(&major_ours, &minor_ours, ours));
    int digits = (int)strspn(software, "0123456789.");
    snprintf(number, VERSION_NUMBER_BYTES, "%.*s", digits, software);
    return major_is == major_ours && minor_is + 1 >= minor_ours && minor_is <= minor_ours + 1;
}
