/* The version of this build: the number of the release, and the commit it was built from. Pure. */
#ifndef BASE_VERSION_H
#define BASE_VERSION_H

#include <stdbool.h>

/* The version of the tables of the coordinator's store (coordinator/store/store_schema.c). Here,
 * because both programs print it. */
enum { VERSION_STORE = 12 };

/* For example "4f829af12" or "4f829af12.dirty"; "unknown" outside of a git repository and in
 * programs that are not installed, such as tests. */
const char *version_commit(void);
/* FEDLORA_VERSION and the commit: "0.2.0+g4f829af12", or "0.2.0+unknown". */
const char *version_text(void);

/* A member and a coordinator of neighbouring minor versions work together, so that they can be
 * upgraded one after the other: 0.1, 0.2 and 0.3 with this 0.2. `software` is the text that the
 * other side says, "fedlora 0.3.1+g4f829af12". *number is its "0.3.1", and "" if it is the text of
 * another program, which is judged by the number of the protocol alone. */
enum { VERSION_NUMBER_BYTES = 24 };
bool version_fits(char number[VERSION_NUMBER_BYTES], const char *software, const char *ours);

#endif
