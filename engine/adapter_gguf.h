/* Reads the LoRA adapters of llama.cpp (GGUF files with general.type = adapter) as adapter files.
 * Names and the order of rows follow the base, so it must be open: llama.cpp permutes the rows of q
 * and k of Llama models, and the file does not have the number of heads. The scale of a module is
 * alpha / r; alpha 0 is scale 1. */
#ifndef ENGINE_ADAPTER_GGUF_H
#define ENGINE_ADAPTER_GGUF_H

#include "agg/adapter/adapter_file.h"
#include "engine/model/model.h"

/* True if the path is a GGUF file, of any kind. */
bool adapter_gguf_is(const char *path);
/* Opens it like a PEFT directory, with values in float32. It borrows nothing from the file. */
err adapter_gguf_open(struct adapter_file *out, const char *path, const struct model *base);

/* Row order of a Llama GGUF, whose rotary embedding pairs neighbouring rows: pair j of a head is
 * rows 2j and 2j + 1, where Hugging Face has rows j and j + head_dim / 2. Returns the row of
 * Hugging Face that is at this row of the file; engine/model/model.c has the inverse. */
uint32_t adapter_gguf_row(uint32_t file_row, uint32_t head_dim);

#endif
