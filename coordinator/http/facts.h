/* The facts that the pages for monitoring show, gathered by the loop thread: is the coordinator
 * ready, and the figures that no run has. */
#ifndef COORDINATOR_FACTS_H
#define COORDINATOR_FACTS_H

#include "coordinator/serve/serve.h"
#include "coordinator/store/store_sizes.h"

enum facts_check {
    FACTS_RECOVERY,    /* the start is done: recovery, runs loaded */
    FACTS_STORE,       /* its folder can be written */
    FACTS_DISK,        /* more is free than store.reserve */
    FACTS_CERTIFICATE, /* of this coordinator: valid for another 24 hours */
    FACTS_DRAINING,    /* it is not stopping */
    FACTS_LOOP,        /* its loop answers */
    FACTS_CHECKS
};
const char *facts_check_name(enum facts_check check); /* "recovery", ... */

enum { FACTS_TEXT_BYTES = 256, FACTS_SAMPLES = 144 };

/* Free bytes of the disk over the last day, to estimate when it is full. */
struct facts_disk {
    uint64_t free[FACTS_SAMPLES], at_ms[FACTS_SAMPLES];
    size_t count;
};
/* Takes a sample if the last one is older than 10 minutes. */
void facts_disk_note(struct facts_disk *disk, uint64_t free_bytes, uint64_t now_ms);
/* Days until the disk is full if it fills as in the time of the samples; negative: not known, or it
 * does not fill. */
double facts_disk_days(const struct facts_disk *disk, uint64_t free_bytes, uint64_t now_ms);

struct facts {
    const struct serve *serve;
    uint64_t now_ms, wall_ms, started_ms; /* started_ms: wall clock */
    bool ready;                           /* all checks pass */
    bool passes[FACTS_CHECKS];
    char why[FACTS_CHECKS][FACTS_TEXT_BYTES]; /* of a check that does not pass */
    int64_t server_ends_s, ca_ends_s;         /* since 1970; 0: not known */
    uint64_t free_bytes, free_less_reserve;   /* the second is 0 if less than the reserve is free */
    uint64_t backup_ms;                       /* wall clock, the last one; 0: none */
    double disk_days;                         /* facts_disk_days() */
    struct store_sizes sizes;
    bool has_sizes;
};

/* Fills all but sizes and started_ms. Writes a small file to the store's folder. */
void facts_look(struct facts *out, const struct serve *s, struct facts_disk *disk);
/* {"ready":true} or {"ready":false,"failed":[{"check":"disk","says":"..."}]} */
err facts_ready_json(struct bytes *out, const struct facts *facts);
/* The same while the loop does not run: `check` alone fails. */
err facts_not_ready_json(struct bytes *out, enum facts_check check, const char *says);

#endif
