/* The state machine of one run: events in, time included; actions out. Pure: no disk, clock,
 * network or randomness, so the deployed coordinator, the simulation and the tests run the same
 * one. One owner.
 *
 * Round n trains from state n-1 and publishes state n; state 0 is the start. The owner feeds every
 * event to round_apply() and carries out the actions it returns; what must survive a crash (an
 * update's receipt, a published state, a hold) is made durable BEFORE its event is fed; that a
 * round has opened, before anyone is handed it. After a restart: round_init, round_restore,
 * round_restore_member for each member, then ROUND_ON_BEGIN.
 *
 * A round closes when everyone's update is in; or, with at least `quorum` in, once the deadline is
 * past (at once where there is no deadline). It never closes while an update is being made durable,
 * so an admitted update is counted in exactly one round. */
#ifndef COORDINATOR_ROUND_H
#define COORDINATOR_ROUND_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

enum round_phase {
    ROUND_WAITING,     /* for members, or for the start state */
    ROUND_TRAINING,    /* members train; updates come in */
    ROUND_AGGREGATING, /* closed; the next state is being made */
    ROUND_PAUSED,
    ROUND_FINISHED,
    ROUND_STOPPED,
    ROUND_FAILED, /* an operator may resume it: the failed step is tried again */
};

enum round_event_kind {
    ROUND_ON_BEGIN,     /* after init or restore */
    ROUND_ON_SHAPES,    /* the modules' shapes are known: the start state can be made */
    ROUND_ON_HELLO,     /* member */
    ROUND_ON_SEEN,      /* member */
    ROUND_ON_TASK,      /* member was handed the round under way */
    ROUND_ON_STEP,      /* member, round, step, steps */
    ROUND_ON_ADMIT,     /* member, round, digest: taken by round_judge(), now being made durable */
    ROUND_ON_RECEIPT,   /* member: that update is durable */
    ROUND_ON_REFUSAL,   /* member: that update was not admitted */
    ROUND_ON_EVALUATED, /* member, round: its evaluation of that round's result is durable */
    ROUND_ON_STARTED,   /* state 0 is durable */
    ROUND_ON_PUBLISHED, /* the state of the round under way is durable */
    ROUND_ON_TROUBLE,   /* the work could not be done now (disk full): tried again; reason */
    ROUND_ON_FAILURE,   /* the work cannot be done: the run fails; reason */
    ROUND_ON_TICK,
    ROUND_ON_PAUSE,
    ROUND_ON_RESUME,
    ROUND_ON_STOP, /* reason, or NULL: an operator's wish */
};

struct round_event {
    enum round_event_kind kind;
    uint64_t now_ms; /* monotonic, never 0 */
    size_t member;
    uint32_t round, step, steps;
    struct digest digest;
    const char *reason;
};

/* What the owner must do, as flags; the round meant is round_under_way(). */
enum round_action {
    ROUND_DO_START = 1,     /* make state 0 */
    ROUND_DO_OPEN = 2,      /* the round has begun */
    ROUND_DO_AGGREGATE = 4, /* make the next state from the updates counted in this round */
    ROUND_DO_END = 8,       /* finished, stopped or failed */
    ROUND_DO_WAKE = 16,     /* what round_task() says may have changed: answer who waits */
};

struct round_rules {
    uint32_t rounds;
    uint32_t quorum;      /* 0: everyone */
    uint64_t deadline_ms; /* of a round, from its opening; 0: none */
    bool late_next;       /* an update that misses its round is taken into the next one */
    /* Who takes part is drawn for each round (round_draw). It closes at its deadline with whoever
     * is in, nobody included, and never earlier: how long it took would tell who was drawn. Only
     * where that is everyone, always, it closes when all are in. */
    bool drawn;
    uint64_t absent_ms;      /* silent for this long: said to be absent */
    uint64_t retry_ms;       /* after trouble */
    uint32_t evaluate_every; /* rounds whose result members evaluate, and the last; 0: none */
};

struct round_member {
    char id[LIMIT_NAME_BYTES];
    bool joined;          /* has said hello to this run */
    bool not_drawn;       /* for the round under way */
    uint64_t seen_ms;     /* 0: not since the coordinator started */
    uint32_t task_round;  /* the round it was last handed */
    uint32_t step, steps; /* its progress there; steps 0: not told */
    uint32_t admitting;   /* the round its update in hand would count in; 0: none in hand */
    uint32_t admitting_trained;
    struct digest admitting_digest;
    uint32_t trained_round; /* its newest durable update: the round it was trained for, */
    uint32_t counted_in;    /* the round it counts in (0: it has none), */
    struct digest digest;   /* and its name */
    bool evaluates;         /* has held-out rows */
    uint32_t evaluated;     /* the newest round whose result it has evaluated */
};

/* How many members are in a state that decisions depend on, kept up to date by every event so that
 * no event has to look at all members. Index 0 is the round under way, 1 the round after it. */
struct round_counts {
    size_t updates[2];   /* durable and counted in that round */
    size_t admitting[2]; /* being made durable for that round */
    size_t present;      /* joined, and seen since the coordinator started */
    size_t drawn;        /* not left out of the round under way */
};

struct round {
    struct round_rules rules;
    size_t members;
    struct round_member *member; /* (members), sorted by id; owned */
    struct round_counts counts;
    enum round_phase stage; /* waiting, training, aggregating or finished */
    enum round_phase hold;  /* paused, stopped or failed; else waiting, which means none */
    bool shapes_known, starting, started;
    uint32_t published; /* rounds */
    uint32_t opened;    /* the newest round ever opened; kept over restarts */
    uint32_t drawn_for; /* the newest round that members were drawn for */
    bool by_chance;     /* and not everyone, always */
    uint64_t opened_ms, deadline_at_ms, retry_at_ms; /* 0: none */
    char reason[ERR_TEXT_BYTES];                     /* of failure or trouble */
};

struct round_restored {
    bool shapes_known, started;
    uint32_t published, opened;
    enum round_phase hold;
    const char *reason;
};

/* EVALUATE: the newest state, the result of the last published round. */
enum round_task { ROUND_TASK_WAIT, ROUND_TASK_TRAIN, ROUND_TASK_EVALUATE, ROUND_TASK_FINISHED };

struct round_place {
    uint32_t counted_in;
    bool have; /* this very update is already durable */
};

/* Ids are unique; they are copied and sorted. ERR_INPUT: no member, a quorum over their number, two
 * alike. */
err round_init(struct round *out, const struct round_rules *rules, const char *const *id,
               size_t ids);
void round_restore(struct round *r, const struct round_restored *was);
void round_restore_member(struct round *r, size_t member, const struct round_member *was);
void round_close(struct round *r);

unsigned round_apply(struct round *r, const struct round_event *event); /* -> enum round_action */
/* With rules.drawn: who takes part in the round that ROUND_DO_OPEN has just named, again after a
 * restart. Nobody is handed it before. */
void round_draw(struct round *r, const bool *drawn /* (members) */, bool by_chance);

/* May this member's update for round `trained_round` be taken, and where does it count? The error says
 * why not: ERR_INPUT wrong, ERR_STATE too late (ask for the next task), ERR_LIMIT try again. */
err round_judge(struct round_place *out, const struct round *r, size_t member,
                uint32_t trained_round, const struct digest *digest);
enum round_task round_task(const struct round *r, size_t member);

bool round_find(size_t *member, const struct round *r, const char *id);
enum round_phase round_phase(const struct round *r);
const char *round_phase_name(enum round_phase phase);
uint32_t round_under_way(const struct round *r); /* from 1; the last round when finished */
size_t round_updates(const struct round *r);     /* durable and counted in the round under way */
size_t round_present(const struct round *r);     /* members that have joined and were seen */
/* Members that the round under way waits for, their updates in or not. */
size_t round_awaited(const struct round *r);
/* The counters, by looking at every member: what round.counts must equal at any time. */
struct round_counts round_recount(const struct round *r);
uint64_t round_wake_ms(const struct round *r); /* when a tick is next wanted; 0: never */
const char *round_activity(const struct round *r, size_t member, uint64_t now_ms);
/* "2 of 4 members: icu (training, step 12 of 40), lab (not seen for 3m00s)" */
void round_waiting_for(char *out, size_t bytes, const struct round *r, uint64_t now_ms);

#endif
