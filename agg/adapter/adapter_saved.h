/* Tensors that a PEFT adapter holds whole, in addition to A and B: those of modules_to_save, biases
 * if `bias` trains them, and embeddings and heads, which PEFT saves by itself if the vocabulary was
 * resized or if they are targets. They replace the base's tensors. Code that applies only A and B
 * must refuse such adapters. PEFT writes a tensor of an adapted layer as <module>.base_layer.bias
 * and of other layers as <module>.bias; here both are <module>.bias. */
#ifndef AGG_ADAPTER_SAVED_H
#define AGG_ADAPTER_SAVED_H

#include "agg/adapter/adapter_config.h"

/* True if PEFT saves this tensor whole with the configuration: "lm_head.weight". */
bool adapter_saved_is(const struct adapter_config *config, const char *name);
err adapter_saved_add(struct adapter_file *file, const char *name, const struct tensor *tensor);
err adapter_saved_sort(struct adapter_file *file); /* after the last adapter_saved_add() */
/* ERR_INPUT if the adapter has such tensors, the LoRA of an embedding, or DoRA's magnitudes: for
 * callers that apply only A and B. */
err adapter_saved_refuse(const struct adapter_file *file);
/* The name on disk. `what` lists the adapted layers. */
err adapter_saved_tensor_name(const char **out, struct arena *arena, const char *name,
                              const struct adapter_file_peft *what);

#endif
