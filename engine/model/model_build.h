/* What model.c, model_config.c, model_hf.c and model_gguf.c share while a base model is being
 * opened; for no one else. Order: a description (struct arch) from config.json or GGUF keys,
 * model_check_arch(), then the slots that such a model has, each filled from the file. */
#ifndef CLIENT_MODEL_BUILD_H
#define CLIENT_MODEL_BUILD_H

#include "base/safetensors.h"
#include "engine/model/model.h"

struct model_file {
    struct safetensors tensors;
    char name[LIMIT_NAME_BYTES]; /* of the file in its directory */
};

/* One tensor that the architecture has. */
struct model_slot {
    char name[LIMIT_TENSOR_NAME_BYTES]; /* Hugging Face's */
    char gguf[64];
    struct weight *weight;
    uint32_t rows, cols;
    bool vector;         /* one-dimensional in files, (rows, 1) here */
    uint32_t rope_heads; /* heads whose rows a Llama GGUF permutes; 0: never permuted */
};

/* Shapes that make sense and are within the limits. Texts begin with the field's name. */
err model_check_arch(const struct arch *a);
/* Takes m->layer from m->arena, every weight absent. */
err model_take_layers(struct model *m);
/* All slots of m->arch in order of name; without lm_head.weight when tied. Borrow m. */
err model_slots(struct model_slot **out, size_t *count, struct model *m, struct arena *arena);
/* Fills a slot; ERR_INPUT names the type when it cannot be computed with. The shape has been
 * checked. */
err model_fill(const struct model_slot *slot, const void *data, enum dtype dtype,
               const char *type_name);

/* config.json and, where there is one, generation_config.json of a directory. */
err model_config_read(struct model *m, const char *directory);
err model_hf_open(struct model *m);   /* m->path is a directory */
err model_gguf_open(struct model *m); /* m->path is a file */

#endif
