/* The parts of `fedlora inspect`: each function adds the contents of one kind of file to a JSON
 * object. */
#ifndef CLIENT_INSPECT_H
#define CLIENT_INSPECT_H

#include "base/err.h"
#include "engine/model/gguf.h"

#include <jansson.h>
#include <stdbool.h>

/* Adds the key-values and, with `tensors`, the list of tensors. Arrays are shown by their length
 * only. */
void inspect_gguf_add(json_t *out, const struct gguf *g, bool tensors);
/* A PEFT directory, or a Fedlora state, update or file of frozen factors. */
err inspect_adapter(json_t *out, const char *path, bool digest);
/* Any safetensors file: as an adapter if it contains LoRA factors, else the list of its tensors. */
err inspect_safetensors(json_t *out, const char *path, bool digest);
/* Adds "digest", the digest of the file's bytes. */
err inspect_digest_add(json_t *out, const char *path);

#endif
