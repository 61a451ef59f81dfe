#include "coordinator/reload.h"

#include "base/text.h"

#include <stdio.h>

/* Values that were copied from the configuration when runs and the server were made. */
static void use_values(struct serve *s)
{
    const struct config *c = s->config;
    serve_use_rate(s);
    for (struct run *run = s->runs; run; run = run->next) {
        run->round.rules.absent_ms = c->absent_ms;
        run->round.rules.retry_ms = c->retry_ms;
    }
    log_init((enum log_level)c->log_level, c->log_json);
}

/* The lists of members and operators go through the store, which owns them. If it does not answer,
 * those of before stay, because members that enrolled with a token are not in the file. */
static void reread(struct serve *s, struct config *config, int argc, char **argv)
{
    struct config_changes changes = {0};
    struct audit *audit = s->shop.audit;
    size_t members = config->allowed.count, admins = config->admin_ids.count;
    err e = config_reread(config, &changes, argc, argv);
    if (err_is(e)) {
        LOG(LOG_ERROR, "config.not_reread", LOG_STR("error", e.text));
        AUDIT(audit, NULL, "config.reloaded", config->file, "refused", LOG_STR("reason", e.text));
        return;
    }
    e = serve_identity_open(s);
    if (err_is(e)) LOG(LOG_ERROR, "members.not_reread", LOG_STR("error", e.text));
    AUDIT(audit, NULL, "config.reloaded", config->file, "ok", LOG_INT("members_were", members),
          LOG_INT("members", config->allowed.count), LOG_INT("admins_were", admins),
          LOG_INT("admins", config->admin_ids.count), LOG_STR("changed", changes.made),
          LOG_STR("needs_restart", changes.restart));
    use_values(s);
    if (*changes.restart)
        LOG(LOG_WARN, "config.needs_restart", LOG_STR("changed", changes.restart),
            LOG_STR("reason", "these values of the file are not used before a restart"));
    LOG(LOG_INFO, "config.reread", LOG_INT("members", config->allowed.count),
        LOG_STR("changed", changes.made));
}

void reload(struct serve *s, struct config *config, int argc, char **argv)
{
    err e = rpc_server_reload(s->server);
    if (err_is(e))
        LOG(LOG_ERROR, "certificates.not_reread", LOG_STR("error", e.text));
    else
        LOG(LOG_INFO, "certificates.reread", LOG_STR("cert", s->config->cert));
    AUDIT(s->shop.audit, NULL, "certificates.reloaded", s->config->cert,
          err_is(e) ? "refused" : "ok", LOG_STR("reason", e.text));
    s->watch.next_certificate_ms = 0;
    reread(s, config, argc, argv);
}
