/* Lines of the audit log about updates and rounds: which update counted with which weight, and
 * which was refused. */
#include "coordinator/run/run.h"

#include <stdlib.h>
#include <string.h>

static void add_counted(const struct run *run, const struct store_counted *c, bool recovered)
{
    char digest[DIGEST_TEXT_BYTES];
    digest_text(digest, &c->blob.digest);
    AUDIT(run->shop->audit, NULL, "update.counted", run->config->name, "ok",
          LOG_STR("member", c->member), LOG_INT("round", c->round),
          LOG_INT("trained_round", c->trained_round), LOG_STR("digest", digest),
          LOG_INT("bytes", c->blob.size), LOG_NUM("weight", c->weight),
          LOG_INT("recovered", recovered));
}

static void add_published(const struct run *run, uint32_t round, const struct digest *state,
                          size_t updates, bool recovered)
{
    char digest[DIGEST_TEXT_BYTES];
    digest_text(digest, state);
    AUDIT(run->shop->audit, NULL, "round.published", run->config->name, "ok",
          LOG_INT("round", round), LOG_STR("state", digest), LOG_INT("updates", updates),
          LOG_INT("recovered", recovered));
}

/* The weights are those before privacy and robust rules: the rules of the run gave them, and the
 * auditor can compute them from the rows that members have stated. */
void run_audit_published(const struct run *run, const struct publish_job *job)
{
    for (size_t i = 0; i < job->result.updates; i++) {
        const struct store_update *u = &job->update[i];
        const struct store_counted counted = {.round = job->round,
                                              .member = u->member,
                                              .trained_round = u->trained_round,
                                              .blob = u->blob,
                                              .weight = job->weights[i]};
        add_counted(run, &counted, /*recovered*/ false);
    }
    add_published(run, job->round, &job->result.state.digest, job->result.updates, false);
}

/* With the digest, because the member has the file and can show which one was refused. */
void run_audit_refused(const struct run *run, const char *member, const struct store_update *u,
                       err why)
{
    char digest[DIGEST_TEXT_BYTES];
    bool ours = why.kind == ERR_MACHINE || why.kind == ERR_STOPPED;
    if (ours) return; /* the member sends it again */
    digest_text(digest, &u->blob.digest);
    AUDIT(run->shop->audit, NULL, "update.refused", run->config->name, "refused",
          LOG_STR("member", member), LOG_INT("round", u->trained_round), LOG_STR("digest", digest),
          LOG_STR("reason", why.text));
}

/* Where every open run stands at a start, so that the log shows whether the store was changed while
 * the service was not running. */
void run_audit_loaded(const struct run *run)
{
    char digest[DIGEST_TEXT_BYTES] = "";
    if (run->newest.state.size) digest_text(digest, &run->newest.state.digest);
    AUDIT(run->shop->audit, NULL, "run.loaded", run->config->name, "ok",
          LOG_INT("published", run->round.published), LOG_STR("state", digest),
          LOG_STR("phase", round_phase_name(round_phase(&run->round))));
}

/* ---- lines that a crash has kept from the log ---- */

enum { RECENT_MS = 20 * 24 * 60 * 60 * 1000u };
#define PUBLISHED "{\"action\":\"round.published\","

/* The text that follows `key` in a line, up to its end; NULL: there is none. */
static const char *find_text(const char *text, size_t size, const char *key)
{
    const char *at = memmem(text, size, key, strlen(key));
    return at ? at + strlen(key) : NULL;
}

static void mark(void *context, const char *text, size_t size)
{
    const char *name = find_text(text, size, ",\"object\":\"");
    const char *round = find_text(text, size, "\"round\":");
    size_t length = name ? strcspn(name, "\"") : 0;
    for (struct run *run = context; run && name && round; run = run->next)
        if (run->round.published == strtoul(round, NULL, 10) &&
            strlen(run->config->name) == length && !memcmp(run->config->name, name, length))
            run->audited = true;
}

/* In pages, as a round may have 10,000 updates. */
static err add_late(const struct run *run)
{
    enum { PAGE = 1000 };
    struct arena arena = {0};
    struct store_counted *row = NULL;
    size_t count = PAGE, all = 0;
    char after[LIMIT_NAME_BYTES] = "";
    err e = ERR_NONE;
    while (count == PAGE && !err_is(e)) {
        e = store_lineage_counted(&row, &count, run->shop->store, run->id, run->round.published,
                                  after, PAGE, &arena);
        for (size_t i = 0; i < count && !err_is(e); i++)
            add_counted(run, &row[i], /*recovered*/ true);
        if (!err_is(e) && count) snprintf(after, sizeof after, "%s", row[count - 1].member);
        all += err_is(e) ? 0 : count;
    }
    arena_close(&arena);
    if (!err_is(e))
        add_published(run, run->round.published, &run->newest.state.digest, all,
                      /*recovered*/ true);
    return e;
}

/* A round is committed before its lines are written, so a crash in between leaves the newest round
 * of a run without them. The store has everything that they say. Runs that ended long ago are left
 * out, because their lines are in older files, and so is a log that begins with this start. */
err run_audit_recover(struct run *first, uint64_t wall_ms)
{
    bool new_log = first && audit_head(first->shop->audit).seq == 0;
    if (!first || new_log) return ERR_NONE;
    err e = audit_scan(first->shop->audit, PUBLISHED, mark, first);
    for (struct run *run = first; run && !err_is(e); run = run->next) {
        bool old = run->ended_ms && run->ended_ms + RECENT_MS < wall_ms;
        if (run->shop->audit && run->round.published && !run->audited && !old) e = add_late(run);
    }
    return e;
}
