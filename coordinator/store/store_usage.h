/* How many bytes each run takes, by kind of file, and the part that the next sweep removes
 * (store_retain.h). Reads only, so it works beside a running service. A file that two runs share
 * counts for both. */
#ifndef COORDINATOR_STORE_USAGE_H
#define COORDINATOR_STORE_USAGE_H

#include "coordinator/store/store_files.h"

enum { STORE_USAGE_KINDS = STORE_FILE_PIN + 1 };
struct store_usage_run {
    int64_t id; /* 0: files that operators have uploaded for no run yet */
    const char *name;
    uint64_t files[STORE_USAGE_KINDS], bytes[STORE_USAGE_KINDS];
    bool due; /* it is archived, or old enough to be */
    uint64_t removes_files, removes_bytes;
};
struct store_usage {
    struct store_usage_run *run; /* (count) in order of creation, the uploads first */
    size_t count;
    uint64_t database_bytes; /* of SQLite's files; 0: a server has them */
    uint64_t upload_bytes;   /* of uploads that are not complete */
    uint64_t removes_events; /* rows */
};
struct store_usage_rules { /* of the wall clock; 0: nothing gets old */
    uint64_t ended_before_ms, events_before_ms;
};
/* Names and rows are in the arena. ERR_INPUT: the tables are those of another version. */
err store_usage(struct store_usage *out, const struct store_place *place,
                const struct store_usage_rules *rules, struct arena *arena);
/* "states", "updates" and so on; the columns of a table. */
const char *store_usage_kind(size_t kind);

#endif
