#include "engine/member/member_state.h"

#include "engine/factors.h"
#include "engine/member/member_adapter.h"

#include <string.h>

static err check_state(const struct adapter_file *state, const struct member_round *r)
{
    const struct adapter_file_meta *meta = &state->meta;
    if (strcmp(meta->base, r->base) != 0)
        return err_make(ERR_INPUT,
                        "the state of round %u is for the base %.16s..., expected %.16s...",
                        r->round, meta->base, r->base);
    if (strcmp(meta->run, r->run) != 0)
        return err_make(ERR_INPUT, "the state of round %u belongs to run \"%s\", expected \"%s\"",
                        r->round, meta->run, r->run);
    return ERR_NONE;
}

err member_state_open(struct member_state *out, const struct member_round *r)
{
    struct member_state s = {0};
    err e;
    TRY_OUT(e, adapter_file_open(&s.file, r->state_path));
    TRY_OUT(e, check_state(&s.file, r));
    if (r->frozen_path != NULL) {
        TRY_OUT(e, adapter_file_open(&s.frozen, r->frozen_path));
        TRY_OUT(e, adapter_file_join(&s.file, &s.frozen, r->frozen_digest));
    }
    if (adapter_file_needs_frozen(&s.file)) {
        e = err_make(ERR_INPUT,
                     "the state of round %u needs frozen factors that the task does not name",
                     r->round);
        goto out;
    }
    *out = s;
    s = (struct member_state){0};
out:
    member_state_close(&s);
    return e;
}

void member_state_close(struct member_state *s)
{
    for (size_t i = 0; i < MEMBER_STATE_PACKED; i++)
        factors_close(s->packed[i]);
    adapter_file_close(&s->file);
    adapter_file_close(&s->frozen);
    *s = (struct member_state){0};
}

/* Five blocks of values in training: on the host and on the device, the gradient, two moments. */
uint64_t member_state_bytes(const struct member_state *s, uint32_t rank)
{
    uint64_t bytes = 1;
    for (size_t i = 0; i < s->file.count; i++) {
        const struct adapter_file_module *m = &s->file.module[i];
        uint64_t width = (uint64_t)m->d_in + m->d_out, own = rank ? rank : m->rank;
        bytes += width * sizeof(float) * (5 * own + m->carry_rank);
    }
    return bytes;
}
