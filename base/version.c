#include "base/version.h"

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
