/* What survives any crash: DATA/fedlora.db (SQLite), with runs, members, updates, rounds and
 * events, and DATA/blobs (blob.h). Every function is one transaction: done and durable, or not
 * done. One struct a thread; several may be open on one DATA. Two durable points carry the
 * protocol:
 *
 *     store_receipts    an update's file is a blob already; its row makes it count
 *     store_publish     the state's file is a blob already; round, state, events and the end of the
 * run
 *
 * A crash between a blob and its row leaves an orphan blob, which store_recover() removes.
 * State number t is what round t trains from; publishing round t stores state t+1. */
#ifndef COORDINATOR_STORE_H
#define COORDINATOR_STORE_H

#include "base/arena.h"
#include "coordinator/store/blob.h"
#include "coordinator/store/db.h"
#include "privacy/ledger/release.h"
#include "privacy/noise/cohort.h"

struct store {
    struct db db;
    char dir[LIMIT_PATH_BYTES];
};

struct store_blob {
    struct digest digest;
    uint64_t size; /* 0: none */
};

struct store_run {
    int64_t id;
    const char *name;
    const void *config; /* a packed RunConfig */
    size_t config_size;
    const void *modules; /* a packed HelloRequest with the modules adapted; NULL until known */
    size_t modules_size;
    uint32_t published, opened;
    bool started;              /* state 1 exists */
    const char *hold, *reason; /* "", paused, stopped, failed */
    uint64_t created_ms;       /* wall clock */
    struct store_blob state, frozen;
    struct store_blob memory; /* what the server keeps for itself beside the state; never sent */
};

struct store_member {
    const char *id;
    bool joined;
    uint32_t rank;
    uint32_t pruned; /* the rank it has pruned itself to; 0: never */
    uint64_t examples;
    const char *libraries;
    uint64_t eval_rows; /* held-out rows it has */
    uint64_t bytes_up, bytes_down;
    double train_loss;
    uint32_t trained_round, counted_in; /* its newest update */
    struct digest digest;
    struct store_evaluation *evaluation; /* its newest; NULL: none */
};

struct store_evaluation { /* of a round's result; accuracy below 0: not told */
    uint32_t round;
    uint64_t rows;
    double loss, accuracy;
};

struct store_update {
    int64_t run;
    const char *member;
    uint32_t trained_round, counted_in;
    struct store_blob blob;
    uint32_t
        pruned; /* the rank its member has pruned itself to with it; 0: as it was. Not loaded */
    uint64_t examples;
    double train_loss, seconds;
    uint64_t tokens;
};

struct store_round {
    uint32_t round;
    struct store_blob state; /* of round + 1; size 0 once it has been removed */
    uint32_t updates;
    uint64_t took_ms, aggregate_ms;
    double train_loss;
    bool reported; /* the report is made and stored: it and these three are set */
    double update_norm, error, dropped;
    const char *report_json;
    struct store_evaluation evaluation; /* all members', by rows; rows 0: none. Only loaded */
};

struct store_event {
    uint64_t sequence, wall_ms;
    const char *event, *text, *member; /* member "" : of no member */
    uint32_t round;
};

err store_open(struct store *out, const char *dir); /* makes what is missing */
void store_close(struct store *store);

/* Removes orphan blobs and uploads that nobody went on with for upload_age_ms. Before anything
 * else. */
err store_recover(size_t *removed, struct store *store, uint64_t upload_age_ms);

/* ---- runs; loaded texts and lists live in the arena */
err store_run_add(int64_t *id, struct store *store, const struct store_run *run,
                  const char *const *member, size_t members);
err store_runs(struct store_run **out, size_t *count, struct store *store, struct arena *arena);
err store_members(struct store_member **out, size_t *count, struct store *store, int64_t run,
                  struct arena *arena);
err store_updates(struct store_update **out, size_t *count, struct store *store, int64_t run,
                  uint32_t counted_in, struct arena *arena); /* sorted by member */
/* Without `reports` their JSON is left out. */
err store_rounds(struct store_round **out, size_t *count, struct store *store, int64_t run,
                 bool reports, struct arena *arena);

err store_hold(struct store *store, int64_t run, const char *hold, const char *reason,
               const struct store_event *event);
err store_modules(struct store *store, int64_t run, const void *packed, size_t size);
err store_hello(struct store *store, int64_t run, const struct store_member *member, bool first);
err store_opened(struct store *store, int64_t run, uint32_t round, const struct store_event *event);
/* A second one of the same round and member takes the first one's place. */
err store_evaluated(struct store *store, int64_t run, const char *member,
                    const struct store_evaluation *evaluation);
err store_bytes_down(struct store *store, int64_t run, const char *member, uint64_t bytes);
struct store_start {
    int64_t run;
    struct store_blob state, frozen;
    const char *ledger;             /* the first line of the run's privacy ledger, or NULL */
    const struct cohort_seed *seed; /* of its last round, that the line commits to; or NULL */
    const char *plan;               /* what the line promises, in words, or NULL */
};
err store_started(struct store *store, const struct store_start *start);

struct store_publish {
    int64_t run;
    uint32_t keep;         /* published states kept, the newest included; at least 2 */
    uint32_t updates_keep; /* rounds whose updates are kept, this one included; at least 1 */
    bool last;
    struct store_round round;
    struct store_blob frozen, memory; /* that go with the state; those before are given up */
    const struct release *release;    /* of this very state: privacy/ledger/release.h */
    double next_clip;                 /* with privacy: of the next round; 0: its plan's */
    const char *stop;                 /* why no round follows, or "" or NULL */
    const char *next_line;            /* what follows the release in the ledger, or NULL */
};
err store_publish(struct store *store, const struct store_publish *publish);
/* The report of a published round, and its event; again: the same. */
err store_report(struct store *store, int64_t run, const struct store_round *round);
/* How many rounds of the run were left without a report, each with an event "report.skipped". */
err store_reports_skipped(uint32_t *out, struct store *store, int64_t run);
/* All or none; rows that exist already are kept. */
err store_receipts(struct store *store, const struct store_update *update, size_t count);
/* Removes the blobs that no row names, of those given up by store_publish(). */
err store_trim(struct store *store);

/* ---- privacy (store_private.c) */
enum { STORE_LEDGER_BYTES_MAX = 256 << 20 };
struct store_private {       /* a round of a run with client-level privacy */
    double clip;             /* 0: the run's first */
    struct store_blob noisy; /* the noisy mean, once it was drawn and until it is published */
    double next_clip;        /* that goes with it */
};
/* A round without a row is all zero. */
err store_private_load(struct store_private *out, struct store *store, int64_t run, uint32_t round);
/* The seed of the run's last round (privacy/noise/cohort.h). ERR_STATE: there is none. */
err store_private_seed(struct cohort_seed *seed, struct store *store, int64_t run);
err store_private_noisy(struct store *store, int64_t run, uint32_t round,
                        const struct store_private *made);
/* All lines of the run's ledger; nothing for a run without privacy. */
err store_ledger(struct bytes *out, struct store *store, int64_t run);
/* Hash of its last line; false without any. */
err store_ledger_head(bool *found, struct digest *out, struct store *store, int64_t run);
/* Whole lines after the first `after`, at most 1 MiB of them: of the run's own ledger (party ""),
 * or of the copy of a member's. */
err store_ledger_part(struct bytes *out, struct store *store, int64_t run, const char *party,
                      uint64_t after);

struct store_copy { /* one line of a member's ledger */
    const char *text;
    size_t size; /* with its newline */
    bool ours;   /* a release of this run; else what follows is not set */
    uint32_t round;
    struct digest released;
    struct account_event charged;
};
/* ERR_INPUT: in the copy of another run this very ledger goes on otherwise. */
err store_copies_add(struct store *store, int64_t run, const char *member, uint64_t first,
                     const struct store_copy *line, size_t count);
/* Does the copy account for these bytes as an update for this round; and all events of this run. */
err store_copies_charged(bool *found, struct account_event **event, size_t *count,
                         struct store *store, const struct store_update *update,
                         struct arena *arena);
/* What the ledgers say they come to after their newest releases of this run: the most, and whose.
 * *member is NULL where there is none. */
err store_copies_spent(double *epsilon, const char **member, struct store *store, int64_t run,
                       struct arena *arena);
/* Members whose ledgers are here, sorted. */
err store_copies_members(const char ***out, size_t *count, struct store *store, int64_t run,
                         struct arena *arena);

/* ---- events */
err store_event_add(struct store *store, int64_t run, const struct store_event *event);
err store_events(struct store_event **out, size_t *count, struct store *store, int64_t run,
                 uint64_t after, size_t most, struct arena *arena);

/* The text of the newest event of this name; "" where there is none. */
err store_last_event(char *out, size_t bytes, struct store *store, int64_t run, const char *event);

/* ---- an operator's blobs, kept until a run names them */
err store_pin(struct store *store, const struct store_blob *blob, size_t pins_max);
err store_blob_known(bool *out, struct store *store, const struct digest *digest);
/* A state or frozen factors, of this run, or (0) of any run or pinned: what may be fetched. */
err store_blob_public(bool *out, struct store *store, int64_t run, const struct digest *digest);

#endif
