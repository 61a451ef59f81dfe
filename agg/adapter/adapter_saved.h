/* Tensors that a PEFT adapter holds whole, in addition to A and B: those of modules_to_save, and
 * biases if `bias` trains them. They replace the base's tensors. Such adapters can be averaged, but
 * an engine that applies only A and B must refuse them. PEFT writes the bias of an adapted layer as
 * <module>.base_layer.bias and of other layers as <module>.bias; here both are <module>.bias. */
#ifndef AGG_ADAPTER_SAVED_H
#define AGG_ADAPTER_SAVED_H

#include "agg/adapter/adapter_config.h"

/* True if the configuration lists this tensor as saved whole. */
bool adapter_saved_is(const struct adapter_config *config, const char *tensor_name);
err adapter_saved_add(struct adapter_file *file, const struct tensor *tensor);
err adapter_saved_sort(struct adapter_file *file); /* after the last adapter_saved_add() */
/* ERR_INPUT if the adapter has such tensors: for callers that apply only A and B. */
err adapter_saved_refuse(const struct adapter_file *file);
/* The name on disk; `module` lists the adapted layers. */
err adapter_saved_tensor_name(const char **out, struct arena *arena, const char *name,
                              const struct adapter_file_module *module, size_t count);

#endif
