/* Measures a state on a member's held-out rows: mean loss, and accuracy of greedy completions. */
#ifndef ENGINE_MEMBER_EVALUATE_H
#define ENGINE_MEMBER_EVALUATE_H

#include "engine/engine.h"
#include "engine/member/member_adapter.h"
#include "engine/tokens/tokenizer.h"

struct member_evaluate {
    struct engine *engine;
    const struct tokenizer *tokenizer; /* NULL: no accuracy */
    const struct dataset *data;        /* held-out rows */
    const struct member_round *round;
    bool (*progress)(void *user, size_t done, size_t rows); /* or NULL; false: ERR_STOPPED */
    void *user;
};
struct member_evaluation {
    uint64_t rows;   /* with a learned token */
    double loss;     /* mean over the learned tokens; NAN: there are none */
    double accuracy; /* negative: no row has a completion */
};
err member_evaluate(struct member_evaluation *out, const struct member_evaluate *work);

#endif
