/* Metrics of the coordinator itself, its members, calls and store. */
#include "coordinator/http/metrics_read.h"

#include "base/version.h"

#include <stdio.h>
#include <string.h>

/* ---- the coordinator */

/* Only the number in `version`, so that a query can group builds of one release. */
err metrics_read_build(struct metrics_out *out, const struct facts *f)
{
    char store[16];
    (void)f;
    snprintf(store, sizeof store, "%d", VERSION_STORE);
    return METRICS_SAMPLE(out, 1, FEDLORA_VERSION, version_commit(), store);
}

err metrics_read_start(struct metrics_out *out, const struct facts *f)
{
    return METRICS_SAMPLE(out, f->started_ms / 1000, NULL);
}

err metrics_read_ready(struct metrics_out *out, const struct facts *f)
{
    return METRICS_SAMPLE(out, f->ready, NULL);
}

/* The newest one that was issued to an identity, or that it has called with. */
err metrics_read_certificates(struct metrics_out *out, const struct facts *f)
{
    const struct serve *s = f->serve;
    size_t admins = 0;
    if (f->ca_ends_s) TRY(METRICS_SAMPLE(out, f->ca_ends_s, "ca", s->config->federation));
    if (f->server_ends_s) TRY(METRICS_SAMPLE(out, f->server_ends_s, "server", "coordinator"));
    for (size_t i = 0; i < s->identities.count && admins < METRICS_MEMBERS; i++) {
        const struct serve_identity *is = &s->identities.row[i];
        if (is->role != RPC_ADMIN || is->revoked || !is->ends_s) continue;
        if (!config_allows_admin(s->config, is->id)) continue;
        admins++;
        TRY(METRICS_SAMPLE(out, is->ends_s, rpc_role_name(RPC_ADMIN), is->id));
    }
    for (size_t i = 0; i < out->members; i++) {
        const struct serve_identity *is = serve_identity_find(s, RPC_CLIENT, out->member[i]);
        if (is && is->ends_s)
            TRY(METRICS_SAMPLE(out, is->ends_s, rpc_role_name(RPC_CLIENT), is->id));
    }
    return ERR_NONE;
}

/* ---- members */

/* A member that has never called counts from the start of the coordinator, so that one that never
 * comes is noticed. With a secret draw in whole minutes, because a member that trains calls at
 * other times than one that waits. */
err metrics_read_seen(struct metrics_out *out, const struct facts *f)
{
    uint64_t unit_ms = f->serve->tally.hides_calls ? 60000 : 1000;
    for (size_t i = 0; i < out->members; i++) {
        const struct serve_identity *is = serve_identity_find(f->serve, RPC_CLIENT, out->member[i]);
        uint64_t seen_ms = is && is->seen_ms ? is->seen_ms : f->started_ms;
        TRY(METRICS_SAMPLE(out, seen_ms / unit_ms * unit_ms / 1000, out->member[i]));
    }
    return ERR_NONE;
}

/* Connected: it has called within the time after which a status calls a member absent. */
err metrics_read_members(struct metrics_out *out, const struct facts *f)
{
    const struct serve *s = f->serve;
    size_t connected = 0, revoked = 0;
    for (size_t i = 0; i < s->identities.count; i++) {
        const struct serve_identity *is = &s->identities.row[i];
        if (is->role != RPC_CLIENT) continue;
        revoked += is->revoked;
        connected += !is->revoked && config_allows(s->config, is->id) &&
                     f->wall_ms - is->seen_ms <= s->config->absent_ms;
    }
    TRY(METRICS_SAMPLE(out, s->config->allowed.count, "enrolled"));
    TRY(METRICS_SAMPLE(out, connected, "connected"));
    return METRICS_SAMPLE(out, revoked, "revoked");
}

/* The bytes of a member, and of those without series of their own together. */
static err read_bytes(struct metrics_out *out, const struct facts *f, bool sent)
{
    const struct tally *t = &f->serve->tally;
    uint64_t all = 0, shown = 0;
    for (size_t i = 0; i < t->members; i++)
        all += sent ? t->member[i]->sent : t->member[i]->received;
    for (size_t i = 0; i < out->members; i++) {
        const struct tally_member *row = tally_find(t, out->member[i]);
        uint64_t bytes = !row ? 0 : sent ? row->sent : row->received;
        shown += bytes;
        TRY(METRICS_SAMPLE(out, bytes, out->member[i]));
    }
    return all > shown ? METRICS_SAMPLE(out, all - shown, "other") : ERR_NONE;
}

err metrics_read_received(struct metrics_out *out, const struct facts *f)
{
    return read_bytes(out, f, false);
}

err metrics_read_sent(struct metrics_out *out, const struct facts *f)
{
    return read_bytes(out, f, true);
}

/* ---- calls, store */

/* A pair that has never occurred has no sample: all of them would be hundreds. */
err metrics_read_calls(struct metrics_out *out, const struct facts *f)
{
    const struct tally *t = &f->serve->tally;
    for (size_t i = 0; i < t->calls; i++)
        TRY(METRICS_SAMPLE(out, t->call[i].count, t->call[i].procedure, t->call[i].code));
    return ERR_NONE;
}

/* All reasons, also those at 0, so that the first refusal is an increase. */
err metrics_read_refused(struct metrics_out *out, const struct facts *f)
{
    for (int i = 0; i < RPC_REFUSALS; i++)
        TRY(METRICS_SAMPLE(out, atomic_load(&f->serve->tally.refused[i]),
                           rpc_refusal_name((enum rpc_refusal)i)));
    return ERR_NONE;
}

/* Left out until a thread of the HTTP server has added them up for the first time. */
err metrics_read_store(struct metrics_out *out, const struct facts *f)
{
    if (!f->has_sizes) return ERR_NONE;
    TRY(METRICS_SAMPLE(out, f->sizes.states, "states"));
    TRY(METRICS_SAMPLE(out, f->sizes.updates, "updates"));
    return METRICS_SAMPLE(out, f->sizes.database, "database");
}

/* 0 means that uploads wait: the alert needs no knowledge of the reserve. */
err metrics_read_free(struct metrics_out *out, const struct facts *f)
{
    return METRICS_SAMPLE(out, f->free_less_reserve, NULL);
}

err metrics_read_disk_errors(struct metrics_out *out, const struct facts *f)
{
    return METRICS_SAMPLE(out, trouble_disk_errors(f->serve->shop.troubles), NULL);
}

/* All kinds, also those at 0, so that an alert on one kind needs no special case for its
 * absence. */
err metrics_read_troubles(struct metrics_out *out, const struct facts *f)
{
    for (int i = 0; i < TROUBLE_KINDS; i++) {
        enum trouble_kind kind = (enum trouble_kind)i;
        if (trouble_is_shown(kind))
            TRY(METRICS_SAMPLE(out, trouble_count(f->serve->shop.troubles, kind),
                               trouble_name(kind)));
    }
    return ERR_NONE;
}

/* Left out before the first backup. */
err metrics_read_backup(struct metrics_out *out, const struct facts *f)
{
    return f->backup_ms ? METRICS_SAMPLE(out, f->backup_ms / 1000, NULL) : ERR_NONE;
}

/* The three names of a histogram are made here, because the row has only the first part. */
err metrics_read_aggregate(struct metrics_out *out, const struct facts *f)
{
    const struct tally *t = &f->serve->tally;
    const char *name = out->row->name;
    uint64_t sum = 0;
    for (int i = 0; i < TALLY_BUCKETS - 1; i++) {
        sum += t->bucket[i];
        TRY(bytes_printf(out->text, "%s_bucket{le=\"%g\"} %llu\n", name, tally_bound[i],
                         (unsigned long long)sum));
    }
    TRY(bytes_printf(out->text, "%s_bucket{le=\"+Inf\"} %llu\n", name,
                     (unsigned long long)t->aggregated));
    return bytes_printf(out->text, "%s_sum %.15g\n%s_count %llu\n", name, t->aggregate_s, name,
                        (unsigned long long)t->aggregated);
}
