/* Reads `--members` of `fedlora run create`: the ids of the members, and for each the settings that
 * differ from those of the run.
 *
 *     a,b:8,c:8:2.5,d:rank=8:alpha=16:rslora=yes:weight=2:targets=q+v
 *
 * Parts of a member are KEY=VALUE in any order; bare numbers are its rank and its weight. */
#ifndef CLIENT_RUN_MEMBERS_H
#define CLIENT_RUN_MEMBERS_H

#include "base/arena.h"
#include "fedlora.pb-c.h"

/* Sets the members of config, in the arena. ERR_INPUT names the member and the part. */
err run_members_parse(Fedlora__V1__RunConfig *config, const char *text, struct arena *arena);
/* The separator, and the name of the option for errors. */
struct run_members_split {
    char separator;
    const char *flag;
};
/* Splits a text at the separator into the arena, without the spaces in front of each part.
 * ERR_INPUT for an empty part. */
err run_members_split(char ***out, size_t *count, const char *text,
                      const struct run_members_split *how, struct arena *arena);

#endif
