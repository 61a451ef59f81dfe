/* Parts of `fedlora inspect`: each adds what a file holds to a JSON object. */
#ifndef CLIENT_INSPECT_H
#define CLIENT_INSPECT_H

#include "base/err.h"
#include "engine/model/gguf.h"

#include <jansson.h>
#include <stdbool.h>

/* Key-values, and with `tensors` the tensors. Long arrays are shown by their length. */
void inspect_gguf_add(json_t *out, const struct gguf *g, bool tensors);
/* A PEFT directory, a Fedlora state, update or file of frozen factors. */
err inspect_adapter(json_t *out, const char *path, bool digest);
/* Any safetensors file: an adapter where it holds LoRA factors, else its tensors. */
err inspect_safetensors(json_t *out, const char *path, bool digest);
err inspect_digest_add(json_t *out, const char *path); /* "digest" of a file's bytes */

#endif
