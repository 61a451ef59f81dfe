#include "engine/member/member_options.h"

#include "base/digest.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

err member_options_factors(unsigned *out, char *const *name, size_t count)
{
    unsigned factors = 0;
    for (size_t i = 0; i < count; i++) {
        const char *w = name[i];
        unsigned bit = strcmp(w, "A") == 0   ? (unsigned)ADAPTER_A
                       : strcmp(w, "B") == 0 ? (unsigned)ADAPTER_B
                       : strcmp(w, "R") == 0 ? (unsigned)ADAPTER_R
                                             : 0u;
        if (bit == 0)
            return err_make(ERR_INPUT,
                            "the coordinator asks to train \"%.40s\"; this program knows A, B, R",
                            w);
        factors |= bit;
    }
    if (factors == 0) return err_make(ERR_INPUT, "the coordinator's task names no factor to train");
    *out = factors;
    return ERR_NONE;
}

static uint64_t order_seed(const struct member_round *r, uint32_t round)
{
    char text[3 * LIMIT_NAME_BYTES];
    int length = snprintf(text, sizeof text, "fedlora.order %llu %s %s %u",
                          (unsigned long long)r->seed, r->run, r->member, round);
    struct digest d = digest_of(text, (size_t)length);
    uint64_t seed = 0;
    for (int i = 0; i < 8; i++)
        seed |= (uint64_t)d.byte[i] << (8 * i);
    return seed;
}

static err check_penalties(const struct train_options *o)
{
    const double number[] = {o->prox, o->prune_gamma, o->prune_lambda};
    for (size_t i = 0; i < sizeof number / sizeof number[0]; i++)
        if (!isfinite(number[i]) || number[i] < 0)
            return err_make(ERR_INPUT,
                            "the task's prox, prune_gamma or prune_lambda is %g, expected at "
                            "least 0",
                            number[i]);
    if (o->prune_gamma > 1 || (o->prune_lambda > 0 && o->prune_gamma == 0))
        return err_make(ERR_INPUT, "the run's prune_gamma is %g, expected above 0 up to 1",
                        o->prune_gamma);
    return ERR_NONE;
}

err member_options_train(struct train_options *out, const struct training_options *training,
                         const struct member_round *r)
{
    struct train_options o = {0};
    train_set(&o, training);
    if (o.steps != 0) o.epochs = 0;
    o.seed = order_seed(r, r->round);
    o.prox = r->prox;
    o.prune_gamma = r->prune_gamma;
    o.prune_lambda = r->prune_lambda;
    if (o.steps == 0 && o.epochs == 0)
        return err_make(ERR_INPUT, "the run's training options have neither steps nor epochs");
    TRY(check_penalties(&o));
    *out = o;
    return ERR_NONE;
}

err member_options_gradient(struct train_gradient_options *out, const struct training_options *t,
                            const struct member_round *r)
{
    struct train_options o = {0};
    TRY(member_options_train(&o, t, r));
    *out = (struct train_gradient_options){.rows = o.steps * o.batch * o.accumulate,
                                           .batch = o.batch,
                                           .seed = order_seed(r, 0),
                                           .shuffle = o.shuffle};
    return ERR_NONE;
}

err member_options_private(struct train_private_options *out, const struct train_ledger *ledger,
                           const struct train_options *options, const struct member_round *round)
{
    struct train_private_options how = ledger->how;
    bool pass = round->round <= ledger->plan.basis_passes;
    how.train = options;
    if (round->gradient != pass)
        return err_make(ERR_INPUT,
                        "round %" PRIu32 ": the coordinator asks for %s, but the privacy plan has "
                        "a gradient in the first %u rounds only",
                        round->round, round->gradient ? "a gradient" : "training",
                        ledger->plan.basis_passes);
    if (round->gradient) {
        how.noise = ledger->summary.basis_noise;
        how.clip = ledger->plan.basis_clip;
        *out = how;
        return ERR_NONE;
    }
    uint64_t steps = train_private_steps(&how);
    if (steps != ledger->plan.steps)
        return err_make(ERR_INPUT,
                        "round %" PRIu32 ": the coordinator asks for %" PRIu64
                        " steps, but the privacy plan has %u per round",
                        round->round, steps, ledger->plan.steps);
    *out = how;
    return ERR_NONE;
}
