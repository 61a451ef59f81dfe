/* A run that diverges pauses once and says why, because every further round would cost all members'
 * time for nothing. The operator decides; after `run resume` it is not paused for this again.
 * Figures of single members are not trusted, so medians are compared. Simulations show divergence
 * instead. */
#include "coordinator/run/run.h"

#include "base/text.h"
#include "coordinator/store/store_recent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A guess among all tokens of a vocabulary has a loss of 11 to 12. */
static const double loss_ordinary = 16, loss_first = 64, loss_growth = 4, norm_growth = 1000;

enum { WHY_BYTES = 320 };

static void diverged(struct run *run, uint32_t round, const char *why)
{
    char text[WHY_BYTES + 160];
    enum round_phase phase = round_phase(&run->round);
    bool is_last = round >= run->round.rules.rounds;
    bool holds = !is_last &&
                 (phase == ROUND_WAITING || phase == ROUND_TRAINING || phase == ROUND_AGGREGATING);
    if (run->diverged || run->shop->simulated) return;
    snprintf(text, sizeof text,
             "%s: the learning rate may be too high, or a member sends wrong updates (fedlora run "
             "resume goes on, and the run is not paused for this again)",
             why);
    struct store_event event = {.event = "run.diverged", .text = why, .round = round};
    err e = holds ? store_hold(run->shop->store, run->id, "paused", text, &event)
                  : store_event_add(run->shop->store, run->id, &event);
    if (err_is(e)) return; /* the next figure tries again */
    run->diverged = true;
    LOG(LOG_WARN, "run.diverged", LOG_STR("run", run->config->name), LOG_INT("round", round),
        LOG_STR("reason", why), LOG_STR("paused", holds ? "yes" : "no"));
    if (holds)
        run_apply(run, &(struct round_event){
                           .kind = ROUND_ON_PAUSE, .now_ms = run_now_ms(run), .reason = text});
}

/* Compares a loss with the lowest one before it, and keeps the lowest. */
static void check_loss(struct run *run, uint32_t round, const char *what, double loss,
                       double *least)
{
    char why[WHY_BYTES], before[64] = "";
    double was = *least;
    double most = was > 0 ? fmax(loss_ordinary, loss_growth * was) : loss_first;
    if (loss > 0 && (was == 0 || loss < was)) *least = loss;
    if (loss <= most) return;
    if (was > 0) snprintf(before, sizeof before, ", and the lowest before it was %.4g", was);
    snprintf(why, sizeof why, "%s in round %u is %.4g%s", what, round, loss, before);
    diverged(run, round, why);
}

void run_diverge_round(struct run *run, const struct publish_job *job)
{
    if (run->config->privacy) return; /* its losses are not sent */
    check_loss(run, job->round, "the median of the members' training losses", job->loss_median,
               &run->loss_least);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Once most of the members that evaluate have done so, so that the first one does not decide
 * alone. */
void run_diverge_evaluated(struct run *run)
{
    size_t count = 0, all = 0;
    uint32_t round = run->round.published;
    double *loss = calloc(run->round.members, sizeof *loss);
    if (!loss) return;
    for (size_t i = 0; i < run->round.members; i++) {
        const struct store_evaluation *v = &run->member[i].evaluation;
        all += run->round.member[i].evaluates && !run->round.member[i].gone;
        if (v->round == round && v->rows) loss[count++] = v->loss;
    }
    qsort(loss, count, sizeof *loss, by_value);
    if (count && 2 * count > all)
        check_loss(run, round, "the median of the members' evaluation losses",
                   loss[(count - 1) / 2], &run->evaluated_least);
    free(loss);
}

void run_diverge_state(struct run *run, uint32_t round, double norm)
{
    char why[WHY_BYTES];
    double was = run->state_norm;
    run->state_norm = norm;
    if (isfinite(norm) && !(was > 0 && norm > norm_growth * was)) return;
    snprintf(why, sizeof why,
             "the norm of the state of round %u is %.4g, and that of the round before was %.4g",
             round, norm, was);
    diverged(run, round, why);
}

err run_diverge_load(struct run *run)
{
    char why[WHY_BYTES] = "";
    struct store_recent_round newest = {0};
    size_t count = 0;
    TRY(store_recent_rounds(&newest, &count, run->shop->store, run->id, 1));
    run->loss_newest = newest.train_loss;
    TRY(store_losses(&run->loss_least, &run->evaluated_least, run->shop->store, run->id));
    TRY(store_last_event(why, sizeof why, run->shop->store, run->id, "run.diverged"));
    run->diverged = *why != 0;
    return ERR_NONE;
}

/* Once for a round, so that a member cannot fill the store. If most members fail, it is of no
 * use to wait for the others. */
err run_failing(struct run *run, size_t member, uint32_t round, const char *reason)
{
    const struct round *r = &run->round;
    const struct round_member *m = &r->member[member];
    char tame[ROUND_REFUSAL_BYTES], why[WHY_BYTES + ROUND_REFUSAL_BYTES];
    size_t failing = 0;
    if (run->config->privacy)
        return err_make(ERR_INPUT,
                        "run %s: the failure of a training reveals something that its privacy "
                        "budget does not count",
                        run->config->name);
    if (round != round_under_way(r) || round_phase(r) != ROUND_TRAINING)
        return err_make(ERR_STATE, "round %u is not open; ask for the next task", round);
    if (m->failing_in == round) return ERR_NONE;
    snprintf(tame, sizeof tame, "%s", reason);
    text_tame(tame);
    struct store_event event = {
        .event = "member.failing", .text = tame, .round = round, .member = m->id};
    TRY(store_event_add(run->shop->store, run->id, &event));
    LOG(LOG_WARN, "member.failing", LOG_STR("run", run->config->name), LOG_STR("member", m->id),
        LOG_INT("round", round), LOG_STR("error", tame));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_FAILING,
                                         .now_ms = run_now_ms(run),
                                         .member = member,
                                         .round = round,
                                         .reason = tame});
    for (size_t i = 0; i < r->members; i++)
        failing += r->member[i].failing_in == round;
    snprintf(why, sizeof why, "the training of %zu of %zu members fails in round %u (%s: %s)",
             failing, round_awaited(r), round, m->id, tame);
    why[WHY_BYTES - 1] = 0;
    if (2 * failing > round_awaited(r)) diverged(run, round, why);
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}
