/* The modules of SmolLM2-135M, for benchmarks of aggregation that need no base model. */
#ifndef BENCH_MODULES_H
#define BENCH_MODULES_H

#include "agg/round/method.h"

#include <stdio.h>

enum { LAYERS = 30, KINDS = 7, MODULES = LAYERS * KINDS };
static const struct {
    const char *name;
    uint32_t d_out, d_in;
} kinds[KINDS] = {{"self_attn.q_proj", 576, 576}, {"self_attn.k_proj", 192, 576},
                  {"self_attn.v_proj", 192, 576}, {"self_attn.o_proj", 576, 576},
                  {"mlp.gate_proj", 1536, 576},   {"mlp.up_proj", 1536, 576},
                  {"mlp.down_proj", 576, 1536}};

static void make_modules(struct method_module modules[MODULES], char names[MODULES][64])
{
    for (size_t i = 0; i < MODULES; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / KINDS,
                 kinds[i % KINDS].name);
        modules[i] =
            (struct method_module){names[i], kinds[i % KINDS].d_out, kinds[i % KINDS].d_in};
    }
}

#endif
