#include "client/session/session_train.h"

#include "base/digest.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

err session_trains(unsigned *out, char *const *word, size_t count)
{
    unsigned trains = 0;
    for (size_t i = 0; i < count; i++) {
        const char *w = word[i];
        unsigned bit = strcmp(w, "A") == 0   ? (unsigned)ADAPTER_A
                       : strcmp(w, "B") == 0 ? (unsigned)ADAPTER_B
                       : strcmp(w, "R") == 0 ? (unsigned)ADAPTER_R
                                             : 0u;
        if (bit == 0)
            return err_make(ERR_INPUT,
                            "the coordinator asks to train \"%.40s\"; this program knows A, B, R",
                            w);
        trains |= bit;
    }
    if (trains == 0) return err_make(ERR_INPUT, "the coordinator's task has nothing to train");
    *out = trains;
    return ERR_NONE;
}

/* ---------------------------------------------------------------- options */

static err choose_schedule(enum train_schedule *out, const char *word)
{
    static const char *const words[] = {"constant", "linear", "cosine"};
    static const enum train_schedule schedule[] = {TRAIN_CONSTANT, TRAIN_LINEAR, TRAIN_COSINE};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(word, words[i]) == 0) {
            *out = schedule[i];
            return ERR_NONE;
        }
    return word[0] == 0
               ? ERR_NONE
               : err_make(ERR_INPUT,
                          "the run's schedule \"%.40s\": expected constant, linear or cosine",
                          word);
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

err session_train_options(struct train_options *out, const Fedlora__V1__Training *t,
                          const struct member_round *r)
{
    struct train_options o = {0};
    train_defaults(&o);
    o.steps = t->steps;
    o.epochs = t->steps == 0 ? t->epochs : 0;
    if (t->batch != 0) o.batch = t->batch;
    if (t->accumulate != 0) o.accumulate = t->accumulate;
    if (t->lr != 0) o.lr = t->lr;
    if (t->beta1 != 0) o.beta1 = t->beta1;
    if (t->beta2 != 0) o.beta2 = t->beta2;
    if (t->eps != 0) o.eps = t->eps;
    o.weight_decay = t->weight_decay;
    o.clip = t->clip;
    o.dropout = t->dropout;
    o.warmup = t->warmup;
    o.shuffle = !t->no_shuffle;
    o.seed = order_seed(r, r->round);
    o.prox = r->prox;
    o.prune_gamma = r->prune_gamma;
    o.prune_lambda = r->prune_lambda;
    TRY(choose_schedule(&o.schedule, t->schedule));
    const double number[] = {o.epochs, o.lr,          o.weight_decay, o.beta1,
                             o.beta2,  o.eps,         o.clip,         o.dropout,
                             o.prox,   o.prune_gamma, o.prune_lambda};
    for (size_t i = 0; i < sizeof number / sizeof number[0]; i++)
        if (!isfinite(number[i]) || number[i] < 0)
            return err_make(ERR_INPUT,
                            "the run's training options hold %g; expected a number from 0 on",
                            number[i]);
    if (o.steps == 0 && o.epochs == 0)
        return err_make(ERR_INPUT, "the run's training options have neither steps nor epochs");
    if (o.beta1 >= 1 || o.beta2 >= 1 || o.dropout >= 1)
        return err_make(ERR_INPUT, "the run's beta1, beta2 and dropout must be below 1");
    if (o.prune_gamma > 1 || (o.prune_lambda > 0 && o.prune_gamma == 0))
        return err_make(ERR_INPUT, "the run's prune_gamma is %g, expected above 0 up to 1",
                        o.prune_gamma);
    *out = o;
    return ERR_NONE;
}

err session_gradient_options(struct train_gradient_options *out, const Fedlora__V1__Training *t,
                             const struct member_round *r)
{
    struct train_options o = {0};
    TRY(session_train_options(&o, t, r));
    *out = (struct train_gradient_options){.rows = o.steps * o.batch * o.accumulate,
                                           .batch = o.batch,
                                           .seed = order_seed(r, 0),
                                           .shuffle = o.shuffle};
    return ERR_NONE;
}
