/* Folds the parts of a PEFT adapter that A and B of the decoder's modules cannot express into the
 * weights of an open model, for evaluation, generation and merged models:
 *
 *     tensors saved whole     replace the model's: embedding, head, norms, biases, modules
 *     LoRA of the embedding   E + scale (B A)^T
 *     LoRA of the head        H + scale B A
 *     DoRA of a module        m (W0 + scale B A) / ||W0 + scale B A||, the norms by rows
 *
 * As in PEFT's own forward pass, the head of a tied model keeps the base's weights if only the
 * embedding is changed. An embedding or head of another number of rows changes the size of the
 * vocabulary. Changed weights are copies in the model's arena, in float32 or as the adapter has
 * them; the base's files are not written. */
#ifndef ENGINE_ADAPTED_H
#define ENGINE_ADAPTED_H

#include "agg/adapter/adapter_file.h"
#include "engine/adapter.h"

/* The first part of the adapter that must be folded ("lm_head.weight"), or NULL. */
const char *adapted_part(const struct adapter_file *file);

/* Folds these parts and takes them out of `file`, which is then an ordinary adapter, perhaps
 * without any module. The file must be open with its values (adapter_file_open_whole()). Call it
 * before an engine is opened on the model. On an error the model must be closed. */
err adapted_fold(struct model *model, struct adapter_file *file);

/* Opens a PEFT directory, a state, or for a GGUF model an adapter of llama.cpp, for inference
 * with the model: folds the parts that must be folded. *left is false if no adapter
 * remains, because everything was folded; *out is then untouched. */
err adapted_open(struct adapter *out, bool *left, struct model *model, const char *path);

#endif
