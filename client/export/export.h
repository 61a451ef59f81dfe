/* Writing a change in the formats of other programs. The change of each module comes as one plain
 * pair of factors (agg's struct flatten: delta = B A, scale 1, already cut to the rank or error
 * asked for). Files are written under a temporary name and renamed; without `replace` an existing
 * path is ERR_INPUT. */
#ifndef CLIENT_EXPORT_H
#define CLIENT_EXPORT_H

#include "agg/adapter/flatten.h"
#include "engine/model/model.h"

/* ERR_INPUT unless every module exists in this base with the same shape. If a digest is known (64
 * hex digits; "" or NULL: not known) the base must have it too, which reads the whole base. */
err export_check_base(const struct flatten *delta, const struct model *base, const char *digest);

/* A PEFT directory: alpha = rank, with rank_pattern and alpha_pattern where ranks differ.
 * `base_path` is recorded as base_model_name_or_path; may be NULL. */
err export_peft(const char *dir, const struct flatten *delta, const char *base_path, bool replace);

/* The same for an adapter with other parts than A and B of modules (tensors saved whole, the LoRA
 * of an embedding, DoRA), opened with its values: all its parts as they are, in float32. */
err export_peft_whole(const char *dir, const struct adapter_file *file, const char *base_path,
                      bool replace);

/* A GGUF adapter as llama.cpp loads it (--lora), all F32:
 *
 *   blk.N.attn_q.weight.lora_a   (r, d_in)
 *   blk.N.attn_q.weight.lora_b   (d_out, r)
 *   adapter.lora.alpha           q, the largest rank of all modules
 *
 * llama.cpp scales each module by alpha / r, so B is multiplied by r / q and the product is 1. Rows
 * of B of q and k are permuted for the Llama family, as they are in its GGUFs. */
err export_gguf(const char *path, const struct flatten *delta, const struct model *base,
                bool replace);

/* A Hugging Face directory of the base with the change added: W = W0 + B A, summed in float64 and
 * rounded once to `type` (F32 or BF16); all other weights of the base in the same type. config.json
 * and the tokenizer's files are copied from a directory base, or generated from a GGUF base. `note`
 * (may be NULL) gets a sentence about parts that a loader will miss, or "". One weight is in memory
 * at a time. */
struct export_merged_options {
    enum dtype type;       /* DTYPE_F32 or DTYPE_BF16 */
    bool replace;          /* replace an existing directory */
    const char *tokenizer; /* directory of another tokenizer than the base's; NULL: the base's */
    char *note;            /* or NULL */
    size_t note_bytes;     /* room in note */
};
err export_merged(const char *dir, const struct flatten *delta, const struct model *base,
                  const struct export_merged_options *options);

#endif
