#include "coordinator/serve/serve_expiry.h"

#include "base/text.h"
#include "coordinator/serve/serve.h"

#include <stdio.h>

enum { DAY_S = 24 * 60 * 60, LINES = 20 };

int64_t serve_expiry_reached(int64_t left_s, int64_t most_s)
{
    static const int64_t at[] = {1, 7, 14, 30};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (left_s < at[i] * DAY_S && at[i] * DAY_S <= most_s) return at[i];
    return 0;
}

struct looking {
    int64_t now_s, before_s; /* of this look and the one before; 0: there was none */
    size_t lines, others;
};

/* The time of the look before is all that is remembered: a certificate is reported when one of the
 * days lies between the two looks, so nothing has to be kept for each. */
static void look(struct looking *l, const char *whose, int64_t ends_s, int64_t most_s)
{
    int64_t is = serve_expiry_reached(ends_s - l->now_s, most_s);
    int64_t was = l->before_s ? serve_expiry_reached(ends_s - l->before_s, most_s) : 0;
    if (!ends_s || !is || is == was) return;
    if (l->lines++ >= LINES) {
        l->others++;
        return;
    }
    int64_t days = (ends_s - l->now_s) / DAY_S;
    LOG(LOG_WARN, "certificate.days_left", LOG_STR("of", whose), LOG_INT("days", days));
}

/* Certificates that renew themselves at two thirds of their life are not reported before their last
 * quarter, so that a line means that a renewal has failed. */
static void look_at_members(struct looking *l, const struct serve *s)
{
    const struct config *c = s->config;
    char whose[TROUBLE_PEER_BYTES];
    for (size_t i = 0; i < s->identities.count; i++) {
        const struct serve_identity *is = &s->identities.row[i];
        uint64_t life_ms = is->role == RPC_ADMIN ? c->admin_life_ms : c->member_life_ms;
        if (is->revoked) continue;
        snprintf(whose, sizeof whose, "%s/%s", rpc_role_name(is->role), is->id);
        look(l, whose, is->ends_s, (int64_t)(life_ms / 4000));
    }
}

/* A file that cannot be read is the trouble of watch_certificate(), and not of this. */
void serve_expiry_look(struct serve *s)
{
    const struct config *c = s->config;
    struct looking l = {.now_s = (int64_t)(text_wall_ms() / 1000),
                        .before_s = s->watch.expiry_looked_s};
    int64_t ends_s = 0;
    if (!err_is(rpc_tls_ends(&ends_s, c->cert))) look(&l, c->cert, ends_s, INT64_MAX);
    if (!err_is(rpc_tls_ends(&ends_s, c->ca))) look(&l, c->ca, ends_s, INT64_MAX);
    look_at_members(&l, s);
    if (l.others)
        LOG(LOG_WARN, "certificate.days_left", LOG_STR("of", "others"), LOG_INT("count", l.others));
    s->watch.expiry_looked_s = l.now_s;
}
