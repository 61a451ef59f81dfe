/* Faulty members: a share of them changes each update after training and before it is handed in, or
 * trains on wrong answers; others never come back. The members follow from the seed.
 *
 *     sign-flip        the change turned around: start - (trained - start)
 *     scale:FACTOR     start + FACTOR (trained - start)
 *     noise:SIGMA      trained + SIGMA times standard normal values
 *     nan              values that are not numbers
 *     label-shuffle    before training, the member's rows swap their learned tokens
 *
 * `start` are the factors that the member began its round with; a gradient starts from 0. */
#ifndef SIM_ATTACK_H
#define SIM_ATTACK_H

#include "sim/fleet.h"
#include "sim/pool.h"

enum attack_kind {
    ATTACK_NONE,
    ATTACK_SCALE, /* a sign flip has the factor -1 */
    ATTACK_NOISE,
    ATTACK_NAN,
    ATTACK_LABELS,
};
struct attack {
    enum attack_kind kind;
    char name[24]; /* as it is written, without its number */
    double share;  /* of the members that do so */
    double amount; /* factor or sigma */
    double vanish; /* share of the members that never come back */
    uint64_t seed;
};

/* "sign-flip 5%"; NULL: none. Sets kind, name, share and amount. ERR_INPUT says what was wrong. */
err attack_parse(struct attack *out, const char *text);
/* Adds what decides results, if there is an attack. */
void attack_digest(struct digest_stream *s, const struct attack *a);

struct attack_plan {
    const struct attack *attack;
    bool *is; /* (members) the member attacks; exactly the share of them, rounded */
    /* (members) The round in which the member vanishes, evenly from 1 to the last; 0: never. It is
     * handed a task of that round, which is never finished, and none afterwards. */
    uint32_t *vanishes;
    struct dataset *data; /* (members) ATTACK_LABELS: the attackers' rows with swapped answers */
    struct arena arena;   /* holds all of it */
};
err attack_open(struct attack_plan *out, const struct attack *a, const struct fleet *f,
                uint32_t rounds);
void attack_close(struct attack_plan *p);
/* The rows that a member trains on: its own, or the changed ones. */
const struct dataset *attack_data(const struct attack_plan *p, const struct fleet *f,
                                  size_t member);
/* If the member changes its updates: writes this one again, changed, with its new digest and size.
 * The paths of t->round must be valid. */
err attack_update(struct pool_task *t, const struct attack_plan *p, const struct fleet *f,
                  size_t member);

#endif
