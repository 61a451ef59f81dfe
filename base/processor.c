#include "base/processor.h"

#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void processor_name(char *out, size_t bytes)
{
    char *text = NULL;
    size_t size = 0;
    snprintf(out, bytes, "unknown processor");
    if (err_is(file_read_all(&text, &size, "/proc/cpuinfo", 16 << 20))) return;
    const char *line = strstr(text, "model name"), *colon = line ? strchr(line, ':') : NULL;
    if (colon) {
        colon += 1 + strspn(colon + 1, " \t");
        snprintf(out, bytes, "%.*s", (int)strcspn(colon, "\n"), colon);
    }
    free(text);
}
