/* Lines of the audit log about updates and rounds: which update counted with which weight, and
 * which was refused. */
#include "coordinator/run/run.h"

/* The weights are those before privacy and robust rules: the rules of the run gave them, and the
 * auditor can compute them from the rows that members have stated. */
void run_audit_published(const struct run *run, const struct publish_job *job)
{
    const char *name = run->config->name;
    struct audit *a = run->shop->audit;
    char digest[DIGEST_TEXT_BYTES];
    for (size_t i = 0; i < job->result.updates; i++) {
        const struct store_update *u = &job->update[i];
        digest_text(digest, &u->blob.digest);
        AUDIT(a, NULL, "update.counted", name, "ok", LOG_STR("member", u->member),
              LOG_INT("round", job->round), LOG_INT("trained_round", u->trained_round),
              LOG_STR("digest", digest), LOG_INT("bytes", u->blob.size),
              LOG_NUM("weight", job->weights[i]));
    }
    digest_text(digest, &job->result.state.digest);
    AUDIT(a, NULL, "round.published", name, "ok", LOG_INT("round", job->round),
          LOG_STR("state", digest), LOG_INT("updates", job->result.updates));
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

/* A crash may have come between the commit of a round and its lines, so each start records where
 * every open run stands. */
void run_audit_loaded(const struct run *run)
{
    char digest[DIGEST_TEXT_BYTES] = "";
    if (run->newest.state.size) digest_text(digest, &run->newest.state.digest);
    AUDIT(run->shop->audit, NULL, "run.loaded", run->config->name, "ok",
          LOG_INT("published", run->round.published), LOG_STR("state", digest),
          LOG_STR("phase", round_phase_name(round_phase(&run->round))));
}
