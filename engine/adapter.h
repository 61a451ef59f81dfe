/* One adapter in memory: per adapted module W = W0 + Bc Ac + s B A, or + s B R A. Small, mutable,
 * and apart from the base; many can be live over one engine. Values are float32.
 *
 * All trained values are one block (module by module in order of layer and kind; A, then B, then
 * R), which is what the optimizer and an update see; frozen ones are another. */
#ifndef CLIENT_ADAPTER_H
#define CLIENT_ADAPTER_H

#include "base/safetensors.h"
#include "engine/model/model.h"

enum { ADAPTER_A = 1, ADAPTER_B = 2, ADAPTER_R = 4 }; /* which factors train */

struct adapter_module {
    uint32_t layer;
    enum module_kind kind;
    uint32_t d_out, d_in;
    uint32_t rank;       /* 0: carry only */
    uint32_t carry_rank; /* 0: none */
    float scale;         /* s: alpha/r or alpha/sqrt(r), 1 as the state says */
    float *a;            /* (rank, d_in) */
    float *b;            /* (d_out, rank) */
    float *r;            /* (rank, rank), or NULL: s B A */
    float *carry_a;      /* (carry_rank, d_in), frozen */
    float *carry_b;      /* (d_out, carry_rank), frozen */
};

struct adapter {
    struct arena arena;
    uint32_t layers;
    unsigned trains;               /* ADAPTER_A | ADAPTER_B, ADAPTER_B, ADAPTER_R, ... */
    struct adapter_module *module; /* (count), by layer and kind */
    size_t count;
    float *value; /* (value_count) every trained tensor, one block */
    size_t value_count;
};

/* What one module is to have; module order is free. */
struct adapter_spec {
    uint32_t layer;
    enum module_kind kind;
    uint32_t rank, carry_rank;
    bool small_matrix; /* has R */
    double scale;
};

/* Zeroed tensors for the caller to fill. ERR_INPUT for a module twice, a layer or rank out of
 * range. */
err adapter_open(struct adapter *out, const struct arch *a, const struct adapter_spec *spec,
                 size_t count, unsigned trains);

struct adapter_file; /* agg/adapter/adapter_file.h */
struct adapter_fresh {
    const char
        *targets; /* "q,k,v,o,gate,up,down", or full names "model.layers.0.mlp.up_proj,..." */
    uint32_t rank;
    double alpha;
    bool rslora;
    uint64_t seed;
    uint64_t index; /* last part of the key of A's generator: the round, where there are rounds */
};
/* B zero, A uniform in +-1/sqrt(d_in) from rng_init("lora_A", seed, module name, index). Trains A
 * and B. */
err adapter_open_fresh(struct adapter *out, const struct arch *a, const struct adapter_fresh *f);
/* A PEFT directory or a Fedlora state file. `trains` 0: A and B, or R alone where the file has R.
 */
err adapter_open_path(struct adapter *out, const struct arch *a, const char *path, unsigned trains);
/* The same from a file already read, joined with its frozen factors where it needs them. */
err adapter_open_file(struct adapter *out, const struct arch *a, const struct adapter_file *file,
                      unsigned trains);
void adapter_close(struct adapter *ad);

/* The module of (layer, kind), or NULL. */
struct adapter_module *adapter_find(const struct adapter *ad, uint32_t layer,
                                    enum module_kind kind);

#endif
