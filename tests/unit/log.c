/* One event is one line, whatever bytes its values contain. */
#include "base/log.h"

#include "base/json.h"
#include "tests/support/capture.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char text[8192];

static void one_event(void)
{
    LOG(LOG_INFO, "round.closed", LOG_STR("run", "r1"), LOG_INT("round", 7), LOG_NUM("loss", 0.5),
        LOG_STR("odd", "a \"b\"\nc=d\x01"), LOG_STR("empty", ""), LOG_STR("null", NULL));
}

static void all_levels(void)
{
    LOG(LOG_DEBUG, "d", LOG_INT("n", 1));
    LOG(LOG_INFO, "i", LOG_INT("n", 1));
    LOG(LOG_WARN, "w", LOG_INT("n", 1));
    LOG(LOG_ERROR, "e", LOG_INT("n", -1));
}

static void long_event(void)
{
    static char value[10000];
    memset(value, 'x', sizeof value - 1);
    LOG(LOG_INFO, "long", LOG_STR("v", value));
}

static void odd_json(void)
{
    LOG(LOG_INFO, "odd", LOG_STR("text", "a\n\"b\""), LOG_NUM("nan", NAN),
        LOG_STR("bytes", "\xff"));
}

Test(log, writes_logfmt_with_odd_values_quoted)
{
    log_init(LOG_INFO, false);
    capture(text, sizeof text, 2, one_event);
    const char *rest = strchr(text, ' ');
    cr_assert(strncmp(text, "time=20", 7) == 0 && rest, "%s", text);
    cr_expect_str_eq(rest, " level=info event=round.closed run=r1 round=7 loss=0.5 "
                           "odd=\"a \\\"b\\\"\\x0ac=d\\x01\" empty=\"\" null=\"\"\n");
}

Test(log, drops_what_is_below_the_level)
{
    log_init(LOG_WARN, false);
    capture(text, sizeof text, 2, all_levels);
    cr_expect(!strstr(text, "event=d") && !strstr(text, "event=i"), "%s", text);
    cr_expect(strstr(text, "event=w n=1\n") && strstr(text, "event=e n=-1\n"), "%s", text);
}

Test(log, a_long_event_is_cut_and_stays_one_line)
{
    log_init(LOG_INFO, false);
    capture(text, sizeof text, 2, long_event);
    cr_expect(strchr(text, '\n') == text + strlen(text) - 1);
    cr_expect_leq(strlen(text), 4096);
}

Test(log, json_lines_parse)
{
    log_init(LOG_INFO, true);
    capture(text, sizeof text, 2, odd_json);
    json_t *line = NULL;
    ok(json_parse(&line, text, strlen(text), "line"));
    cr_expect_str_eq(json_string_value(json_object_get(line, "text")), "a\n\"b\"");
    cr_expect_str_eq(json_string_value(json_object_get(line, "level")), "info");
    cr_expect(json_is_null(json_object_get(line, "nan")) &&
              json_is_null(json_object_get(line, "bytes")));
    json_decref(line);
}

Test(log, a_long_event_in_json_is_still_json)
{
    log_init(LOG_INFO, true);
    capture(text, sizeof text, 2, long_event);
    json_t *line = NULL;
    ok(json_parse(&line, text, strlen(text), "line"));
    cr_expect_str_eq(json_string_value(json_object_get(line, "event")), "long");
    cr_expect(json_is_true(json_object_get(line, "cut")) && !json_object_get(line, "v"), "%s",
              text);
    json_decref(line);
}

static void journal_event(void)
{
    char stream[64];
    struct stat st;
    cr_assert_eq(fstat(2, &st), 0);
    snprintf(stream, sizeof stream, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init(LOG_DEBUG, false);
    all_levels();
}

static void other_stream(void)
{
    setenv("JOURNAL_STREAM", "8:123456", 1);
    log_init(LOG_DEBUG, false);
    all_levels();
}

Test(log, lines_for_the_journal_begin_with_their_priority)
{
    capture(text, sizeof text, 2, journal_event);
    const char *line = text;
    for (const char *prefix = "7643"; *prefix; prefix++) {
        cr_expect(line[0] == '<' && line[1] == *prefix && !strncmp(line + 2, ">time=", 6), "%s",
                  text);
        line = strchr(line, '\n') + 1;
    }
    capture(text, sizeof text, 2, other_stream);
    cr_expect(!strchr(text, '<'), "%s", text);
}
