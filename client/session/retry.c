#include "client/session/retry.h"

#include "base/stop.h"
#include "base/text.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* 30 s keeps a member close to the end of an outage without loading a coordinator that is starting.
 * 50 ms is short enough for Ctrl-C to feel immediate. */
enum { RETRY_FIRST_MS = 500, RETRY_MOST_MS = 30000, RETRY_SLICE_MS = 50 };

/* The loop ends at the maximum, so a large attempt number does not overflow. */
uint64_t retry_backoff_ms(unsigned attempt)
{
    uint64_t ms = RETRY_FIRST_MS;
    for (unsigned i = 1; i < attempt && ms < RETRY_MOST_MS; i++)
        ms *= 2;
    return ms < RETRY_MOST_MS ? ms : RETRY_MOST_MS;
}

/* ERR_INPUT and ERR_REFUSED are answers: the same question gets the same answer again. */
bool retry_may_help(err cause)
{
    return cause.kind == ERR_MACHINE || cause.kind == ERR_LIMIT || cause.kind == ERR_STATE;
}

/* Polls instead of relying on the signal to interrupt the sleep, because the signal may arrive
 * between the check and the call. */
err retry_sleep(uint64_t ms)
{
    for (uint64_t end = text_now_ms() + ms, now; (now = text_now_ms()) < end;) {
        TRY(stop_check());
        uint64_t left = end - now < RETRY_SLICE_MS ? end - now : RETRY_SLICE_MS;
        const struct timespec wait = {.tv_nsec = (long)left * 1000000};
        (void)nanosleep(&wait, NULL);
    }
    return stop_check();
}

/* A line has no number that changes with every attempt, so that the same trouble gives the same
 * line. A new cause is printed too, but after the first few not more often than once a minute,
 * because two causes may alternate for days. */
static void say(struct retry *retry, err cause, const char *whom, uint64_t now)
{
    bool same = strcmp(retry->said, cause.text) == 0;
    bool few = retry->said_lines < RETRY_SAY_FIRST;
    uint64_t pause = same ? RETRY_SAY_MS : few ? 0 : RETRY_SAY_NEW_MS;
    if (retry->said_ms && now - retry->said_ms < pause) return;
    retry->said_ms = now;
    retry->said_lines++;
    memcpy(retry->said, cause.text, sizeof retry->said);
    if (retry->quiet) return;
    char since[48] = "";
    if (same && retry->said_lines > 1) {
        char time[32];
        text_duration(time, sizeof time, now - retry->since_ms);
        snprintf(since, sizeof since, " for %s now", time);
    }
    fprintf(stderr, "waiting for %s%s: %s\n", whom, since, cause.text);
}

/* The time is measured from the first failure after a success, so an unreliable connection that
 * works from time to time never gives up. The wait is included: a pause that would end too late is
 * not started. */
err retry_wait(struct retry *retry, err cause, const char *whom)
{
    REQUIRE(err_is(cause));
    if (!retry_may_help(cause)) return cause;
    uint64_t now = text_now_ms();
    if (retry->attempt++ == 0) retry->since_ms = now;
    uint64_t most = retry_backoff_ms(retry->attempt), failing = now - retry->since_ms;
    uint64_t wait = most / 2 + randombytes_uniform((uint32_t)(most / 2) + 1);
    if (failing + wait > retry->give_up_ms) {
        char text[32];
        text_duration(text, sizeof text, retry->give_up_ms);
        return err_in(cause, "gave up on %s after %u attempts (--retry-for %s)", whom,
                      retry->attempt, text);
    }
    say(retry, cause, whom, now);
    return retry_sleep(wait);
}

void retry_answered(struct retry *retry)
{
    char time[32];
    if (!retry->said_ms) return;
    retry->said_ms = 0;
    retry->said_lines = 0;
    if (retry->quiet) return;
    text_duration(time, sizeof time, text_now_ms() - retry->since_ms);
    fprintf(stderr, "connected again after %s\n", time);
}

void retry_ok(struct retry *retry)
{
    retry_answered(retry);
    retry->attempt = 0;
}
