/* Several devices in one training. The host queues the work of all devices in turn, and they run at
 * the same time. The gradients are added on the first device in the order of the devices, which
 * makes the step; its values are copied to the others, so all devices have equal bits. */
#include "engine/train/train_parts.h"

#include <errno.h>
#include <stdlib.h>

static err open_peer(struct training_peer *p, const struct training *t, struct engine *e)
{
    size_t bytes = t->adapter->value_count * sizeof(float);
    uint64_t before = e->be->memory_held(e->ctx);
    p->e = e;
    TRY(e->be->memory_take(&p->value, e->ctx, bytes));
    TRY(e->be->memory_take(&p->gradient, e->ctx, bytes));
    p->blocks_held = e->be->memory_held(e->ctx) - before;
    return factors_open(&p->factors, e, t->adapter);
}

err training_peers_open(struct training *t)
{
    if (!t->e->peers) return ERR_NONE;
    if (!(t->peer = calloc(t->e->peers, sizeof *t->peer))) return err_sys(ENOMEM, "training");
    for (size_t i = 0; i < t->e->peers; i++)
        TRY(open_peer(&t->peer[i], t, t->e->peer[i]));
    return ERR_NONE;
}

void training_peers_close(struct training *t)
{
    for (size_t i = 0; t->peer && i < t->e->peers; i++) {
        struct training_peer *p = &t->peer[i];
        if (p->e) p->e->be->record_close(p->record);
        factors_close(p->factors);
        if (p->value) p->e->be->memory_give(p->e->ctx, p->value);
        if (p->gradient) p->e->be->memory_give(p->e->ctx, p->gradient);
    }
    free(t->peer);
}

/* Rows are dealt by number, so their shares differ by one row at most. `spare` is behind the rows
 * of all passes. */
void training_deal(const struct training *t, struct engine_row *row)
{
    size_t n = training_devices(t), rows = t->o->batch, at = 0;
    if (n == 1) return;
    struct engine_row *spare = t->row + rows * t->o->accumulate;
    for (size_t device = 0; device < n; device++)
        for (size_t i = device; i < rows; i += n)
            spare[at++] = row[i];
    for (size_t i = 0; i < rows; i++)
        row[i] = spare[i];
}

void training_peers_zero(struct training *t)
{
    size_t n = t->adapter->value_count;
    for (size_t i = 0; i < t->e->peers; i++) {
        const struct training_peer *p = &t->peer[i];
        p->e->be->zero(p->e->ctx, (struct mat){p->gradient, DTYPE_F32, n}, 1, n);
    }
}

void training_peers_add(struct training *t)
{
    for (size_t i = 0; i < t->e->peers; i++)
        t->e->be->peer_add(t->e->ctx, t->gradient, t->peer[i].e->ctx, t->peer[i].gradient,
                           t->adapter->value_count);
}

void training_peers_follow(struct training *t)
{
    for (size_t i = 0; i < t->e->peers; i++) {
        const struct training_peer *p = &t->peer[i];
        p->e->be->peer_copy(p->e->ctx, p->value, t->e->ctx, t->value, t->adapter->value_count);
        factors_set(p->factors, p->value);
    }
}

/* All of them, also after a failure: what is queued still has to write into the batches. */
err training_check_all(struct training *t)
{
    err first = t->e->be->check(t->e->ctx);
    for (size_t i = 0; i < t->e->peers; i++) {
        const struct engine *e = t->e->peer[i];
        err er = e->be->check(e->ctx);
        if (!err_is(first)) first = er;
    }
    return first;
}
