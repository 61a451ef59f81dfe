/* Finished pages, between the loop thread, which makes them, and the threads of the HTTP server. */
#ifndef COORDINATOR_HTTP_CACHE_H
#define COORDINATOR_HTTP_CACHE_H

#include "coordinator/http/facts.h"

#include <pthread.h>
#include <stdatomic.h>

enum http_page { HTTP_READY, HTTP_METRICS, HTTP_STATUS, HTTP_OVERVIEW, HTTP_PAGES };

struct http_text { /* never changes once it is shared */
    atomic_uint users;
    bool ready; /* what /readyz says with it */
    struct bytes text;
};
void http_text_release(struct http_text *text); /* NULL is fine */

enum http_phase { HTTP_STARTING, HTTP_RUNNING, HTTP_DRAINING };

struct http_cache {
    atomic_uint_fast64_t tick_ms; /* of the last turn of the loop; 0: none yet */
    pthread_mutex_t lock;         /* for the fields below, up to the blank line */
    pthread_cond_t made;
    enum http_phase phase;
    unsigned asked; /* a bit for each page that a thread waits for */
    struct {
        struct http_text *text; /* NULL: not made yet */
        uint64_t made_ms;
    } page[HTTP_PAGES];
    struct serve *serve; /* to wake its loop; NULL unless running */
    struct store_sizes sizes;
    bool has_sizes, is_sizing;
    uint64_t sized_ms;

    struct store_place place;
    /* Of the loop thread alone. */
    struct facts_disk disk;
    uint64_t started_ms; /* wall clock */
};

err http_cache_open(struct http_cache *cache, const struct config *config);
void http_cache_close(struct http_cache *cache); /* no thread may wait any more */
/* Loop thread: makes the pages that were asked for. */
void http_cache_turn(struct http_cache *cache, struct serve *s);
void http_cache_drain(struct http_cache *cache);
/* Any other thread: a page that is at most a second old, or the newest one if the loop does not
 * make one within some seconds or is stopping. NULL: there is none. Release it. */
struct http_text *http_cache_get(struct http_cache *cache, enum http_page page,
                                 enum http_phase *phase);

#endif
