/* Names of the tensors of a PEFT adapter, as PEFT and other programs write them. Wrappers around
 * the model leave their names in them (PEFT, torch.compile, DDP, FSDP), some programs keep PEFT's
 * name of the adapter ("lora_A.default.weight"), and multimodal models have the language model
 * inside. All spellings are read to one name per module ("model.layers.0.self_attn.q_proj").
 * Pure. */
#ifndef AGG_ADAPTER_NAMES_H
#define AGG_ADAPTER_NAMES_H

#include "base/err.h"
#include "base/limits.h"

#include <stdbool.h>

enum adapter_name_part {
    ADAPTER_NAME_A,
    ADAPTER_NAME_B,
    ADAPTER_NAME_EMBEDDING_A, /* of an embedding: A (r, vocabulary), B (d_model, r) */
    ADAPTER_NAME_EMBEDDING_B,
    ADAPTER_NAME_MAGNITUDE, /* DoRA's m (d_out) */
    ADAPTER_NAME_WHOLE,     /* a tensor that replaces the base's: a bias, an embedding, a norm */
    ADAPTER_NAME_COPY,      /* the base's own tensor under modules_to_save, which is not used */
};

struct adapter_name {
    enum adapter_name_part part;
    char module[LIMIT_TENSOR_NAME_BYTES]; /* of a whole tensor with ".weight" or ".bias" */
    /* How the adapter names the language model: "model." for "model.layers.0...", "" for
     * "layers.0...", "model.language_model."; NULL: the name does not show it. */
    const char *root;
};

/* ERR_INPUT: a name that is too long, or a part that PEFT has and that is not supported. */
err adapter_name_read(struct adapter_name *out, const char *tensor);
/* The reverse of the change of the root: "model.layers.0..." with root "" is "layers.0...". */
err adapter_name_rooted(char out[LIMIT_TENSOR_NAME_BYTES], const char *module, const char *root);

#endif
