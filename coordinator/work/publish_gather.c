/* The updates of a closed round, before they are combined. */
#include "coordinator/work/publish_gather.h"

#include "agg/round/method_bound.h"
#include "coordinator/work/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* FedBuff's discount of stale updates (Nguyen et al. 2022, section 5): s rounds were published
 * between the state that the update was trained from and the one that it is added to. */
static double discount_of(const struct publish_job *p, const struct store_update *u)
{
    uint32_t stale = u->counted_in - u->trained_round;
    return p->discounts_late ? 1 / sqrt(1 + (double)stale) : 1;
}

/* The files that the round started from. Nobody can send them again. */
err publish_check_from(const struct publish_job *p, const struct store *store)
{
    const struct publish_blobs *from = &p->from;
    if (p->trusts_disk) return ERR_NONE;
    TRY(blob_check(store->dir, &from->state.digest, "the state"));
    if (from->frozen.size) TRY(blob_check(store->dir, &from->frozen.digest, "the frozen factors"));
    if (from->memory.size)
        TRY(blob_check(store->dir, &from->memory.digest, "the memory of the server's optimizer"));
    return ERR_NONE;
}

/* Sorts damaged updates out, so that they can be asked for again. */
static err check_updates(struct publish_job *p, struct store *store,
                         const struct store_update *update, size_t count)
{
    struct store_update *damaged = NULL;
    bool *intact = NULL;
    err first = ERR_NONE;
    if (p->trusts_disk) return ERR_NONE;
    TRY(arena_take(&intact, &p->arena, count, sizeof *intact));
    TRY(arena_take(&damaged, &p->arena, count, sizeof *damaged));
#pragma omp parallel for num_threads(p->threads > 0 ? p->threads : 1) schedule(dynamic)
    for (size_t i = 0; i < count; i++) {
        err e = blob_intact(&intact[i], store->dir, &update[i].blob.digest);
#pragma omp critical(check_updates)
        if (err_is(e)) first = e;
    }
    TRY(first);
    p->damaged = damaged; /* also if the disk fails before all of them are forgotten */
    for (size_t i = 0; i < count; i++)
        if (!intact[i]) {
            TRY(store_forget_update(store, &update[i]));
            damaged[p->damaged_count++] = update[i];
        }
    if (!p->damaged_count) return ERR_NONE;
    return err_make(ERR_STATE, "%zu damaged updates are asked for again", p->damaged_count);
}

static int by_loss(const void *a, const void *b)
{
    double x = ((const struct store_update *)a)->train_loss;
    double y = ((const struct store_update *)b)->train_loss;
    return (x > y) - (x < y);
}

/* Unlike the mean, one member that states a huge loss does not move it. */
static err find_median(double *out, const struct store_update *update, size_t count,
                       struct arena *arena)
{
    struct store_update *sorted = NULL;
    TRY(arena_take(&sorted, arena, count, sizeof *sorted));
    memcpy(sorted, update, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_loss);
    *out = count ? sorted[(count - 1) / 2].train_loss : 0;
    return ERR_NONE;
}

/* The contributions of the round, sorted by member (the order of method_bound()), and the
 * members' mean loss under the same weights. Paths and ids live in the job's arena, because the
 * report needs them again. */
err publish_gather(struct publish_job *p, struct store *store)
{
    struct store_update *update = NULL;
    struct contribution *c = NULL;
    size_t count = 0;
    double sum = 0, loss = 0, *weight = NULL;
    TRY(store_updates(&update, &count, store, p->run, p->round, &p->arena));
    REQUIRE(count > 0 || p->terms.on);
    TRY(check_updates(p, store, update, count));
    TRY(arena_take(&c, &p->arena, count, sizeof *c));
    TRY(arena_take(&weight, &p->arena, count, sizeof *weight));
    for (size_t i = 0; i < count; i++)
        weight[i] =
            p->weight(p->config, update[i].member, update[i].examples) * discount_of(p, &update[i]);
    weights_cap(weight, count, p->weight_cap);
    for (size_t i = 0; i < count; i++) {
        struct blob_path path = blob_path(store->dir, &update[i].blob.digest);
        c[i] = (struct contribution){.member = update[i].member, .weight = weight[i]};
        TRY(arena_text(&c[i].path, &p->arena, path.text, strlen(path.text)));
        sum += c[i].weight;
        loss += c[i].weight * update[i].train_loss;
    }
    if (!p->terms.on) TRY(find_median(&p->loss_median, update, count, &p->arena));
    p->update = update;
    p->weights = weight;
    p->contribution = c;
    p->contributions = count;
    p->result.updates = (uint32_t)count;
    /* Under privacy the members' losses are not published; only a `struct release` leaves. */
    p->result.train_loss = sum > 0 && !p->terms.on ? loss / sum : 0;
    return ERR_NONE;
}

static err measure(struct method_bound **out, double *median, struct publish_job *p,
                   struct store *store, const struct method_next *next)
{
    struct method_bound_options options = {
        .ratio = p->norm_bound > 0 ? p->norm_bound : METHOD_BOUND_RATIO, .threads = p->threads};
    /* Rounds that only find a basis have norms of gradients, which say nothing of changes. */
    bool changes = p->round > method_setup_rounds(&p->options);
    if (changes) TRY(store_norm(&options.reference, store, p->run));
    TRY(arena_take(out, &p->arena, next->count, sizeof **out));
    TRY(method_bound(*out, median, p->method, next, &options));
    if (!changes) *median = 0;
    return ERR_NONE;
}

/* All refusals are one transaction, so that a restart judges the same updates by the same
 * medians. Then the round is judged by its quorum again, on the loop thread. A private run clips
 * every update instead, and must not publish what a norm reveals. */
err publish_bound(struct publish_job *p, struct store *store, const struct method_next *next)
{
    struct method_bound *bound = NULL;
    struct store_refusal *refused = NULL;
    if (p->norm_bound <= 0 || p->terms.on) return ERR_NONE;
    TRY(measure(&bound, &p->result.norm, p, store, next));
    TRY(arena_take(&refused, &p->arena, next->count, sizeof *refused));
    for (size_t i = 0; i < next->count; i++) {
        REQUIRE(!strcmp(p->update[i].member, next->contribution[i].member));
        if (*bound[i].why)
            refused[p->refused_count++] =
                (struct store_refusal){.update = p->update[i], .why = bound[i].why};
    }
    p->refused = refused;
    if (!p->refused_count) return ERR_NONE;
    err e = store_refuse_updates(store, refused, p->refused_count);
    if (err_is(e)) p->refused_count = 0;
    return err_is(e) ? e : err_make(ERR_STATE, "%zu updates are refused", p->refused_count);
}

/* The first member without whose update the round can be combined. Other work, and the end of the
 * service, do not wait for the search. */
static err leave_one_out(const char **out, const struct publish_job *p, const char *path,
                         const struct method_next *next)
{
    enum { TRIED_MEMBERS = 16 };
    struct contribution left[TRIED_MEMBERS];
    struct method_next fewer = *next;
    fewer.contribution = left;
    fewer.count = next->count - 1;
    *out = NULL;
    for (size_t i = 0; i < next->count && next->count <= TRIED_MEMBERS && fewer.count; i++) {
        struct method_report report = {0};
        size_t n = 0;
        if (work_gives_way(&p->job)) break;
        for (size_t k = 0; k < next->count; k++)
            if (k != i) left[n++] = next->contribution[k];
        err e = method_next(&report, p->method, path, &fewer);
        method_report_close(&report);
        if (e.kind == ERR_MACHINE) return e;
        if (err_is(e)) continue;
        *out = next->contribution[i].member;
        break;
    }
    return ERR_NONE;
}

/* A combination that failed on its numbers fails again, so the operator must learn whose update to
 * drop. */
err publish_blame(struct publish_job *p, struct store *store, const char *path,
                  const struct method_next *next, err cause)
{
    struct method_bound *bound = NULL;
    const char *member = NULL, *why = "without it the round can be combined";
    double median;
    bool passes = cause.kind == ERR_MACHINE || cause.kind == ERR_LIMIT || cause.kind == ERR_STOPPED;
    if (passes || p->terms.on || next->count == 0) return cause;
    if (next->count == 1) {
        member = next->contribution[0].member;
        why = "it is the only one";
    } else if (!err_is(measure(&bound, &median, p, store, next))) {
        for (size_t i = 0; i < next->count && !member; i++)
            if (*bound[i].why) {
                member = next->contribution[i].member;
                why = bound[i].why;
            }
    }
    if (!member && err_is(leave_one_out(&member, p, path, next))) return cause;
    if (!member) return cause;
    return err_make(cause.kind,
                    "the update of %s cannot be combined (%s); fedlora run drop-update and run "
                    "resume go on without it: %s",
                    member, why, cause.text);
}
