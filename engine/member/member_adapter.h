/* A round's state as an adapter over our base, and back: what this member trains of it, what stays
 * frozen beside that, and the update file. The same inputs give the same bytes.
 *
 * The part that trains of a module whose state has the pair B (d_out, r), A (r, d_in) at scale s. The
 * member's rank is q; 0, or a rank above r, means r:
 *
 *   fresh     A of rank q drawn anew, B = 0, at the task's alpha
 *   else      the leading q columns of B and rows of A, or the (q, q) block of R, at scale s;
 *             what is left stays as a frozen carry: s B[:, q:] A[q:], or s B (R - block) A,
 *             or, where the method truncates, is not there
 *   a module that this member does not adapt is frozen whole
 *   gradient  the whole pair */
#ifndef ENGINE_MEMBER_ADAPTER_H
#define ENGINE_MEMBER_ADAPTER_H

#include "agg/adapter/adapter_file.h"
#include "engine/adapter.h"
#include "engine/member/member_state.h"

struct member_round {
    const char *run, *member, *method;
    const char *base; /* digest of our base, 64 hex */
    const char *state_path;
    const char *frozen_path;    /* NULL: none */
    const char *frozen_digest;  /* 64 hex, or "" */
    struct member_state *state; /* opened already, of these files; NULL: opened here */
    uint32_t round;
    uint32_t rank; /* of this member's factors; 0: as the state's */
    double alpha;
    bool rslora;
    bool evaluates;  /* nothing trains: the whole state */
    bool gradient;   /* instead of training: the mean gradient of what `trains` names */
    unsigned trains; /* ADAPTER_A | ADAPTER_B | ADAPTER_R */
    uint64_t seed;
    char *const *adapts; /* (adapts_count) modules; none: all */
    size_t adapts_count;
    double prox, prune_gamma, prune_lambda;
};

struct member_adapter {
    struct adapter adapter;
    struct member_state own;           /* opened for this adapter alone; or zero */
    const struct member_state *shared; /* round->state, which must outlive the adapter */
};

/* ERR_INPUT when the state is of another base or run, or does not fit this model. */
err member_adapter_open(struct member_adapter *out, const struct arch *arch,
                        const struct member_round *round);
void member_adapter_close(struct member_adapter *a);
/* Writes what was trained, canonical, replacing what is at `path`: the leading `rank` of it (0: all
 * of it). */
err member_adapter_write(const char *path, const struct member_adapter *a,
                         const struct member_round *round, uint32_t rank);

#endif
