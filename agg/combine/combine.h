/* Adapters made by anyone become one, with no coordinator: PEFT directories of any ranks, scales
 * and target modules. What is combined is what each adds to W0,
 *
 *     exact = sum_k p_k s_k B_k A_k     p_k = w_k / sum w; an adapter without a module adds 0 there
 *
 * Methods whose result is that sum give it recompressed by QR and SVD, cut where asked: flora;
 * fedex, the same from adapters of one rank and scale; flexlora, unless told otherwise cut to the
 * largest rank a module came with (tail=drop) or not (tail=carry); florist, by its energy or bytes.
 * Methods that combine factors (fedit, hetlora, lora-fair) run their own next() from an adapter of
 * zeros and report what that loses. Others train part of what all members share in a run's state
 * (fed-sb, ffa, rolora, fedsvd) and are refused.
 *
 * Robust rules (agg/round/method_robust.h) see s_k B_k A_k over all modules and change p_k; what that
 * takes from their sum belongs to nothing. The report is then of sum_k p_k s_k B_k A_k.
 *
 * Tensors saved whole (modules_to_save, biases) are averaged, sum_k p_k x_k / sum_k p_k, and must
 * be in every adapter, of one shape.
 *
 * Memory: adapters are mapped, one module a thread is read at a time (float16 and bfloat16 widened
 * for as long), results go to a scratch file beside the output: neither the number of adapters nor
 * that of modules counts. Pure but for that file; call it from one thread. */
#ifndef AGG_COMBINE_H
#define AGG_COMBINE_H

#include "agg/algebra/lowrank.h"
#include "agg/round/method_options.h"
#include "agg/round/method_state.h"

struct combine_options {
    const struct method *method;
    const struct method_options *options; /* NULL: the defaults */
    const char *const *path; /* (count) PEFT directories, or states that have A and B */
    const double *weight;    /* (count) > 0, any unit; NULL: all the same */
    size_t count;
    struct lowrank_cut cut; /* of each module; only where the method gives the sum */
    bool stack; /* flora: the stack [c_1 B_1 | ...], [A_1; ...] itself, of rank sum r_k: no SVD */
    uint64_t bytes; /* 0, or the result's size at most: ranks are spent where they count most */
    bool compare;   /* say how far the adapters agree */
    const char *scratch; /* beside the output: SCRATCH.scratch.part, gone in the end */
    /* NULL, or called as each module is done, by one thread at a time; an error stops all. */
    err (*step)(void *context, size_t done, size_t of);
    void *context;
    int threads;
};

struct combine {
    size_t count;
    struct adapter_file_module *module; /* A and B, sorted by name; scale as meta says */
    size_t saved_count;
    struct adapter_file_saved *saved; /* float32 */
    struct adapter_file_meta meta;    /* as it is to be written */
    struct method_report report;      /* error: ||result - exact||_F */
    struct method_options options;
    struct lowrank_cut cut; /* as asked, or the method's own */
    uint64_t bytes;
    bool stack;
    bool cut_to_sent;          /* each module, to the largest rank it came with */
    struct adapter_file *file; /* (file_count) the adapters read */
    double *share, *p;         /* (file_count) w_k / sum w, and what a robust rule made of it */
    size_t file_count;
    /* With `compare`, a module and last in total: the cosines of agg/round/method_diagnose.h over all
     * pairs of adapters, nothing else; else NULL. */
    struct method_report_row *compared;
    struct method_state state; /* the results' scratch */
    struct arena arena;
};

err combine_open(struct combine *out, const struct combine_options *options);
/* A PEFT directory, whole or absent. */
err combine_write(const struct combine *c, const char *dir, bool replace);
void combine_close(struct combine *c);

/* Recomputes by plain loops in float64, row by row, what was asked for: ||result - exact||_F and
 * ||exact||_F of module i; `result` is what was written, read back (NULL: c->module). */
err combine_verify(double *error, double *norm, const struct combine *c, size_t i,
                   const struct adapter_file *result);
/* The largest |result - mean| of the i-th tensor saved whole, over the largest |mean|. */
err combine_verify_saved(double *error, const struct combine *c, size_t i,
                         const struct adapter_file *result);

#endif
