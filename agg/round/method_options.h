/* What a run may set beyond method and rank: "key=value" words, one table for all methods. They
 * come from `--option` and RunConfig.method_options, are checked here against the method, and stand
 * in every state's metadata as fedlora.options (a JSON object of what is not at its default, keys
 * sorted), so that a state still says all that the next one needs. Pure.
 *
 * Server optimizers work on the pseudo-gradient D = aggregate - current (reference 4.22):
 *
 *     fedavgm     v = beta1 v + D                       x += lr v
 *     fedadagrad  u = u + D^2                           x += lr D / (sqrt(u) + tau)
 *     fedadam     m = beta1 m + (1 - beta1) D, u = beta2 u + (1 - beta2) D^2
 *                                                       x += lr m / (sqrt(u) + tau)
 *     fedyogi     as fedadam, but u = u - (1 - beta2) D^2 sign(u - D^2)
 *
 * m, v begin at 0, u at tau^2 (Reddi et al., arXiv 2003.00295), no bias correction. Methods that
 * average what is trained take all four, per value; methods that add products to a carry take
 * fedavgm, its v being a low-rank pair; the rest take none.
 *
 * Robust rules: see agg/round/method_robust.h. */
#ifndef AGG_METHOD_OPTIONS_H
#define AGG_METHOD_OPTIONS_H

#include "agg/round/method.h"

enum method_server {
    METHOD_SERVER_NONE,
    METHOD_SERVER_FEDAVGM,
    METHOD_SERVER_FEDADAGRAD,
    METHOD_SERVER_FEDADAM,
    METHOD_SERVER_FEDYOGI
};
enum method_robust {
    METHOD_ROBUST_NONE,
    METHOD_ROBUST_NORM,
    METHOD_ROBUST_KRUM,
    METHOD_ROBUST_MEDIAN,
    METHOD_ROBUST_TRIMMED,
    METHOD_ROBUST_GEOMETRIC
};
enum method_tail { METHOD_TAIL_DROP, METHOD_TAIL_CARRY };
enum method_solve { METHOD_SOLVE_CLOSED, METHOD_SOLVE_COSINE };
enum method_basis { METHOD_BASIS_SEEDED, METHOD_BASIS_WEIGHTS, METHOD_BASIS_GRADIENT };

struct method_options {
    enum method_server server;
    double server_lr; /* 0 only where server is none: by default 1 for fedavgm, else 0.01 */
    double server_beta1, server_beta2, server_tau;
    enum method_robust robust;
    double robust_norm;     /* bound of a contribution's norm; 0: the median of the round's norms */
    uint32_t robust_faulty; /* members krum must bear; 0: as many as it can, (K - 3) / 2 */
    double robust_trim;     /* share of members cut off at each end */
    double prox;            /* FedProx's mu */
    double prune_gamma, prune_lambda;
    enum method_tail tail;
    double energy;
    uint64_t bytes; /* florist: for all modules of a round together; 0: by energy */
    double fair_lambda;
    enum method_solve fair_solve;
    enum method_basis basis;
};

/* Defaults, then the words. Unknown keys, keys of other methods, values out of range, keys given
 * twice and rules that the method cannot have are ERR_INPUT and say so. */
err method_options_parse(struct method_options *out, const struct method *method,
                         const char *const *option, size_t count);
/* fedlora.options: "" where everything is at its default. `read` checks as `parse` does. */
err method_options_text(const char **out, const struct method_options *options,
                        struct arena *arena);
err method_options_read(struct method_options *out, const struct method *method, const char *text);

struct method_option { /* for help texts */
    const char *key;
    const char *values;  /* "none|fedavgm|..." or "0..1" */
    const char *normal;  /* the default */
    const char *methods; /* names apart by spaces; NULL: all */
    const char *help;
};
const struct method_option *method_options_table(size_t *count);

#endif
