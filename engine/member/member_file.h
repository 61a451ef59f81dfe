/* A file that a member keeps from round to round and never sends: safetensors with the metadata
 * fedlora.run, fedlora.member, fedlora.base and fedlora.round. `path` is the file of the newest
 * round, and path with ".before" is that of the round before it. A round that is trained again,
 * because the member was killed, therefore starts from the same file as the first time. */
#ifndef ENGINE_MEMBER_FILE_H
#define ENGINE_MEMBER_FILE_H

#include "base/err.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stdint.h>

struct member_round; /* engine/member/member_adapter.h */

/* Sets *found, and *out to the path of the newest file whose round is at most `last`. ERR_INPUT:
 * the file belongs to another run, member or base. */
err member_file_find(bool *found, char out[LIMIT_PATH_BYTES], const char *path,
                     const struct member_round *round, uint32_t last);
/* Before the file of this round is written: the newest file becomes the one before, unless it has
 * this round already. */
err member_file_make_room(const char *path, const struct member_round *round);
/* The round is as if it had not been trained. */
err member_file_undo(const char *path, const struct member_round *round);
/* Deletes both files. Failures are ignored: a file that stays costs only space. */
void member_file_drop(const char *path);

#endif
