/* Makes an adapter over this member's base model from the state of a round, and writes the update
 * file from the trained adapter. The same inputs give the same bytes.
 *
 * The state of a module is the pair B (d_out, r), A (r, d_in) at scale s. The member's rank is q;
 * 0, or a rank above r, means r. These factors train, and the rest is frozen:
 *
 *   fresh     A of rank q drawn anew, B = 0, at the task's alpha
 *   else      the leading q columns of B and rows of A, or the (q, q) block of R, at scale s;
 *             the rest becomes a frozen carry: s B[:, q:] A[q:], or s B (R - block) A,
 *             or it is dropped if the method truncates
 *   a module that this member does not adapt is frozen whole
 *   gradient  the whole pair */
#ifndef ENGINE_MEMBER_ADAPTER_H
#define ENGINE_MEMBER_ADAPTER_H

#include "agg/adapter/adapter_file.h"
#include "engine/adapter.h"
#include "engine/member/member_state.h"

struct member_round {
    const char *run, *member, *method;
    const char *base; /* digest of this member's base, 64 hex */
    const char *state_path;
    const char *frozen_path;    /* NULL: none */
    const char *frozen_digest;  /* 64 hex, or "" */
    const char *kept_path;      /* of files that the member keeps (member_kept.h and
                                   member_optimizer.h); NULL: none */
    struct member_state *state; /* these files, opened already; NULL: opened here */
    uint32_t round;
    uint32_t rank; /* rank of this member's factors; 0: the state's rank */
    double alpha;
    bool rslora;
    bool evaluates;  /* nothing trains; the adapter is the whole state */
    bool gradient;   /* the mean gradient of the factors in `trains`, instead of training */
    unsigned trains; /* ADAPTER_A | ADAPTER_B | ADAPTER_R */
    uint64_t seed;
    char *const *adapts; /* (adapts_count) names of modules; empty: all */
    size_t adapts_count;
    double prox, prune_gamma, prune_lambda;
};

bool member_round_adapts(const struct member_round *round, const char *module);

struct member_adapter {
    struct adapter adapter;
    struct member_state own;           /* opened for this adapter alone, or zero */
    const struct member_state *shared; /* round->state, which must outlive the adapter */
};

/* ERR_INPUT when the state belongs to another base or run, or does not fit this model. */
err member_adapter_open(struct member_adapter *out, const struct arch *arch,
                        const struct member_round *round);
void member_adapter_close(struct member_adapter *a);
/* Writes the update to `path` in canonical form, replacing an existing file. `rank` limits it to
 * the leading components of the trained factors; 0: all of them. */
err member_adapter_write(const char *path, const struct member_adapter *a,
                         const struct member_round *round, uint32_t rank);

#endif
