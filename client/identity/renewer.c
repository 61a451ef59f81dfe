#include "client/identity/renewer.h"

#include "base/text.h"
#include "client/identity/renewal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    RENEWER_LOOK_MS = 60 * 1000,  /* the file may be replaced, and clocks are set */
    RENEWER_ENDED_MS = 10 * 1000, /* only another enrolment helps, which replaces the file */
    RENEWER_LEAST_MS = 1000,      /* between two calls, whatever the coordinator answers */
    RENEWER_SAY_MS = 60 * 60 * 1000,
    RENEWER_MOST_MS = 60 * 60 * 1000,
};

struct renewer {
    struct rpc_client_options files;
    char *server, *ca, *cert, *key;
    bool quiet;
    uint64_t said_ms; /* when a failure was printed; 0: none was */
    volatile sig_atomic_t stop;
    bool closing, started;
    pthread_mutex_t lock;
    pthread_cond_t closed;
    pthread_t thread;
};

uint64_t renewer_pause_ms(int64_t left_s)
{
    if (left_s <= RENEWER_LEAST_MS / 100) return RENEWER_LEAST_MS;
    uint64_t pause = (uint64_t)left_s * 100;
    return pause < RENEWER_MOST_MS ? pause : RENEWER_MOST_MS;
}

static void say_renewed(const struct renewer *r, const struct renewal *is)
{
    char ends[32];
    struct tm tm;
    time_t t = (time_t)is->ends_s;
    if (r->quiet) return;
    gmtime_r(&t, &tm);
    strftime(ends, sizeof ends, "%Y-%m-%d %H:%M UTC", &tm);
    fprintf(stderr, "%s's certificate was renewed; it ends on %s\n", is->self.id, ends);
}

static void say_failed(struct renewer *r, const struct renewal *is, int64_t left_s, err why)
{
    char left[32];
    uint64_t now = text_now_ms();
    if (r->quiet || (r->said_ms != 0 && now - r->said_ms < RENEWER_SAY_MS)) return;
    r->said_ms = now;
    text_duration(left, sizeof left, (uint64_t)left_s * 1000);
    fprintf(stderr, "%s's certificate could not be renewed; it ends in %s: %s\n", is->self.id, left,
            why.text);
}

static err renew(struct renewal *out, const struct renewer *r)
{
    struct rpc_client *client = NULL;
    TRY(rpc_client_open(&client, &r->files));
    err e = renewal_now(out, client, &r->files);
    rpc_client_close(client);
    return e;
}

/* One look at the file, and a renewal if it is time; returns the pause until the next look. Files
 * that cannot be read and certificates that have ended are reported by the owner of the
 * connection, who has to wait for them. */
static uint64_t look(struct renewer *r)
{
    struct renewal is, new;
    err e = renewal_read(&is, &r->files);
    int64_t now = (int64_t)(text_wall_ms() / 1000);
    if (err_is(e) || !is.renewable) return RENEWER_LOOK_MS;
    if (now >= is.ends_s) return RENEWER_ENDED_MS;
    if (now < is.at_s) {
        uint64_t left = (uint64_t)(is.at_s - now) * 1000;
        return left < RENEWER_LOOK_MS ? left : RENEWER_LOOK_MS;
    }
    e = renew(&new, r);
    if (r->stop) return 0;
    if (err_is(e)) {
        say_failed(r, &is, is.ends_s - now, e);
        return renewer_pause_ms(is.ends_s - now);
    }
    r->said_ms = 0;
    say_renewed(r, &new);
    return RENEWER_LEAST_MS;
}

/* Waits by the monotonic clock, so that setting the clock does not end or prolong a pause. */
static void *work(void *user)
{
    struct renewer *r = user;
    pthread_mutex_lock(&r->lock);
    while (!r->closing) {
        pthread_mutex_unlock(&r->lock);
        uint64_t pause = look(r);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += (time_t)(pause / 1000);
        until.tv_nsec += (long)(pause % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_mutex_lock(&r->lock);
        for (int code = 0; !r->closing && code != ETIMEDOUT;)
            code = pthread_cond_timedwait(&r->closed, &r->lock, &until);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static err copy_files(struct renewer *r, const struct rpc_client_options *files)
{
    r->server = strdup(files->server);
    r->ca = strdup(files->ca);
    r->cert = strdup(files->cert);
    r->key = strdup(files->key);
    if (!r->server || !r->ca || !r->cert || !r->key) return err_sys(ENOMEM, "the renewer's files");
    r->files = (struct rpc_client_options){
        .server = r->server, .ca = r->ca, .cert = r->cert, .key = r->key, .stop = &r->stop};
    return ERR_NONE;
}

/* Signals are for the thread that works: it is the one whose system calls must return. */
static err start(struct renewer *r)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int code = pthread_create(&r->thread, NULL, work, r);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code != 0) return err_sys(code, "a thread for renewals");
    r->started = true;
    return ERR_NONE;
}

err renewer_open(struct renewer **out, const struct renewer_options *options)
{
    pthread_condattr_t monotonic;
    struct renewer *r = calloc(1, sizeof *r);
    if (r == NULL) return err_sys(ENOMEM, "a renewer");
    r->quiet = options->quiet;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->closed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    err e;
    TRY_OUT(e, rpc_init()); /* before there is a second thread */
    TRY_OUT(e, copy_files(r, &options->files));
    TRY_OUT(e, start(r));
    *out = r;
    r = NULL;
out:
    renewer_close(r);
    return e;
}

void renewer_close(struct renewer *r)
{
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    r->stop = 1;
    pthread_cond_signal(&r->closed);
    pthread_mutex_unlock(&r->lock);
    if (r->started) pthread_join(r->thread, NULL);
    pthread_cond_destroy(&r->closed);
    pthread_mutex_destroy(&r->lock);
    free(r->server);
    free(r->ca);
    free(r->cert);
    free(r->key);
    free(r);
}
