/* Decisions on a member's call: its update, its next task. Contract in round.h. */
#include "coordinator/run/round.h"

/* An update that is not too late may count in the round that trains now; while a round is being
 * aggregated, late updates count in the round after it. A member has at most one update in each
 * round. */
static err judge_late(struct round_place *out, const struct round *r, const struct round_member *m,
                      uint32_t trained_round)
{
    uint32_t target = r->stage == ROUND_AGGREGATING ? r->published + 2 : r->published + 1;
    if (!r->rules.late_rounds)
        return err_make(ERR_STATE,
                        "round %u is closed and this run refuses late updates (the run is at "
                        "round %u); ask for the next task",
                        trained_round, round_under_way(r));
    if (target - trained_round > r->rules.late_rounds || target > r->rules.rounds)
        return err_make(ERR_STATE,
                        "round %u is closed and the run is at round %u: too late even for %s; ask "
                        "for the next task",
                        trained_round, round_under_way(r),
                        r->rules.late_rounds > 1 ? "a later round" : "the next round");
    if (trained_round < m->trained_round || m->counted_in > r->published)
        return err_make(ERR_STATE, "an update of %s already counts in round %u", m->id,
                        m->counted_in);
    *out = (struct round_place){.counted_in = target};
    return ERR_NONE;
}

/* The order of the checks matters. An update that is already durable gets its receipt again in
 * every phase, because the first receipt may have been lost with a crash or a connection. Wrong
 * rounds come before late ones, so that a member gets the true reason. */
err round_judge(struct round_place *out, const struct round *r, size_t member,
                uint32_t trained_round, const struct digest *digest)
{
    const struct round_member *m = &r->member[member];
    uint32_t under_way = r->published + 1;
    if (m->counted_in && m->trained_round == trained_round && digest_equal(&m->digest, digest)) {
        *out = (struct round_place){.counted_in = m->counted_in, .have = true};
        return ERR_NONE;
    }
    enum round_phase phase = round_phase(r);
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED)
        return err_make(ERR_STATE, "the run is %s", round_phase_name(phase));
    /* The member is ahead of a coordinator that was put back to an older copy of its store. It must
     * ask again, because Hello then tells both. */
    if (trained_round == 0 || trained_round > under_way ||
        (trained_round == under_way && r->stage == ROUND_WAITING))
        return err_make(trained_round ? ERR_STATE : ERR_INPUT,
                        "update for round %u, but the run is at round %u%s", trained_round,
                        under_way, r->stage == ROUND_WAITING ? ", which is not open yet" : "");
    if (m->gone) return err_make(ERR_STATE, "%s does not take part in this run any more", m->id);
    if (trained_round == under_way && m->refused_in == under_way)
        return err_make(ERR_STATE, "the update of %s for round %u was refused: %s", m->id,
                        trained_round, m->refusal);
    if (m->counted_in && m->trained_round == trained_round) {
        char have[DIGEST_TEXT_BYTES];
        digest_text(have, &m->digest);
        return err_make(ERR_STATE,
                        "a second update of %s for round %u with another digest; the one held "
                        "is %.16s",
                        m->id, trained_round, have);
    }
    if (m->admitting)
        return err_make(ERR_LIMIT, "an update of %s is being made durable; ask again", m->id);
    if (trained_round == under_way && (m->not_drawn || !round_is_drawn(r)))
        return err_make(ERR_STATE, "%s is not drawn for round %u; ask for the next task", m->id,
                        trained_round);
    if (trained_round < under_way || r->stage == ROUND_AGGREGATING)
        return judge_late(out, r, m, trained_round);
    /* Its update of an earlier round came late and was taken into this one. */
    if (m->counted_in >= under_way)
        return err_make(ERR_STATE, "the update of %s for round %u came late and counts in round %u",
                        m->id, m->trained_round, under_way);
    *out = (struct round_place){.counted_in = under_way};
    return ERR_NONE;
}

/* A member evaluates before its next training, and before it learns that the run is over. */
static bool should_evaluate(const struct round *r, const struct round_member *m)
{
    uint32_t every = r->rules.evaluate_every;
    if (every == 0 || !m->evaluates || m->evaluated >= r->published) return false;
    return r->published % every == 0 || r->published == r->rules.rounds;
}

/* A held run hands out nothing, except that a finished run still lets members evaluate its last
 * state. */
enum round_task round_task(const struct round *r, size_t member)
{
    const struct round_member *m = &r->member[member];
    enum round_phase phase = round_phase(r);
    bool held = r->hold != ROUND_WAITING && r->stage != ROUND_FINISHED;
    if (!held && should_evaluate(r, m)) return ROUND_TASK_EVALUATE;
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED) return ROUND_TASK_FINISHED;
    if (phase != ROUND_TRAINING) return ROUND_TASK_WAIT;
    if (m->gone || m->refused_in == round_under_way(r)) return ROUND_TASK_WAIT;
    bool waits =
        m->counted_in >= round_under_way(r) || m->admitting || m->not_drawn || !round_is_drawn(r);
    return waits ? ROUND_TASK_WAIT : ROUND_TASK_TRAIN;
}
