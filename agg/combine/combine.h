/* Combines finished adapters into one, without a coordinator: PEFT directories of any ranks, scales
 * and target modules. The exact result is the weighted sum of the changes to W0:
 *
 *     exact = sum_k p_k s_k B_k A_k      p_k = w_k / sum w; p_k = w_k if a weight is negative
 *
 * An adapter without a module adds 0 to it. The method's row (`aggregate` in agg/round/method.h)
 * says how it is combined:
 *
 *     SUM       the exact sum, recompressed by QR and SVD, and cut as asked or as the method does
 *     FACTORS   the method's own next(), from an adapter of zeros; the report has its error
 *     RUN_ONLY  refused: the method trains a part of the factors that a run's members share
 *
 * Robust rules (agg/round/method_robust.h) look at s_k B_k A_k over all modules and change p_k.
 * Weight that they remove is dropped. The report is then of sum_k p_k s_k B_k A_k.
 *
 * The change of a DoRA adapter depends on the base. Its mean, also with plain adapters, is a DoRA
 * adapter, exact at the same rank (combine_dora.c).
 *
 * Tensors saved whole (modules_to_save, biases) are averaged, sum_k p_k x_k / sum_k p_k. Every
 * adapter must have them, with the same shapes.
 *
 * Memory does not depend on the number of adapters or modules, because adapters are mapped, each
 * thread reads one module at a time (float16 and bfloat16 are widened while it is in use), and
 * results go to a scratch file next to the output. Otherwise pure; call it from one thread. */
#ifndef AGG_COMBINE_H
#define AGG_COMBINE_H

#include "agg/algebra/lowrank.h"
#include "agg/round/method_options.h"
#include "agg/round/method_state.h"

struct combine_options {
    const struct method *method;
    const struct method_options *options; /* NULL: the defaults */
    const char *const *path; /* (count) PEFT directories, or states that have A and B */
    const double *weight;    /* (count) not 0, any unit; NULL: all the same */
    size_t count;
    struct lowrank_cut cut; /* of each module; only with SUM */
    bool stack;     /* the stack [c_1 B_1 | ...], [A_1; ...] itself, of rank sum r_k: no SVD */
    uint64_t bytes; /* largest size of the result (agg/algebra/budget.h); 0: no limit */
    bool any_base;  /* combine also adapters whose base_model_name_or_path differ */
    bool compare;   /* report how far the adapters agree */
    /* NULL, or opens an adapter in place of adapter_file_map_whole(), for other formats. */
    err (*open)(void *base, struct adapter_file *out, const char *path);
    /* NULL, or reads rows of a module's W0 (n, d_in), which DoRA needs. Several threads call it. */
    err (*base_rows)(float *out, void *base, const struct adapter_file_module *module, uint32_t row,
                     uint32_t n);
    void *base;
    const char *scratch; /* path prefix: SCRATCH.scratch.part is made, and removed at the end */
    /* NULL, or called after each module, by one thread at a time; an error stops the work. */
    err (*step)(void *context, size_t done, size_t of);
    void *context;
    int threads;
};

struct combine {
    size_t count;
    struct adapter_file_module *module; /* A and B, sorted by name */
    size_t saved_count;
    struct adapter_file_saved *saved; /* float32 */
    struct adapter_file_meta meta;    /* of the result */
    struct method_report report;      /* error: ||result - exact||_F */
    struct method_options options;
    struct lowrank_cut cut; /* as asked, else the method's own */
    uint64_t bytes;
    bool stack;
    bool dora; /* the result has magnitudes */
    err (*base_rows)(float *out, void *base, const struct adapter_file_module *module, uint32_t row,
                     uint32_t n);
    void *base;
    bool cut_to_sent; /* each module is cut to the largest rank that an adapter has there */
    struct adapter_file *file; /* (file_count) the adapters read */
    double *share, *p;         /* (file_count) p_k before and after the robust rule */
    size_t file_count;
    /* With `compare`: (count + 1) the cosines of agg/round/method_diagnose.h over all pairs of
     * adapters, of each module and last of all; no other field is set. Otherwise NULL. */
    struct method_report_row *compared;
    struct method_state state; /* the results' scratch */
    struct arena arena;
};

err combine_open(struct combine *out, const struct combine_options *options);
/* A PEFT directory, whole or absent. */
err combine_write(const struct combine *c, const char *dir, bool replace);
void combine_close(struct combine *c);

/* An independent check: recomputes module i by plain loops in float64, row by row. `result` is the
 * written adapter, read back (NULL: c->module). */
struct combine_verified {
    double error; /* ||result - exact||_F */
    double norm;  /* ||exact||_F */
    double noise; /* bound of the rounding of both, from the norms of all factors */
};
err combine_verify(struct combine_verified *out, const struct combine *c, size_t i,
                   const struct adapter_file *result);
/* The largest |result - mean| of tensor i that is saved whole, divided by the largest |mean|. */
err combine_verify_saved(double *error, const struct combine *c, size_t i,
                         const struct adapter_file *result);

#endif
