#include "coordinator/http/http_cache.h"

#include "base/log.h"
#include "base/text.h"
#include "coordinator/http/metrics.h"
#include "coordinator/http/overview.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum {
    CACHE_FRESH_MS = 1000,
    CACHE_WAIT_MS = 3000, /* for the loop */
    CACHE_SIZES_MS = 60 * 1000,
};

/* The loop replaces a page while other threads may still send the old one. */
void http_text_release(struct http_text *t)
{
    if (!t || atomic_fetch_sub(&t->users, 1) > 1) return;
    bytes_close(&t->text);
    free(t);
}

/* The monotonic clock, because a step of the wall clock must not lengthen a wait. */
err http_cache_open(struct http_cache *c, const struct config *config)
{
    pthread_condattr_t attributes;
    *c = (struct http_cache){.place = run_shop_place(config)};
    int code = pthread_condattr_init(&attributes);
    if (code == 0) {
        (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        code = pthread_cond_init(&c->made, &attributes);
        pthread_condattr_destroy(&attributes);
    }
    if (code == 0) code = pthread_mutex_init(&c->lock, NULL);
    return code ? err_sys(code, "the pages for monitoring") : ERR_NONE;
}

/* libmicrohttpd has ended its threads, so nobody holds the lock. */
void http_cache_close(struct http_cache *c)
{
    for (int i = 0; i < HTTP_PAGES; i++)
        http_text_release(c->page[i].text);
    pthread_cond_destroy(&c->made);
    pthread_mutex_destroy(&c->lock);
}

/* ---- loop thread */

/* Each page is made by a function that knows nothing of threads. */
static err fill(struct bytes *out, enum http_page page, const struct facts *f)
{
    switch (page) {
    case HTTP_READY:
        return facts_ready_json(out, f);
    case HTTP_METRICS:
        return metrics_write(out, f);
    case HTTP_STATUS:
        return overview_json(out, f);
    default:
        return overview_html(out, f);
    }
}

/* A page that another thread still sends is not changed: each is a new text. NULL: it could not be
 * made. The reason is logged, because the reader gets an old page or none. */
static struct http_text *make(enum http_page page, const struct facts *f)
{
    struct http_text *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    atomic_init(&t->users, 1);
    t->ready = f->ready;
    t->text.max = page == HTTP_OVERVIEW ? OVERVIEW_BYTES_MAX : METRICS_BYTES_MAX;
    err e = fill(&t->text, page, f);
    if (!err_is(e)) return t;
    LOG(LOG_WARN, "http.page_failed", LOG_INT("page", page), LOG_STR("error", e.text));
    http_text_release(t);
    return NULL;
}

/* Without the lock, so that a page that is being sent does not wait for one that is being made. */
static void make_all(struct http_cache *c, struct serve *s, unsigned asked,
                     const struct store_sizes *sizes)
{
    struct facts f = {.started_ms = c->started_ms};
    if (sizes) f.sizes = *sizes;
    f.has_sizes = sizes != NULL;
    facts_look(&f, s, &c->disk);
    for (int i = 0; i < HTTP_PAGES; i++) {
        if (!(asked & 1u << i)) continue;
        struct http_text *t = make((enum http_page)i, &f), *old = NULL;
        pthread_mutex_lock(&c->lock);
        c->page[i].made_ms = text_now_ms();
        if (t) {
            old = c->page[i].text;
            c->page[i].text = t;
        }
        pthread_mutex_unlock(&c->lock);
        http_text_release(old);
    }
}

/* A turn without a question costs one lock. */
void http_cache_turn(struct http_cache *c, struct serve *s)
{
    uint64_t now = text_now_ms();
    struct store_sizes sizes;
    pthread_mutex_lock(&c->lock);
    /* The first turn: recovery is done and runs are loaded. */
    if (c->phase == HTTP_STARTING) c->started_ms = text_wall_ms();
    c->phase = HTTP_RUNNING;
    c->serve = s;
    unsigned asked = c->asked;
    c->asked = 0;
    sizes = c->sizes;
    bool has_sizes = c->has_sizes;
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->tick_ms, now);
    if (!asked) return;
    make_all(c, s, asked, has_sizes ? &sizes : NULL);
    pthread_mutex_lock(&c->lock);
    pthread_cond_broadcast(&c->made);
    pthread_mutex_unlock(&c->lock);
}

/* Threads that wait get the newest page there is, so that nothing holds up the end. */
void http_cache_drain(struct http_cache *c)
{
    pthread_mutex_lock(&c->lock);
    c->phase = HTTP_DRAINING;
    c->serve = NULL;
    pthread_cond_broadcast(&c->made);
    pthread_mutex_unlock(&c->lock);
}

/* ---- threads of the HTTP server */

/* Adding up all rows may take seconds, so the loop does not do it. One thread at a time. */
static void measure(struct http_cache *c)
{
    struct store_sizes sizes;
    uint64_t now = text_now_ms();
    pthread_mutex_lock(&c->lock);
    bool due = c->phase == HTTP_RUNNING && !c->is_sizing &&
               (!c->sized_ms || now - c->sized_ms > CACHE_SIZES_MS);
    if (due) c->is_sizing = true;
    pthread_mutex_unlock(&c->lock);
    if (!due) return;
    /* Without the lock: the loop and other readers do not wait for the store. */
    err e = store_sizes(&sizes, &c->place);
    pthread_mutex_lock(&c->lock);
    if (!err_is(e)) {
        c->sizes = sizes;
        c->has_sizes = true;
    }
    c->sized_ms = text_now_ms();
    c->is_sizing = false;
    pthread_mutex_unlock(&c->lock);
}

/* pthread_cond_timedwait() wants the end of the wait, not its length. */
static struct timespec after(uint64_t ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)(ms / 1000);
    return t;
}

/* With the lock: asks the loop for the page, and waits. */
static void wait_for(struct http_cache *c, enum http_page page)
{
    struct timespec until = after(CACHE_WAIT_MS);
    uint64_t was = c->page[page].made_ms;
    c->asked |= 1u << page;
    if (c->serve->server) rpc_server_wake(c->serve->server);
    while (c->phase == HTTP_RUNNING && c->page[page].made_ms == was)
        if (pthread_cond_timedwait(&c->made, &c->lock, &until) == ETIMEDOUT) return;
}

/* A reader that comes within a second gets the same page as the one before, so a hundred readers
 * cost the loop as much as one. */
struct http_text *http_cache_get(struct http_cache *c, enum http_page page, enum http_phase *phase)
{
    struct http_text *text = NULL;
    if (page != HTTP_READY) measure(c);
    pthread_mutex_lock(&c->lock);
    uint64_t made = c->page[page].made_ms;
    bool fresh = made && text_now_ms() - made < CACHE_FRESH_MS;
    if (c->phase == HTTP_RUNNING && !fresh) wait_for(c, page);
    *phase = c->phase;
    text = c->page[page].text;
    if (text) atomic_fetch_add(&text->users, 1);
    pthread_mutex_unlock(&c->lock);
    return text;
}
