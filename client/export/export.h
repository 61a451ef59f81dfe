/* What was learned, in forms that others load. The change of each module comes as one plain pair
 * (agg's struct flatten: delta = B A, scale 1, already cut to the rank or error asked for). Files
 * are written beside and renamed; without `replace` what exists is ERR_INPUT. */
#ifndef CLIENT_EXPORT_H
#define CLIENT_EXPORT_H

#include "agg/adapter/flatten.h"
#include "engine/model/model.h"

/* Every module is one of this base and has its shape; else ERR_INPUT names it. With a digest (64
 * hex; "" or NULL: not known) the base must be that one too, which reads it whole. */
err export_check_base(const struct flatten *delta, const struct model *base, const char *digest);

/* A PEFT directory: alpha = rank, rank_pattern and alpha_pattern where ranks differ. `base_path` is
 * recorded as base_model_name_or_path; may be NULL. */
err export_peft(const char *dir, const struct flatten *delta, const char *base_path, bool replace);

/* A GGUF adapter as llama.cpp loads it (--lora): blk.N.attn_q.weight.lora_a (r, d_in), .lora_b
 * (d_out, r), F32; adapter.lora.alpha is the largest rank q and B is scaled by r/q, so that
 * alpha/r, which llama.cpp multiplies by, gives 1. Rows of B of q and k are permuted for the Llama
 * family, as its GGUFs are. */
err export_gguf(const char *path, const struct flatten *delta, const struct model *base,
                bool replace);

/* A Hugging Face directory of the base with the change added: W = W0 + B A, the sum in float64,
 * rounded once to `type` (F32 or BF16); all else of the base in the same type. config.json and the
 * tokenizer's files are copied from a directory, made from a GGUF. `note` (may be NULL) gets what a
 * loader will miss,
 * "" when nothing. One tensor is in memory at a time. */
struct export_merged_options {
    enum dtype type;
    bool replace;
    char *note;
    size_t note_bytes;
};
err export_merged(const char *dir, const struct flatten *delta, const struct model *base,
                  const struct export_merged_options *options);

#endif
