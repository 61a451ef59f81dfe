#include "coordinator/run/run_draw.h"

#include "base/rng.h"

#include <errno.h>
#include <stdlib.h>

/* Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S): each member is
 * drawn with probability (still to be drawn) / (members left). The stream depends on nothing but
 * seed and round, so runs of different methods with one seed have the same cohorts. */
void run_draw_cohort(bool *drawn, const struct run_draw_cohort *of)
{
    struct rng rng;
    size_t wanted = of->count;
    REQUIRE(of->count <= of->members);
    rng_init(&rng, "cohort", of->seed, "", of->round);
    for (size_t i = 0; i < of->members; i++) {
        drawn[i] = rng_below(&rng, of->members - i) < wanted;
        wanted -= drawn[i];
    }
}

/* Dropped members are not drawn, as if the run had been created without them. */
static struct run_draw_cohort cohort_of(const struct run *run, uint32_t round)
{
    size_t left = run_config_left(run->config);
    size_t count = (size_t)run->config->cohort + run->config->over_select;
    return (struct run_draw_cohort){.members = left,
                                    .count = count < left ? count : left,
                                    .seed = run->config->seed,
                                    .round = round};
}

/* In order of their ids, whatever their indices are. */
static void draw_publicly(bool *drawn, const struct run *run, bool *scratch)
{
    const struct round *r = &run->round;
    const struct run_draw_cohort of = cohort_of(run, r->opened);
    run_draw_cohort(scratch, &of);
    for (size_t i = 0, k = 0; i < r->members; i++) {
        size_t m = r->order[i];
        drawn[m] = !run_config_dropped(run->config, r->member[m].id) && scratch[k++];
    }
}

/* The seed of this round is derived from the one that the ledger's first line commits to, so an
 * auditor can repeat the draw and the coordinator cannot choose the members. The seed is wiped,
 * because it reveals all rounds' draws. */
static err draw_secretly(bool *drawn, const struct run *run, const struct cohort *cohort)
{
    const struct round *r = &run->round;
    const struct cohort last = {.run = run->config->name, .round = r->rules.rounds, .q = 1};
    struct cohort_seed seed;
    err e = store_private_seed(&seed, run->shop->store, run->id);
    if (!err_is(e)) cohort_seed_before(&seed, &seed, &last, r->opened);
    for (size_t i = 0; i < r->members && !err_is(e); i++)
        drawn[i] = cohort_has(&seed, cohort, r->member[i].id);
    sodium_memzero(&seed, sizeof seed);
    return e;
}

/* Members that are not drawn are not asked to train. */
err run_draw(struct run *run)
{
    struct round *r = &run->round;
    if (!r->rules.drawn || r->drawn_for == r->opened || r->opened != round_under_way(r))
        return ERR_NONE;
    struct cohort cohort = {.run = run->config->name,
                            .round = r->opened,
                            .q = run_privacy_sampling(run->config, &run->options, r->opened)};
    err e = ERR_NONE;
    bool *drawn = calloc(2 * r->members, sizeof *drawn);
    if (!drawn) return err_sys(ENOMEM, "the members of run %s", run->config->name);
    if (r->rules.secret)
        e = draw_secretly(drawn, run, &cohort);
    else
        draw_publicly(drawn, run, drawn + r->members);
    if (!err_is(e)) round_draw(r, drawn, r->rules.secret && cohort.q < 1);
    free(drawn);
    return e;
}

/* The same stream as in run_draw_cohort(), up to the member. Members that were added or dropped
 * since that round change the answer for it. */
bool run_draw_has(const struct run *run, size_t member, uint32_t round)
{
    const struct round *r = &run->round;
    struct run_draw_cohort of = cohort_of(run, round);
    struct rng rng;
    if (!r->rules.cohort) return true;
    rng_init(&rng, "cohort", of.seed, "", of.round);
    for (size_t i = 0, k = 0; i < r->members; i++) {
        size_t m = r->order[i];
        bool dropped = run_config_dropped(run->config, r->member[m].id);
        bool drawn = !dropped && rng_below(&rng, of.members - k++) < of.count;
        if (m == member) return drawn;
        of.count -= drawn;
    }
    return false;
}
