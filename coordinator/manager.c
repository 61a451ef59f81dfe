#include "coordinator/manager.h"

#include "base/notify.h"

#include <inttypes.h>
#include <stdio.h>

/* A start that upgrades or checks a large database may take longer than TimeoutStartSec. */
enum { START_S = 1800 };

void manager_starting(void)
{
    char text[NOTIFY_BYTES];
    snprintf(text, sizeof text, "STATUS=checking the store\nEXTEND_TIMEOUT_USEC=%" PRIu64,
             (uint64_t)START_S * 1000000);
    notify_send(text);
}

/* READY=1 also ends a reload, and is ignored when it is sent again, so one message serves both. */
static void say_ready(struct manager *m, const struct serve *s)
{
    char text[NOTIFY_BYTES];
    m->open = serve_open_runs(s);
    m->runs = s->run_count;
    snprintf(text, sizeof text, "READY=1\nSTATUS=%zu open runs of %zu", m->open, m->runs);
    notify_send(text);
}

/* Half of the time that the manager tolerates, because a turn of the loop may be late. */
void manager_ready(struct manager *m, const struct serve *s)
{
    m->every_ms = notify_watchdog_ms() / 2;
    say_ready(m, s);
}

/* The status is sent when a number in it has changed, so an idle service sends nothing but its
 * signs of life. */
void manager_turn(struct manager *m, const struct serve *s, uint64_t now_ms)
{
    if (m->reloading || m->runs != s->run_count || m->open != serve_open_runs(s)) say_ready(m, s);
    m->reloading = false;
    if (!m->every_ms || now_ms < m->next_ms) return;
    m->next_ms = now_ms + m->every_ms;
    notify_send("WATCHDOG=1");
}

void manager_reloading(struct manager *m)
{
    m->reloading = true;
    notify_reloading();
}

void manager_stopping(void)
{
    notify_send("STOPPING=1\nSTATUS=finishing what is in progress");
}
