/* Parts of export_merged(): a directory that is complete or absent, the configuration, the
 * tokenizer. */
#ifndef CLIENT_EXPORT_PARTS_H
#define CLIENT_EXPORT_PARTS_H

#include "base/limits.h"
#include "engine/model/model.h"

#include <jansson.h>

/* Creates an empty directory next to `dir`, to be filled with plain files. commit moves it to
 * `dir`, after moving an existing `dir` out of the way; abandon removes it. Without `replace` an
 * existing `dir` is ERR_INPUT. */
err export_dir_begin(char part[LIMIT_PATH_BYTES], const char *dir, bool replace);
err export_dir_commit(const char *part, const char *dir);
/* Also removes what a crashed export has left; does nothing if the directory does not exist. */
void export_dir_abandon(const char *part);

/* Writes config.json (and generation_config.json) of the base with its type set to `type`; for a
 * GGUF base it is generated. */
err export_config(const char *dir, const struct model *base, enum dtype type);
/* config.json for a GGUF base; `type` is the name of the type of the weights. */
err export_config_of_gguf(json_t **out, const struct model *m, const char *type);
/* Copies the tokenizer's files that exist in a Hugging Face directory. */
err export_copy_tokenizer(const char *dir, const char *from);
/* Generates tokenizer.json and tokenizer_config.json from a GGUF's keys; ERR_INPUT for a kind of
 * tokenizer that is unknown or that tokenizer.json cannot express. */
err export_tokenizer(const char *dir, const struct gguf *g);

#endif
