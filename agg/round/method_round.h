/* The interface of the methods' files: one module of a round, and the module's result. For
 * agg/round/, agg/methods/ and agg/combine/. Functions run on several threads, one module each, and
 * touch nothing shared. */
#ifndef AGG_METHOD_ROUND_H
#define AGG_METHOD_ROUND_H

#include "agg/algebra/lowrank.h"
#include "agg/round/method_options.h"

struct method_memory; /* agg/round/method_server.h */

struct method_round {
    const struct adapter_file_module *module; /* of the state the updates started from */
    const struct adapter_file_module *frozen; /* of the file of frozen factors; NULL: not given */
    const struct adapter_file_module *const *update; /* (count), NULL where a member sent none */
    /* (count), sum 1, or less after a robust rule. The missing weight goes to the state's factors
     * if the method averages; it is dropped if the method adds products. */
    const double *p;
    size_t count;       /* contributions, in order of member id */
    uint32_t number;    /* of the round of training that closes: 1, 2, ... */
    double dropped;     /* norm that the carry's recompression has dropped so far, this module */
    double error_share; /* of the carry's norm that may be dropped by the end of this round */
    uint32_t rank_max;  /* this module's share of a budget of bytes, where there is one */
    const struct method_options *options;
    /* For method_step(), in methods that average. NULL: no server optimizer. */
    struct method_memory *memory;
    /* Methods that add products to a carry, with server=fedavgm: the change of carry and pair
     * together is server_lr times the exact change of this round, plus this term (if it is there),
     * so v = beta1 v + D gives x += lr v. Without an optimizer server_lr is 1. */
    double server_lr;
    const struct lowrank_term *momentum;
    /* NULL, or to be called when a member's factors have been read: their pages may be dropped, so
     * that memory does not grow with the number of members. They may be read again. */
    void (*done)(const struct method_round *round, size_t k);
    const void *files; /* for done() */
};

/* The members that own the terms of a stack, so that their pages can go as the stack is read. */
struct method_stack {
    const struct method_round *round;
    size_t *member; /* (terms) the member that owns it; SIZE_MAX: none */
};
/* stack->done, with a struct method_stack as context. */
void method_stack_done(void *context, size_t term);

/* A module's next factors: `module` has rank, carry_rank and factors, whose values are in `arena`
 * or in the state's file. The rest of `module` is filled in by the caller. */
struct method_result {
    struct arena arena;
    struct adapter_file_module module;
    struct method_report_row row;
    double dropped; /* in all rounds so far */
};

/* A zeroed factor of this shape in the result's arena; *values is where to write. */
err method_result_take(float **values, struct method_result *out, enum adapter_file_role role,
                       uint32_t rows, uint32_t cols);
/* The factor as it was in `from`. */
void method_result_keep(struct method_result *out, const struct adapter_file_module *from,
                        enum adapter_file_role role);
/* The carry becomes the decomposition cut after q, as float32. */
err method_result_carry(struct method_result *out, const struct lowrank_svd *svd, uint32_t q);

/* out (count) float32 = sum_k p_k x_k in float64, x_k being one factor of every member, or of the
 * state where a member sent none; a member of smaller rank holds the leading rows or columns, and
 * the rest of its x_k is the state's. */
err method_mean(float *out, const struct method_round *round, enum adapter_file_role role,
                size_t count);
/* The mean alone, not rounded; or what robust=median or trimmed puts in its place. */
err method_mean_exact(double *sum, const struct method_round *round, enum adapter_file_role role,
                      size_t count);

/* Where a method averages: out (count) = the factor after the server optimizer's step towards
 * `aggregate` (without one: the aggregate, rounded). method_mean() does it to its mean; a method
 * that corrects the mean does it afterwards, once a factor. */
err method_step(float *out, const double *aggregate, const struct method_round *round,
                enum adapter_file_role role, size_t count);

/* After method_step() on B, where the method then publishes B T for it (T (r, r) row-major;
 * fedsvd's new axes): momentum becomes m T, which is the same product, and second moments u (T o
 * T), which is exact for a rotation of values that are not correlated and keeps them at or above
 * zero. */
err method_rebase(const struct method_round *round, const double *T);

/* One module at the start of a run, for a method's start(). */
struct method_beginning {
    const struct method_start *start;
    const struct method_options *options;
    const struct method_module *module;
    const struct adapter_file_module *initial; /* NULL: starts at zero */
    const struct adapter_file_module *frozen;  /* NULL: the method has none */
};

#endif
