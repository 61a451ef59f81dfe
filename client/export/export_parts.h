/* Pieces of export_merged(): a directory that is whole or absent, the configuration, the tokenizer.
 */
#ifndef CLIENT_EXPORT_PARTS_H
#define CLIENT_EXPORT_PARTS_H

#include "base/limits.h"
#include "engine/model/model.h"

/* Makes an empty directory beside `dir` to be filled with plain files; commit puts it in place, and
 * what `dir` was out of the way; abandon removes it. Without `replace` an existing `dir` is
 * ERR_INPUT. */
err export_dir_begin(char part[LIMIT_PATH_BYTES], const char *dir, bool replace);
err export_dir_commit(const char *part, const char *dir);
void export_dir_abandon(const char *part);

/* config.json (and generation_config.json) of the base, saying `type`; from a GGUF, made from its
 * arch. */
err export_config(const char *dir, const struct model *base, enum dtype type);
/* The tokenizer's files of a Hugging Face directory that there are. */
err export_copy_tokenizer(const char *dir, const char *from);
/* tokenizer.json and tokenizer_config.json from a GGUF's keys; ERR_INPUT for a kind that
 * tokenizer.json cannot say, or that we do not know. */
err export_tokenizer(const char *dir, const struct gguf *g);

#endif
