/* LoRA factors on disk, in all the shapes they come in: a PEFT directory (adapter_config.json and
 * adapter_model.safetensors), a Fedlora state, an update, a file of frozen factors. All are read
 * into one struct: modules sorted by name, each with its factors, its rank and its scale, so that
 *
 *     W = W0 + carry_B carry_A + scale B A        or    ... + scale B R A
 *
 *   A (r, d_in)   B (d_out, r)   R (r, r)   carry_A (c, d_in)   carry_B (d_out, c)
 *
 * Module names have no "base_model.model." prefix ("model.layers.0.self_attn.q_proj"); tensor names
 * on disk do. Every shape, pairing, type, finiteness and scale error is ERR_INPUT and names the
 * file, the tensor, and what was expected. The struct borrows the mapped file until
 * adapter_file_close(). Reading is safe from several threads at once; opening shares nothing.
 *
 * Metadata of Fedlora's own files: fedlora.kind (state, update, frozen, memory), .run, .round,
 * .method, .base, .frozen (digest of the file of frozen factors), .member, .rank, .alpha, .rslora
 * (absent: false), .alpha_pattern (JSON, PEFT's rules), .modules (JSON: {"name":[d_out,d_in],...},
 * all modules the run adapts, also those a state has no tensor for), .dropped (JSON, per module:
 * what recompression of the carry has dropped so far, Frobenius), .options (JSON, what the run has
 * set), .memory (digest of what the server keeps beside the state). Ranks are those of the shapes.
 * Scale is alpha/r, or alpha/sqrt(r) with rslora; where factors are frozen r is fedlora.rank for
 * every module, and of B R A our own states make the scale 1. A file of frozen factors may hold A
 * alone.
 */
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

struct adapter_file_factor { /* absent: all zero */
    const float *f32;        /* (rows, cols); NULL where a mapped file holds another type */
    uint32_t rows, cols;
    const struct tensor *tensor; /* as it lies in the file; NULL when made in memory */
};

struct adapter_file_module {
    const char *name;
    uint32_t d_out, d_in; /* 0: neither the file nor fedlora.modules says */
    uint32_t rank;        /* of A, B, R; 0: none of them is here */
    uint32_t carry_rank;
    double alpha, scale; /* 0 without A, B, R; the carry has scale 1 */
    struct adapter_file_factor factor[ADAPTER_FILE_ROLES];
};

/* PEFT: a tensor saved whole beside A and B (modules_to_save, trained biases). Its value stands in
 * place of the base's. */
struct adapter_file_saved {
    const char *name; /* without "base_model.model." and ".base_layer" */
    const struct tensor *tensor;
};

struct adapter_file_meta { /* texts are never NULL: "" when absent */
    enum adapter_file_kind kind;
    const char *run, *method, *base, *frozen, *member; /* base, frozen: 64 hex digits */
    uint32_t round;                                    /* 0: none given */
    uint32_t rank;                                     /* the file's own word; 0: none */
    double alpha;                                      /* 0: none */
    bool rslora;
    bool fan_in_fan_out;         /* PEFT: the base stores W transposed; A and B are as always */
    const char *alpha_pattern;   /* JSON object */
    const char *target_modules;  /* PEFT: JSON list or text, as given */
    const char *base_path;       /* PEFT: base_model_name_or_path */
    const char *task_type;       /* PEFT; writing, NULL: CAUSAL_LM */
    const char *bias;            /* PEFT: none, lora_only or all; "" is none */
    const char *modules_to_save; /* PEFT: JSON list */
    const char *modules;         /* JSON, of a state; modules without tensors stand here */
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
    struct safetensors tensors;       /* what is borrowed from; also all metadata */
    char path[LIMIT_PATH_BYTES];
    struct arena arena;
};

/* Opens a directory (PEFT) or a file (by fedlora.kind; without it a state). Values are all checked
 * finite; types other than float32 are converted, so every f32 is set. For the engine and exports.
 */
err adapter_file_open(struct adapter_file *out, const char *path);
/* The same without touching values: factors of other types, or unaligned, have f32 NULL. For the
 * coordinator, which reads values once, module by module. */
err adapter_file_map(struct adapter_file *out, const char *path);
/* As adapter_file_map(), and takes a PEFT directory with tensors saved whole, which the others
 * refuse. */
err adapter_file_map_whole(struct adapter_file *out, const char *path);
void adapter_file_close(struct adapter_file *file);

/* A state without frozen factors and the file that holds them become one: A of `frozen`, and B
 * where the state has none, go into `state`, which borrows from `frozen` from then on.
 * `frozen_digest` (64 hex) must be the state's. A state that needs none, or holds all three, is an
 * error only when the digests differ.
 */
err adapter_file_join(struct adapter_file *state, const struct adapter_file *frozen,
                      const char *frozen_digest);
/* True where the state names frozen factors that it does not hold. */
bool adapter_file_needs_frozen(const struct adapter_file *state);

const struct adapter_file_module *adapter_file_find(const struct adapter_file *file,
                                                    const char *module); /* or NULL */
/* All values of one module are finite; else names the tensor and the first bad index. */
err adapter_file_check_finite(const struct adapter_file *file,
                              const struct adapter_file_module *module);
/* A factor as float32: its own memory where that is possible, else converted into the arena. */
err adapter_file_f32(const float **out, const struct adapter_file_factor *factor,
                     struct arena *arena);
/* Index of the first value that is not finite, or n. */
size_t adapter_file_first_bad(const float *x, size_t n);
/* The file's pages may go (they come back from disk when touched). All of them: the kernel brings
 * in pages around those asked for, and by how much is its own affair. */
void adapter_file_drop(const struct adapter_file *file);

/* "base_model.model.<module>.lora_A.weight" */
void adapter_file_tensor_name(char out[LIMIT_TENSOR_NAME_BYTES], const char *module,
                              enum adapter_file_role role);

/* Writing. `module` needs name, rank, alpha and the factors' f32, rows and cols; `meta` the words
 * that are to stand in the file (texts may be NULL). Canonical: the same content is the same bytes.
 * Values that are not finite and names that do not fit are refused before anything is written. */
err adapter_file_write(const char *path, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count, bool replace);
/* The same, the factors lying in `from`, whose pages are dropped as they are written: memory does
 * not grow with the file. */
err adapter_file_write_from(const char *path, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count,
                            const struct file_map *from);
err adapter_file_write_bytes(struct bytes *out, const struct adapter_file_meta *meta,
                             const struct adapter_file_module *module, size_t count);

/* A PEFT directory that Hugging Face PEFT loads: A and B only (fold R and the carry first: see
 * flatten.h). Ranks and alphas that differ go to rank_pattern and alpha_pattern; a module's alpha
 * may be any positive number. Written beside and renamed; with `replace` the old directory is set
 * aside until the new one is in place (what else was in it stays, in DIR.old-PID). */
err adapter_file_write_peft(const char *dir, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count, bool replace);
/* The same with tensors saved whole (float32; `saved[i].name` as above), all of it lying in `from`
 * (NULL: in memory), whose pages are dropped as they are written. */
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
