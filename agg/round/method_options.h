/* Options of a run beyond method and rank, as "key=value": one table for all methods. Options come
 * from `--option` and RunConfig.method_options and are checked here against the method. Those that
 * are not at their defaults are written into every state's metadata as fedlora.options (a JSON
 * object, keys sorted), because a state holds all that the next one needs. Pure.
 *
 * An option of all methods is a row of the table. An option of some methods is a row marked OWN,
 * whose key those methods list in `struct method`.
 *
 * Server optimizers work on the pseudo-gradient D = aggregate - current (Reddi et al., arXiv
 * 2003.00295):
 *
 *     fedavgm     v = beta1 v + D                       x += lr v
 *     fedadagrad  u = u + D^2                           x += lr D / (sqrt(u) + tau)
 *     fedadam     m = beta1 m + (1 - beta1) D, u = beta2 u + (1 - beta2) D^2
 *                                                       x += lr m / (sqrt(u) + tau)
 *     fedyogi     as fedadam, but u = u - (1 - beta2) D^2 sign(u - D^2)
 *
 * m and v start at 0, u at tau^2; there is no bias correction. Methods that average each trained
 * value take all four. Methods that add products to a carry take fedavgm, with v as a low-rank
 * pair. The rest take none.
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
    double server_lr; /* 0 only if server is none; default: 1 for fedavgm, else 0.01 */
    double server_beta1, server_beta2, server_tau;
    enum method_robust robust;
    double robust_norm;     /* largest norm of an update; 0: the median of the round's norms */
    uint32_t robust_faulty; /* faulty members krum tolerates; 0: the most it can, (K - 3) / 2 */
    double robust_trim;     /* share of members cut off at each end */
    double prox;            /* FedProx's mu */
    double prune_gamma, prune_lambda;
    enum method_tail tail;
    double energy;
    uint64_t bytes; /* largest size of a round's sum over all modules; 0: cut by energy */
    double fair_lambda;
    enum method_solve fair_solve;
    enum method_basis basis;
};

/* The defaults, then the options given. ERR_INPUT with the reason for unknown keys, keys of other
 * methods, values out of range, keys given twice, and rules that the method cannot have. */
err method_options_parse(struct method_options *out, const struct method *method,
                         const char *const *option, size_t count);
/* fedlora.options: "" if every option has its default. `read` makes the same checks as `parse`. */
err method_options_text(const char **out, const struct method_options *options,
                        struct arena *arena);
err method_options_read(struct method_options *out, const struct method *method, const char *text);

struct method_option { /* for help texts */
    const char *key;
    const char *values; /* "none|fedavgm|..." or "0..1" */
    const char *normal; /* the default */
    bool own;           /* only the methods that list the key in their `options` take it */
    const char *help;
};
const struct method_option *method_options_table(size_t *count);
/* Names of the methods that list `key`, as "fed-sb, ffa"; cut to `size` bytes. */
void method_options_takers(char *out, size_t size, const char *key);
/* The value of an option that is a choice of words, as the table spells it: "krum". */
const char *method_options_choice(const struct method_options *options, const char *key);

#endif
