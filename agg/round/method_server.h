/* The server optimizer's memory between rounds (formulas in agg/round/method_options.h): a
 * safetensors file of kind "memory" beside the state, which names the file's digest
 * (fedlora.memory). It is never sent. It has two modules for each module of the run:
 *
 *     first.<module>    momentum v or m, in the shapes of the trained factors lora_A, lora_B,
 *                       lora_R. For methods that add products: lora_B (d_out, q) and lora_A (q,
 *                       d_in), whose product is v.
 *     second.<module>   second moments u, in the shapes of the trained factors
 *
 * All values are float32. An absent tensor is zero (u: tau^2). The file's bytes are a function of
 * the state, the memory before and the updates. A module that no member sent keeps its memory, as
 * it keeps its factors. */
#ifndef AGG_METHOD_SERVER_H
#define AGG_METHOD_SERVER_H

#include "agg/round/method_cohort.h"
#include "agg/round/method_state.h"

/* One module's memory in a round; must not move while the round uses it. */
struct method_memory {
    const struct adapter_file_module *first, *second; /* as they were; NULL: none yet */
    struct method_result next_first, next_second;
    struct lowrank_term term;
    struct arena arena;
};

/* The next memory starts as a copy of the old. Sets round->memory, and for methods that add
 * products round->server_lr and round->momentum. Does nothing where the run has no server
 * optimizer. */
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
