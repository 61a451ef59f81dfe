/* The state machine of one run: events go in (time included), actions come out. Pure: it uses no
 * disk, clock, network or randomness, so the deployed coordinator, a simulation and the tests run
 * the same one. One owner.
 *
 * Round n trains from state n-1 and publishes state n; state 0 is the start. The owner feeds every
 * event to round_apply() and carries out the actions it returns. Order of durability:
 *
 *     an update's receipt, a published state, a hold    durable BEFORE their event is fed
 *     the opening of a round                            durable before a member gets the round
 *
 * After a restart: round_init(), round_restore(), round_restore_member() for each member, then
 * ROUND_ON_BEGIN.
 *
 * A round closes when the updates of all members are in, or as many as the cohort has members; or,
 * with at least `quorum` updates, once its deadline is past or the grace that follows the quorum
 * (at once if it has neither). It never closes while an update is being made durable, so every
 * admitted update is counted in exactly one round. A quorum of all members counts those whose
 * update was refused, so that such a round waits for an operator, but not those that are gone or
 * excused, or absent when the round opened if the rules skip those.
 *
 * An owner with more runs than it wants to serve at once holds some of them back: rules.queues. */
#ifndef COORDINATOR_ROUND_H
#define COORDINATOR_ROUND_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

enum round_phase {
    ROUND_WAITING,     /* for members to join, or for the start state */
    ROUND_TRAINING,    /* members train; updates arrive */
    ROUND_AGGREGATING, /* the round is closed; the next state is being made */
    ROUND_PAUSED,
    ROUND_FINISHED,
    ROUND_STOPPED,
    ROUND_FAILED, /* an operator may resume the run: the failed step is tried again */
    ROUND_QUEUED, /* other runs come first, see rules.queues */
    ROUND_PHASES  /* their number */
};

/* After the colon: the fields of struct round_event that are set besides kind and now_ms. */
enum round_event_kind {
    ROUND_ON_BEGIN,     /* after init or restore */
    ROUND_ON_SHAPES,    /* the modules' shapes are known, so the start state can be made */
    ROUND_ON_HELLO,     /* a member joined: member */
    ROUND_ON_SEEN,      /* a call of a member arrived: member */
    ROUND_ON_TASK,      /* a member was handed the round under way: member */
    ROUND_ON_STEP,      /* a member's progress: member, round, step, steps */
    ROUND_ON_ADMIT,     /* an update that round_judge() accepted is being made durable:
                           member, round, digest */
    ROUND_ON_RECEIPT,   /* that update is durable: member */
    ROUND_ON_REFUSAL,   /* that update was not admitted: member */
    ROUND_ON_DAMAGE,    /* a durable update is no longer readable, and the next state was not made;
                           ROUND_ON_REOPEN follows: member, digest */
    ROUND_ON_UNFIT,     /* a durable update was taken out of the round under way, which may wait for
                           an operator without it; if the round was being aggregated,
                           ROUND_ON_RECOUNT follows: member, digest, reason */
    ROUND_ON_EXCUSE,    /* an operator closes the round under way without this member: member */
    ROUND_ON_REOPEN,    /* the next state was not made; members have the whole deadline again */
    ROUND_ON_RECOUNT,   /* the next state was not made; the round may close without the updates that
                           were taken out of it */
    ROUND_ON_LEAVE,     /* no round waits for the member any more: member */
    ROUND_ON_RETURN,    /* rounds wait for it again: member */
    ROUND_ON_FAILING,   /* a member's training of the round fails: member, round, reason */
    ROUND_ON_EVALUATED, /* a member's evaluation of a round's result is durable: member, round */
    ROUND_ON_STARTED,   /* state 0 is durable */
    ROUND_ON_PUBLISHED, /* the state of the round under way is durable */
    ROUND_ON_TROUBLE,   /* the work cannot be done now (disk full) and is tried again: reason */
    ROUND_ON_FAILURE,   /* the work cannot be done at all, so the run fails: reason */
    ROUND_ON_TICK,      /* time has passed */
    ROUND_ON_ENTER,     /* with rules.queues: the run may begin */
    ROUND_ON_TURN,      /* with rules.queues: it may open one round */
    ROUND_ON_PAUSE,     /* reason; NULL: an operator paused the run */
    ROUND_ON_RESUME,
    ROUND_ON_STOP, /* reason; NULL: an operator stopped the run */
};

struct round_event {
    enum round_event_kind kind;
    uint64_t now_ms; /* monotonic, never 0 */
    size_t member;   /* index in round.member */
    uint32_t round, step, steps;
    struct digest digest;
    const char *reason;
};

/* Flags: actions that the owner must carry out, all about round_under_way(). */
enum round_action {
    ROUND_DO_START = 1,     /* make state 0 */
    ROUND_DO_OPEN = 2,      /* the round has opened: make that durable */
    ROUND_DO_AGGREGATE = 4, /* make the next state from the updates counted in this round */
    ROUND_DO_END = 8,       /* the run is finished, stopped or failed */
    ROUND_DO_WAKE = 16,     /* results of round_task() may have changed: answer waiting members */
};

struct round_rules {
    uint32_t rounds;
    uint32_t began;       /* the round whose state the run was created from; 0: its own start */
    uint32_t quorum;      /* 0: all members, or the whole cohort; see round_quorum() */
    uint64_t deadline_ms; /* of a round, from its opening; 0: none */
    uint64_t grace_ms;    /* from the quorum's last update to the closing; 0: none */
    bool skips_absent;    /* do not wait for members that are absent when a round opens */
    bool queues;          /* begin after ROUND_ON_ENTER, and open each round after ROUND_ON_TURN */
    uint32_t late_rounds; /* an update counts if it is at most this many rounds late; 0: never */
    bool drawn;           /* participants are drawn for each round (round_draw) */
    /* The draw is secret. Such a round closes at its deadline with the updates it has, even none,
     * and never earlier, because its duration would reveal who was drawn. Only if every member
     * always takes part does it close when all updates are in. */
    bool secret;
    /* The draw is public, and this number of updates closes the round. More members may be drawn,
     * so that slow ones are not waited for. 0: no such draw. */
    uint32_t cohort;
    uint64_t absent_ms;      /* a member that was silent for this long is absent */
    uint64_t retry_ms;       /* wait after ROUND_ON_TROUBLE */
    uint32_t evaluate_every; /* members evaluate every N-th round's result, and the last; 0: none */
};

enum { ROUND_REFUSAL_BYTES = 160 };
struct round_member {
    char id[LIMIT_NAME_BYTES];
    bool joined;          /* has said hello to this run */
    bool not_drawn;       /* for the round under way */
    uint64_t seen_ms;     /* last call; 0: none since the coordinator started */
    uint32_t task_round;  /* the round it was last handed */
    uint32_t step, steps; /* its progress in that round; steps 0: not reported */

    /* The update that is being made durable. */
    uint32_t admitting;         /* the round it would count in; 0: there is none */
    uint32_t admitting_trained; /* the round it was trained for */
    struct digest admitting_digest;

    /* Its newest durable update. */
    uint32_t counted_in;    /* the round it counts in; 0: there is none */
    uint32_t trained_round; /* the round it was trained for: earlier if it came late */
    struct digest digest;

    bool evaluates;     /* it has held-out rows */
    uint32_t evaluated; /* the newest round whose result it has evaluated */

    bool gone;           /* dropped from the run or from the federation */
    const char *held;    /* why its administrator keeps it out, in words; NULL: no reason. Static */
    uint32_t refused_in; /* the newest round that its update was taken out of; 0: none */
    uint32_t excused_in; /* the newest round that an operator closes without it; 0: none */
    uint32_t skipped_in; /* the newest round that does not wait for it, because it was absent;
                            0: none. Not restored. Its update counts if it comes in time */
    uint32_t failing_in; /* the newest round whose training failed; 0: none. Not restored */
    char refusal[ROUND_REFUSAL_BYTES]; /* the reason for refused_in, or for failing_in */
};

/* How many members are in a state that decisions depend on, kept up to date by every event so that
 * no event has to look at all members. Index 0 is the round under way, 1 the round after it. */
struct round_counts {
    size_t updates[2];   /* durable and counted in that round */
    size_t admitting[2]; /* being made durable for that round */
    size_t present;      /* joined, seen since the coordinator started, and not gone */
    size_t drawn;   /* take part in the round under way: not left out, excused, skipped or gone, or
                            their update is in */
    size_t refused; /* of these, members whose update was refused */
};

struct round {
    struct round_rules rules;
    size_t members;
    struct round_member *member; /* (members), sorted by id, then those added later; owned */
    size_t *order;               /* (members) indices of the members, sorted by id; owned */
    struct round_counts counts;
    enum round_phase stage; /* waiting, training, aggregating or finished */
    enum round_phase hold;  /* paused, stopped or failed; ROUND_WAITING means no hold */
    bool shapes_known, starting, started;
    bool entered, has_turn; /* with rules.queues */
    size_t ahead;           /* set by the owner, for round_waiting_for(): runs that come first */
    uint32_t published;     /* rounds published */
    uint32_t opened;        /* the newest round ever opened; kept over restarts */
    uint32_t drawn_for;     /* the newest round that members were drawn for */
    bool by_chance;         /* that draw leaves members out by chance */
    uint64_t opened_ms, deadline_at_ms, retry_at_ms; /* 0: none */
    uint64_t began_ms;                               /* of ROUND_ON_BEGIN */
    uint64_t quorum_at_ms;       /* the quorum of the round under way was in; 0: it is not */
    uint64_t skip_at_ms;         /* members that are absent then are skipped; 0: that is done */
    char reason[ERR_TEXT_BYTES]; /* of failure or trouble */
};

struct round_restored {
    bool shapes_known, started;
    uint32_t published, opened;
    enum round_phase hold;
    const char *reason;
};

/* EVALUATE is about the newest state, the result of the last published round. */
enum round_task { ROUND_TASK_WAIT, ROUND_TASK_TRAIN, ROUND_TASK_EVALUATE, ROUND_TASK_FINISHED };

struct round_place {
    uint32_t counted_in;
    bool have; /* this very update is already durable */
};

/* Ids must be unique; they are copied and sorted. ERR_INPUT: no member, a quorum larger than their
 * number, or two equal ids. */
err round_init(struct round *out, const struct round_rules *rules, const char *const *id,
               size_t ids);
/* Adds a member at the end, so that the indices of the others stay. ERR_INPUT: it is one
 * already. */
err round_add(struct round *r, const char *id);
/* Changes quorum, deadline_ms, grace_ms, skips_absent, late_rounds or rounds, from the round under
 * way on unless it is being aggregated. A ROUND_ON_TICK must follow. */
void round_set_rules(struct round *r, const struct round_rules *rules);
/* Members whose update of the round under way was refused may send it again. */
void round_forgive(struct round *r);
void round_restore(struct round *r, const struct round_restored *was);
void round_restore_member(struct round *r, size_t member, const struct round_member *was);
void round_close(struct round *r);

/* Returns flags of enum round_action. */
unsigned round_apply(struct round *r, const struct round_event *event);
/* With rules.drawn: sets the members that take part in the round that ROUND_DO_OPEN has just
 * opened. Called again after a restart. Until then no member is handed the round. */
void round_draw(struct round *r, const bool *drawn /* (members) */, bool by_chance);

/* May this member's update for round `trained_round` be accepted, and in which round does it count?
 *
 *     ERR_INPUT   no: it is wrong
 *     ERR_STATE   no: it is too late, or the run is not open; ask for the next task
 *     ERR_LIMIT   not now: try again */
err round_judge(struct round_place *out, const struct round *r, size_t member,
                uint32_t trained_round, const struct digest *digest);
enum round_task round_task(const struct round *r, size_t member);

bool round_find(size_t *member, const struct round *r, const char *id);
enum round_phase round_phase(const struct round *r);
const char *round_phase_name(enum round_phase phase);
uint32_t round_under_way(const struct round *r); /* from 1; the last round if finished */
/* The smallest number of updates that closes the round under way; at least 1. */
size_t round_quorum(const struct round *r);
/* The number of updates that closes the round under way before its deadline. */
size_t round_wanted(const struct round *r);
size_t round_updates(const struct round *r); /* durable and counted in the round under way */
/* When the round under way closes with the updates it has, if they are a quorum; 0: never. */
uint64_t round_closes_ms(const struct round *r);
/* With rules.queues: all that the run needs for its next round is a turn. */
bool round_wants_turn(const struct round *r);
size_t round_present(const struct round *r); /* members that joined and were seen */
/* Members that take part in the round under way, with or without an update. */
size_t round_awaited(const struct round *r);
/* Computes the counters by looking at every member. round.counts must equal the result at any
 * time. */
struct round_counts round_recount(const struct round *r);
bool round_is_drawn(const struct round *r);    /* its members are known */
uint64_t round_wake_ms(const struct round *r); /* when the next tick is needed; 0: never */
/* "dropped", "absent", "not drawn", "refused", "waiting", "training" or "submitted". */
const char *round_activity(const struct round *r, size_t member, uint64_t now_ms);
/* "2 of 4 members: icu (training, step 12 of 40), lab (not seen for 3m00s)" */
void round_waiting_for(char *out, size_t bytes, const struct round *r, uint64_t now_ms);
/* The same for members: without names of others, times and operators' texts, so that it stays the
 * same while the run waits for the same. */
void round_wait_reason(char *out, size_t bytes, const struct round *r);

#endif
