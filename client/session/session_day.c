#include "client/session/session_day.h"

#include "base/file.h"
#include "base/limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DAY_BYTES = 64 };
static const char name[] = "day";

static void date_of(char out[16], const struct tm *now)
{
    if (strftime(out, 16, "%Y-%m-%d", now) == 0) out[0] = 0;
}

uint64_t session_day_used_ms(const char *work, const struct tm *now)
{
    char path[LIMIT_PATH_BYTES], today[16], date[16] = "", *text = NULL;
    uint64_t ms = 0;
    size_t size = 0;
    date_of(today, now);
    if (err_is(file_join(path, sizeof path, work, name)) || !file_exists(path)) return 0;
    if (err_is(file_read_all(&text, &size, path, DAY_BYTES))) return 0;
    bool whole = sscanf(text, "%10s %" SCNu64, date, &ms) == 2;
    free(text);
    return whole && strcmp(date, today) == 0 ? ms : 0;
}

err session_day_add(const char *work, const struct tm *now, uint64_t ms)
{
    char path[LIMIT_PATH_BYTES], today[16], text[DAY_BYTES];
    date_of(today, now);
    int length =
        snprintf(text, sizeof text, "%s %" PRIu64 "\n", today, session_day_used_ms(work, now) + ms);
    TRY(file_join(path, sizeof path, work, name));
    return file_write(path, text, (size_t)length, /*replace*/ true);
}
