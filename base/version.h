/* The version of this build: the number of the release, and the commit it was built from. Pure. */
#ifndef BASE_VERSION_H
#define BASE_VERSION_H

/* The version of the tables of the coordinator's store (coordinator/store/store_schema.c). Here,
 * because both programs print it. */
enum { VERSION_STORE = 12 };

/* For example "4f829af12" or "4f829af12.dirty"; "unknown" outside of a git repository and in
 * programs that are not installed, such as tests. */
const char *version_commit(void);
/* FEDLORA_VERSION and the commit: "0.2.0+g4f829af12", or "0.2.0+unknown". */
const char *version_text(void);

#endif
