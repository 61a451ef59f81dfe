#include "engine/train/train_keep.h"

#include "engine/train/train_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The adapter on the host has the values too, because the gradient of the penalty is computed from
 * them. prox measures from the values at the beginning, which training_open() has copied before. */
err train_keep_resume(struct training *t)
{
    const struct train_keep *keep = t->o->keep;
    const struct train_snapshot *s = keep ? keep->resume : NULL;
    struct engine *e = t->e;
    size_t bytes = t->adapter->value_count * sizeof(float);
    if (!s) return ERR_NONE;
    if (s->count != t->adapter->value_count || s->steps > t->steps)
        return err_make(ERR_INPUT,
                        "training: the snapshot has %zu values after %llu steps, expected %zu "
                        "values and at most %llu steps",
                        s->count, (unsigned long long)s->steps, t->adapter->value_count,
                        (unsigned long long)t->steps);
    memcpy(t->adapter->value, s->value, bytes);
    e->be->copy_in(e->ctx, t->value, s->value, bytes);
    e->be->copy_in(e->ctx, t->first, s->first, bytes);
    e->be->copy_in(e->ctx, t->second, s->second, bytes);
    factors_set(t->factors, t->value);
    training_peers_follow(t);
    return training_check_all(t);
}

err train_keep_step(struct training *t, const struct train_snapshot *so_far, bool stopped)
{
    const struct train_keep *keep = t->o->keep;
    struct train_snapshot s = *so_far;
    struct engine *e = t->e;
    size_t bytes = t->adapter->value_count * sizeof(float);
    if (!keep || !keep->due(keep->user, stopped)) return ERR_NONE;
    float *block = malloc(3 * bytes + 1);
    if (!block) return err_sys(ENOMEM, "training: a snapshot");
    s.count = t->adapter->value_count;
    s.value = block;
    s.first = block + s.count;
    s.second = block + 2 * s.count;
    e->be->copy_out(e->ctx, s.value, t->value, bytes);
    e->be->copy_out(e->ctx, s.first, t->first, bytes);
    e->be->copy_out(e->ctx, s.second, t->second, bytes);
    err er = e->be->check(e->ctx);
    if (!err_is(er)) keep->take(keep->user, &s);
    free(block);
    return er;
}
