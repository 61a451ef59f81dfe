/* One LoRA adapter in memory. A module with weight W0 (d_out, d_in) computes with
 *
 *   W = W0 + carry_b carry_a + s b a      or, with the small matrix R,
 *   W = W0 + carry_b carry_a + s b r a
 *
 * An adapter is small, mutable and separate from the base, so several can be used over one engine.
 * Values are float32. Trained values lie in one block (modules by layer and kind; in a module A,
 * then B, then R): the optimizer works on this block and updates send it. Frozen values lie in a
 * second block. */
#ifndef ENGINE_ADAPTER_H
#define ENGINE_ADAPTER_H

#include "base/safetensors.h"
#include "engine/model/model.h"

enum { ADAPTER_A = 1, ADAPTER_B = 2, ADAPTER_R = 4 }; /* bits of the factors that train */

struct adapter_module {
    uint32_t layer;
    enum module_kind kind;
    uint32_t d_out, d_in;
    uint32_t rank;       /* 0: the module has only a carry */
    uint32_t carry_rank; /* 0: no carry */
    float scale;         /* s: alpha / rank, or alpha / sqrt(rank) with rslora */
    float *a;            /* (rank, d_in) */
    float *b;            /* (d_out, rank) */
    float *r;            /* (rank, rank), or NULL: the module has no small matrix */
    float *carry_a;      /* (carry_rank, d_in), frozen */
    float *carry_b;      /* (d_out, carry_rank), frozen */
    bool carry_borrowed; /* both belong to the caller of adapter_open() */
};

struct adapter {
    struct arena arena;
    uint32_t layers;
    unsigned trains;               /* bits of ADAPTER_A, ADAPTER_B, ADAPTER_R */
    struct adapter_module *module; /* (count), sorted by layer and kind */
    size_t count;
    float *value; /* (value_count) all trained tensors */
    size_t value_count;
};

/* One module of a new adapter; specifications may come in any order. */
struct adapter_spec {
    uint32_t layer;
    enum module_kind kind;
    uint32_t rank, carry_rank;
    bool small_matrix; /* has R */
    double scale;
    /* A carry that outlives the adapter, which then uses it in place; NULL: zeroed room for one. */
    const float *carry_a, *carry_b;
};

/* Tensors are zero; the caller fills them. ERR_INPUT for a module given twice, or a layer or rank
 * out of range. */
err adapter_open(struct adapter *out, const struct arch *a, const struct adapter_spec *spec,
                 size_t count, unsigned trains);

struct adapter_file; /* agg/adapter/adapter_file.h */
struct adapter_fresh {
    /* Short names for all layers ("q,k,v,o,gate,up,down"), "all-linear" for all modules of a base,
     * or full names of single modules ("model.layers.0.mlp.up_proj"), separated by commas. */
    const char *targets;
    uint32_t rank;
    double alpha;
    bool rslora;
    uint64_t seed;
    uint64_t index; /* the round, so that every round starts from another A; 0 without rounds */
};
/* B is zero, so the adapter changes nothing yet. A is uniform in +-1/sqrt(d_in), as PEFT's default,
 * from rng_init("lora_A", seed, module name, index). A and B train. */
err adapter_open_fresh(struct adapter *out, const struct arch *a, const struct adapter_fresh *f);
/* From a PEFT directory or a Fedlora state file. With `trains` 0, R trains if the file has R, else
 * A and B. */
err adapter_open_path(struct adapter *out, const struct arch *a, const char *path, unsigned trains);
/* The same from a file that is already read. A state without its frozen factors must have been
 * joined with their file. */
err adapter_open_file(struct adapter *out, const struct arch *a, const struct adapter_file *file,
                      unsigned trains);
void adapter_close(struct adapter *ad);

/* The module of (layer, kind), or NULL. */
struct adapter_module *adapter_find(const struct adapter *ad, uint32_t layer,
                                    enum module_kind kind);

#endif
