/* Tensors that a PEFT adapter holds whole, beside A and B: those of modules_to_save, and biases
 * where `bias` trains them. They are values in place of the base's, so adapters that have them can
 * be averaged but an engine that knows A and B only must refuse them. PEFT writes the bias of an
 * adapted layer as <module>.base_layer.bias and of others as <module>.bias: here both are
 * <module>.bias. */
#ifndef AGG_ADAPTER_SAVED_H
#define AGG_ADAPTER_SAVED_H

#include "agg/adapter/adapter_config.h"

/* By the configuration, this tensor is one of them. */
bool adapter_saved_is(const struct adapter_config *config, const char *tensor_name);
err adapter_saved_add(struct adapter_file *file, const struct tensor *tensor);
err adapter_saved_sort(struct adapter_file *file); /* when all are there */
/* For those who know A and B only. */
err adapter_saved_refuse(const struct adapter_file *file);
/* The name on disk, beside these modules. */
err adapter_saved_tensor_name(const char **out, struct arena *arena, const char *name,
                              const struct adapter_file_module *module, size_t count);

#endif
