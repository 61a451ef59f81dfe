/* Shared by the files of engine/model while a base model is opened; not for other folders. Order: a
 * description (struct arch) from config.json or GGUF keys, model_check_arch(), then the slots that
 * such a model has, each filled from the file. */
#ifndef ENGINE_MODEL_BUILD_H
#define ENGINE_MODEL_BUILD_H

#include "base/safetensors.h"
#include "engine/model/model.h"

struct model_file {
    struct safetensors tensors;
    char name[LIMIT_NAME_BYTES]; /* file name without the directory */
};

/* One tensor of the architecture, with its names and the place for its data. */
struct model_slot {
    char name[LIMIT_TENSOR_NAME_BYTES]; /* in Hugging Face files */
    char gguf[64];                      /* in GGUF files */
    struct weight *weight;
    uint32_t rows, cols;
    bool vector;         /* one-dimensional in files, (rows, 1) here */
    bool norm;           /* a vector that family.norm_plus is for */
    uint32_t rope_heads; /* heads whose rows GGUF files may permute; 0: never permuted */
};

/* Checks that the sizes are within the limits and fit each other. Error texts name the field. */
err model_check_arch(const struct arch *a);
err model_check_rope(const struct rope *r, uint32_t rotated);
/* Allocates m->layer in m->arena with all weights absent. */
err model_take_layers(struct model *m);
/* All slots of m->arch sorted by name, without lm_head.weight if tied. They point into m. */
err model_slots(struct model_slot **out, size_t *count, struct model *m, struct arena *arena);
/* The same with lm_head.weight also if tied, for adapters, which can change the head alone. */
err model_slots_with_head(struct model_slot **out, size_t *count, struct model *m,
                          struct arena *arena);
/* The slot with the name of `module` and `ending`, such as ".weight"; NULL: there is none. */
struct model_slot *model_slot_find(struct model_slot *slot, size_t count, const char *module,
                                   const char *ending);
/* Fills a slot whose shape the caller has checked. ERR_INPUT for a type that cannot be computed
 * with. */
err model_fill(const struct model_slot *slot, const void *data, enum dtype dtype,
               const char *type_name);

/* Reads config.json and, if it exists, generation_config.json. */
err model_config_read(struct model *m, const char *directory);
/* Reads the sizes of a config.json of any family that states them by the usual names, with no check
 * of what the model computes. `dtype`: the type of the weights as it states it, else DTYPE_BF16. */
err model_config_shapes(struct model *m, enum dtype *dtype, const char *path);
/* The error for which model_config_read() would refuse this config.json. */
err model_config_check(const char *path);
/* "WHERE: the weights are quantised by METHOD ..." with what to give instead. base: the name of the
 * model that they were made from, or NULL; a name without a slash is left out. */
err model_refuse_quantised(const char *where, const char *method, const char *base);
/* Refuses open files with tensors that only a method of quantisation writes. */
err model_check_quantised(const struct model *m);
/* The error for a directory without safetensors; says which other formats it has. */
err model_refuse_formats(const char *directory);
err model_hf_open(struct model *m);   /* m->path is a directory */
err model_gguf_open(struct model *m); /* m->path is a file */

/* A key with the prefix of the architecture, such as "llama.block_count". */
struct gguf_key {
    char text[96];
};
struct gguf_key gguf_key_of(const struct model *m, const char *name);
/* arch.rope and window_rope from the keys; then, once the sizes are checked, from the tensors of
 * factors. */
err gguf_read_rope(struct model *m);
err gguf_read_rope_factors(struct model *m);

#endif
