/* Adapters made by anyone become one, with no coordinator: PEFT directories of any ranks, scales
 * and target modules. What is combined is what each adds to W0,
 *
 *     exact = sum_k p_k s_k B_k A_k        p_k = w_k / sum w;  an adapter without a module adds 0
 * there
 *
 * Methods that carry (flora) give the exact sum, cut where asked; methods that average factors
 * (fedit) need one rank and scale and report what they lose. Memory: the adapters are mapped and
 * read one module a thread at a time; the result is held. */
#ifndef AGG_COMBINE_H
#define AGG_COMBINE_H

#include "agg/lowrank.h"
#include "agg/method.h"

struct combine_options {
    const struct method *method;
    const char *const *path; /* (count) PEFT directories, or states that have A and B */
    const double *weight;    /* (count) > 0, any unit; NULL: all the same */
    size_t count;
    struct lowrank_cut cut; /* of each module; only where the method carries */
    uint64_t bytes; /* 0, or the result's size at most: ranks are spent where they count most */
    int threads;
};

struct combine {
    size_t count;
    struct adapter_file_module *module; /* A and B, sorted by name; scale as meta says */
    struct adapter_file_meta meta;      /* rslora, fan_in_fan_out as they are to be written */
    struct method_report report;        /* error: ||result - exact||_F */
    uint32_t rank_total;                /* largest stack of one module */
    struct adapter_file *file;          /* (file_count) the adapters read */
    double *p;
    size_t file_count;
    struct arena arena;
};

err combine_open(struct combine *out, const struct combine_options *options);
void combine_close(struct combine *c);

/* Recomputes module i's exact sum densely, by plain loops in float64, and gives ||result -
 * exact||_F and
 * ||exact||_F; `result` is what was written, read back (NULL: c->module). */
err combine_verify(double *error, double *norm, const struct combine *c, size_t i,
                   const struct adapter_file *result);

#endif
