#include "client/session/session_status.h"

#include "base/notify.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void session_status(struct session *s, const char *format, ...)
{
    char line[sizeof s->status];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (strcmp(line, s->status) == 0) return;
    memcpy(s->status, line, sizeof line);
    (void)notify_status("%s", line);
}
