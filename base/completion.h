/* Shell completions, written from the tables of base/option.h: a script that bash, zsh or fish
 * reads, with the words, options and kinds of values of all commands of one program. The script
 * asks the program nothing, so that it also completes where the program cannot run. */
#ifndef BASE_COMPLETION_H
#define BASE_COMPLETION_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/program.h"

enum completion_shell { COMPLETION_BASH, COMPLETION_ZSH, COMPLETION_FISH };
/* Their names, NULL-terminated, in the order of the enum. */
extern const char *const completion_shells[];

err completion_script(struct bytes *out, enum completion_shell shell,
                      const struct program *program);

#endif
