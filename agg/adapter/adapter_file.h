/* LoRA factors on disk, in four shapes:
 *
 *     PEFT directory    adapter_config.json and adapter_model.safetensors
 *     state             a round's result, from which the next round trains
 *     update            the factors that a member sends
 *     frozen factors    A and B of methods that do not train them
 *
 * All are read into one struct: modules sorted by name, each with its factors, rank and scale:
 *
 *     W = W0 + carry_B carry_A + scale B A        or    ... + scale B R A
 *
 *     A (r, d_in)   B (d_out, r)   R (r, r)   carry_A (c, d_in)   carry_B (d_out, c)
 *
 * Module names have no prefix "base_model.model." ("model.layers.0.self_attn.q_proj"); the tensor
 * names on disk have it, and those of a PEFT directory may have others (adapter_names.h). A wrong
 * shape, pairing, type, value or scale is ERR_INPUT and names the file, the tensor, and what was
 * expected. The struct borrows the mapped file until adapter_file_close(). One struct can be read
 * by several threads at once.
 *
 * Metadata of Fedlora's own files:
 *
 *     fedlora.kind           state, update, frozen, memory
 *     fedlora.run            name of the run
 *     fedlora.round          the round that a state starts or an update was trained in
 *     fedlora.method         name of the method
 *     fedlora.base           digest of the base model
 *     fedlora.frozen         digest of the file of frozen factors
 *     fedlora.member         id of the member that sent the update
 *     fedlora.rank           rank of the run or member
 *     fedlora.alpha          alpha of the run or member
 *     fedlora.rslora         "true"; absent: false
 *     fedlora.alpha_pattern  JSON, by PEFT's rules
 *     fedlora.modules        JSON {"name":[d_out,d_in],...}: all modules that the run adapts, also
 *                            those for which a state has no tensor
 *     fedlora.dropped        JSON, per module: norm (Frobenius) that recompression of the carry has
 *                            cut off so far
 *     fedlora.options        JSON, options of the run that are not at their defaults
 *     fedlora.memory         digest of the memory that the server keeps with the state
 *
 * Ranks are read from the shapes. The scale is alpha/r, or alpha/sqrt(r) with rslora. With frozen
 * factors, r is fedlora.rank for every module, because some modules are too small for that rank;
 * for B R A the scale is 1. A file of frozen factors may hold A alone. */
#ifndef AGG_ADAPTER_FILE_H
#define AGG_ADAPTER_FILE_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/safetensors.h"

enum adapter_file_kind {
    ADAPTER_FILE_PEFT,
    ADAPTER_FILE_STATE,
    ADAPTER_FILE_UPDATE,
    ADAPTER_FILE_FROZEN,
    ADAPTER_FILE_MEMORY, /* agg/round/method_server.h */
};

enum adapter_file_role {
    ADAPTER_FILE_A,
    ADAPTER_FILE_B,
    ADAPTER_FILE_R,
    ADAPTER_FILE_CARRY_A,
    ADAPTER_FILE_CARRY_B,
    ADAPTER_FILE_ROLES
};

struct adapter_file_factor { /* all zero: absent */
    const float *f32;        /* (rows, cols); NULL if a mapped file holds another type */
    uint32_t rows, cols;
    const struct tensor *tensor; /* as stored in the file; NULL if made in memory */
};

struct adapter_file_module {
    const char *name;
    uint32_t d_out, d_in; /* 0: given neither by tensors nor by fedlora.modules */
    uint32_t rank;        /* of A, B, R; 0: the file has none of them */
    uint32_t carry_rank;
    double alpha, scale; /* 0 without A, B, R; the carry has scale 1 */
    struct adapter_file_factor factor[ADAPTER_FILE_ROLES];
    /* PEFT only. The LoRA of an embedding has A (r, vocabulary) and B (d_model, r), so that B A is
     * the transposed change. */
    bool embedding;
    /* DoRA: m (d_out, 1). The weight is m (W0 + scale B A) / ||W0 + scale B A||, by rows. */
    struct adapter_file_factor magnitude;
};

/* PEFT: a tensor saved whole in addition to A and B (modules_to_save, trained biases, embeddings
 * and heads after a change of the vocabulary). It replaces the base's tensor. */
struct adapter_file_saved {
    const char *name; /* without PEFT's prefix and ".base_layer": "lm_head.weight" */
    const struct tensor *tensor;
};

struct adapter_file_meta { /* texts are never NULL: "" when absent */
    enum adapter_file_kind kind;
    const char *run, *method, *base, *frozen, *member; /* base, frozen: 64 hex digits */
    uint32_t round;                                    /* 0: none given */
    uint32_t rank;                                     /* fedlora.rank; 0: none */
    double alpha;                                      /* 0: none */
    bool rslora;
    bool fan_in_fan_out;         /* PEFT: the base stores W transposed; A and B are not */
    const char *alpha_pattern;   /* JSON object */
    const char *target_modules;  /* PEFT: JSON list or text, as given */
    const char *base_path;       /* PEFT: base_model_name_or_path */
    const char *task_type;       /* PEFT; writing, NULL: CAUSAL_LM */
    const char *bias;            /* PEFT: none, lora_only or all; "" is none */
    const char *modules_to_save; /* PEFT: JSON list */
    const char *root;            /* PEFT: adapter_names.h; NULL is "model." */
    const char *modules;         /* JSON, of a state: all modules, also those without tensors */
    const char *dropped;         /* JSON, of a state */
    const char *options;         /* JSON, of a state: agg/round/method_options.h */
    const char *memory;          /* of a state: digest of the server's memory, 64 hex digits */
};

struct adapter_file {
    struct adapter_file_meta meta;
    size_t count;
    struct adapter_file_module *module; /* sorted by name, unique */
    size_t saved_count;
    struct adapter_file_saved *saved; /* sorted by name; only after adapter_file_map_whole() */
    struct safetensors tensors;       /* the file that factors borrow from; has all metadata */
    char path[LIMIT_PATH_BYTES];
    struct arena arena;
};

/* Opens a directory (PEFT) or a file (by fedlora.kind; without it a state). All values are checked
 * to be finite, and types other than float32 are converted, so every f32 is set. For the engine and
 * exports. */
err adapter_file_open(struct adapter_file *out, const char *path);
/* The same without reading values. Factors of other types, or unaligned ones, have f32 NULL. For
 * the coordinator, which reads values once, module by module. */
err adapter_file_map(struct adapter_file *out, const char *path);
/* The same two, but a PEFT directory may have more than A and B of modules: tensors saved whole,
 * the LoRA of an embedding, magnitudes (DoRA). The functions above refuse these. The values of
 * tensors saved whole are not read. */
err adapter_file_open_whole(struct adapter_file *out, const char *path);
err adapter_file_map_whole(struct adapter_file *out, const char *path);
void adapter_file_close(struct adapter_file *file);

/* Joins a state with its file of frozen factors: `state` takes A from `frozen`, and B if it has
 * none, and borrows from `frozen` from then on. ERR_INPUT unless `frozen_digest` (64 hex) is the
 * one that the state names. A state that needs no frozen factors, or has them, is left as it is. */
err adapter_file_join(struct adapter_file *state, const struct adapter_file *frozen,
                      const char *frozen_digest);
/* True if the state names frozen factors that it does not hold. */
bool adapter_file_needs_frozen(const struct adapter_file *state);

/* Replaces the factors of `file` that `by` also has, and borrows from `by` from then on: a state
 * becomes the model of the member that keeps them. ERR_INPUT: `by` is of another run, base or
 * shape, or has nothing to replace. */
err adapter_file_replace(struct adapter_file *file, const struct adapter_file *by);

const struct adapter_file_module *adapter_file_find(const struct adapter_file *file,
                                                    const char *module); /* or NULL */
/* ERR_INPUT, with the tensor and the first index, if a value of the module is not finite. */
err adapter_file_check_finite(const struct adapter_file *file,
                              const struct adapter_file_module *module);
/* A factor as float32: the mapped memory if its type allows, else converted into the arena. */
err adapter_file_f32(const float **out, const struct adapter_file_factor *factor,
                     struct arena *arena);
/* Index of the first value that is not finite, or n. */
size_t adapter_file_first_bad(const float *x, size_t n);
/* ERR_INPUT "tensor NAME: value I is NaN, expected finite numbers" for the first of the values x[0]
 * .. x[n - 1] that is not finite; x[0] is value `first` of the tensor. */
err adapter_file_finite(const float *x, size_t n, const char *tensor, size_t first);
/* Drops the file's pages from memory; they are read from disk again when used. All pages, because
 * the kernel also reads an unknown number of pages around those that were used. */
void adapter_file_drop(const struct adapter_file *file);

/* True if the magnitudes of DoRA scale a module. */
bool adapter_file_is_dora(const struct adapter_file *file);

/* "base_model.model.<module>.lora_A.weight" */
void adapter_file_tensor_name(char out[LIMIT_TENSOR_NAME_BYTES], const char *module,
                              enum adapter_file_role role);

/* Writing. `module` needs name, rank, alpha, and f32, rows and cols of its factors. `meta` has the
 * metadata to write; its texts may be NULL. Canonical: the same content gives the same bytes.
 * ERR_INPUT before anything is written if a value is not finite or a name is too long. */
err adapter_file_write(const char *path, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count, bool replace);
/* The same for factors that are in the mapping `from`. Its pages are dropped as they are written,
 * so memory does not grow with the file. */
err adapter_file_write_from(const char *path, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count,
                            const struct file_map *from);
/* The same, into memory: for test fixtures, which send updates that are in no file. */
err adapter_file_write_bytes(struct bytes *out, const struct adapter_file_meta *meta,
                             const struct adapter_file_module *module, size_t count);

/* The size of the file that adapter_file_write() would write, from names, rows and cols. A factor
 * with rows counts even if its f32 is NULL. *values (may be NULL): the numbers in it. ERR_LIMIT for
 * sizes beyond 2^64. */
err adapter_file_bytes(uint64_t *bytes, uint64_t *values, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count);

/* An upper bound of the header of any file of `modules` modules, whose names have `name_bytes`
 * bytes together: for files of peers, before they are read (safetensors_check_header). */
uint64_t adapter_file_header_most(size_t modules, size_t name_bytes);

/* A directory that Hugging Face PEFT loads: A and B only (flatten.h folds R and the carry into
 * them). Ranks and alphas that differ go to rank_pattern and alpha_pattern; alpha may be any
 * positive number. The directory is written under another name and renamed. With `replace` the old
 * one is kept until the new one is in place; other files in it are left in DIR.old-PID. */
err adapter_file_write_peft(const char *dir, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count, bool replace);
/* The same with tensors saved whole (float32; `saved[i].name` as in adapter_file_saved). With
 * `from` all values are in that mapping, whose pages are dropped as they are written; NULL: in
 * memory. */
struct adapter_file_peft {
    const struct adapter_file_meta *meta;
    const struct adapter_file_module *module;
    size_t count;
    const struct adapter_file_saved *saved;
    size_t saved_count;
    const struct file_map *from;
    bool replace;
};
err adapter_file_save_peft(const char *dir, const struct adapter_file_peft *what);

#endif
