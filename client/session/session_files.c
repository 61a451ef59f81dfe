#include "client/session/session_files.h"

#include "base/stop.h"
#include "base/text.h"
#include "client/identity/renewal.h"
#include "client/session/session_status.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { FILES_SAY_MS = 60 * 60 * 1000, FILES_MOST_MS = 10 * 1000 };

static struct rpc_client_options files_of(const struct session *s)
{
    const struct remote_options *o = &s->o->remote;
    return (struct rpc_client_options){
        .server = o->server, .ca = o->ca, .cert = o->cert, .key = o->key, .stop = &stop_asked};
}

/* ---------------------------------------------------------------- waiting */

/* The text for a certificate that has ended; false: the files have another fault. */
static bool tell_end(char *out, size_t bytes, const struct session *s)
{
    const struct rpc_client_options files = files_of(s);
    struct renewal is;
    char ago[32];
    int64_t now = (int64_t)(text_wall_ms() / 1000);
    if (err_is(renewal_read(&is, &files)) || is.ends_s > now) return false;
    text_duration(ago, sizeof ago, (uint64_t)(now - is.ends_s) * 1000);
    snprintf(out, bytes, "%s's certificate ended %s ago; run: fedlora enroll TOKEN", is.self.id,
             ago);
    return true;
}

bool session_files_is_news(struct session *s, err why)
{
    uint64_t now = text_now_ms();
    if (!strcmp(why.text, s->files_said) && now - s->files_said_ms < FILES_SAY_MS) return false;
    snprintf(s->files_said, sizeof s->files_said, "%s", why.text);
    s->files_said_ms = now;
    return true;
}

/* A file that cannot be used now may be right a moment later: a certificate was renewed before its
 * key, or it has ended and its owner is about to renew it. The connection in use may still work, so
 * the call is repeated all the same, without an end. The duration in the text changes, so the text
 * is compared by its cause. */
err session_files_wait(struct session *s, err why)
{
    char text[ERR_TEXT_BYTES + 80];
    uint64_t now = text_now_ms(), pause = retry_backoff_ms(++s->retry.attempt);
    s->retry.since_ms = now; /* this time does not count towards --retry-for */
    if (session_files_is_news(s, why)) {
        if (!tell_end(text, sizeof text, s))
            snprintf(text, sizeof text, "the certificate cannot be used, waiting until it can: %s",
                     why.text);
        session_round_note(s, "%s", text);
        session_status(s, "%s", text);
    }
    return retry_sleep(pause < FILES_MOST_MS ? pause : FILES_MOST_MS);
}

/* The certificate may have ended on the other side, or the clocks may differ. */
bool session_files_refused(const struct session *s, err cause)
{
    struct rpc_tls_report report;
    const struct rpc_client_options files = files_of(s);
    if (cause.kind != ERR_REFUSED && cause.kind != ERR_INPUT) return false;
    err e = rpc_tls_probe(&report, &files);
    return e.kind == ERR_REFUSED || e.kind == ERR_INPUT;
}

/* ---------------------------------------------------------------- opening and replacing */

/* Changes with every rename over the file. */
static bool mark_of(struct session_files_mark *out, const struct session *s)
{
    struct stat st;
    if (stat(s->o->remote.cert, &st) != 0) return false;
    *out = (struct session_files_mark){.inode = (uint64_t)st.st_ino,
                                       .made_s = (int64_t)st.st_mtim.tv_sec,
                                       .made_ns = (int64_t)st.st_mtim.tv_nsec};
    return true;
}

err session_files_open(struct session *s)
{
    char text[ERR_TEXT_BYTES];
    for (;;) {
        (void)mark_of(&s->files, s); /* before the files are read: they may change just after it */
        err e = remote_open(&s->client, &s->o->remote);
        if (!err_is(e)) break;
        if (!s->o->stay || !tell_end(text, sizeof text, s)) return e;
        TRY(session_files_wait(s, e));
    }
    s->retry.attempt = 0;
    return ERR_NONE;
}

/* A file that cannot be used is left to session_round_retry(), because the connection in use still
 * works, and the file may be complete a moment later: its mark is then taken again. */
void session_files_refresh(struct session *s)
{
    struct session_files_mark mark;
    bool changed = false;
    if (!mark_of(&mark, s) || memcmp(&mark, &s->files, sizeof mark) == 0) return;
    err e = rpc_client_reload(&changed, s->client);
    if (err_is(e)) return;
    s->files = mark;
    s->files_said[0] = 0; /* the next fault is a new one */
    if (changed) session_round_note(s, "the certificate was renewed; connecting again");
}
