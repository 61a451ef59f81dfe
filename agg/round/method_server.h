/* What the server keeps for itself between rounds for its optimizer (formulas in
 * agg/round/method_options.h): a safetensors file of kind "memory" beside the state that names its digest
 * (fedlora.memory). It is never sent. Its modules are the run's, each twice:
 *
 *     first.<module>    momentum v or m     shapes of the trained factors lora_A, lora_B, lora_R;
 * of methods that add products lora_B (d_out, q) and lora_A (q, d_in), whose product it is
 *     second.<module>   second moments u    shapes of the trained factors
 *
 * all float32; what is absent is zero (u: tau^2). Its bytes are a function of the state, the memory
 * before and the updates. A module that nobody sent keeps its memory, as it keeps its factors. */
#ifndef AGG_METHOD_SERVER_H
#define AGG_METHOD_SERVER_H

#include "agg/round/method_cohort.h"
#include "agg/round/method_state.h"

struct method_memory { /* one module's, in a round; must not move while the round uses it */
    const struct adapter_file_module *first, *second; /* as they were; NULL: nothing yet */
    struct method_result next_first, next_second;
    struct lowrank_term term;
    struct arena arena;
};

/* Begins with the old memory as the next. Sets round->memory, and for methods that add products
 * round->server_lr and round->momentum. Nothing where the run has no server optimizer. */
err method_memory_open(struct method_memory *out, struct method_round *round,
                       const struct method_cohort *c, const struct method *method);
void method_memory_close(struct method_memory *m);
/* After the method's next(), where it adds products: v = beta1 v + this round's change,
 * recompressed so that it is off by at most `error` of its norm (0: nothing is cut). Errors of
 * earlier rounds shrink by beta1 each round, as v does. */
err method_memory_add(struct method_memory *m, const struct method_round *round,
                      const struct method *method, double error);

/* Puts module i's memory into the next file, which has two modules for each of the state's. */
err method_memory_put(struct method_state *file, size_t i, const char *module,
                      const struct method_memory *m);

#endif
