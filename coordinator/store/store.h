/* Data that survives any crash: DATA/fedlora.db (SQLite) or a PostgreSQL database, with runs,
 * members, updates, rounds and events, and DATA/blobs (blob.h). Every function is one transaction:
 * on success its effect is durable, on failure there is none. One struct for each thread; several
 * may be open on one DATA.
 * Two functions make a result count:
 *
 *     store_receipts()   the file of an update is a blob already; its row makes it count
 *     store_publish()    the file of the state is a blob already; its row, the state's name, the
 *                        events, the privacy ledger's lines and the end of the run are committed
 *                        together
 *
 * A crash between a blob and its row leaves a blob that no row names; store_recover() moves it
 * away.
 *
 * The row of round t names the state that round t published; row 0 names the start state. */
#ifndef COORDINATOR_STORE_H
#define COORDINATOR_STORE_H

#include "base/arena.h"
#include "coordinator/store/blob.h"
#include "coordinator/store/db.h"
#include "privacy/ledger/release.h"
#include "privacy/noise/cohort.h"

struct store {
    struct db db;
    int64_t migrated_from; /* the version of the tables that this opening replaced; 0: none */
    char dir[LIMIT_PATH_BYTES];
};

struct store_blob {
    struct digest digest;
    uint64_t size; /* 0: there is no blob */
};

struct store_run {
    int64_t id;
    const char *name;
    const void *config; /* a packed RunConfig */
    size_t config_size;
    const void *modules; /* a packed HelloRequest with the adapted modules; NULL until known */
    size_t modules_size;
    uint32_t published, opened;
    bool started;              /* the start state exists */
    const char *hold, *reason; /* "", paused, stopped, failed */
    const char *by;            /* the operator who creates it; written only, not loaded, like: */
    const char *from;          /* with a state: a description of what it continues from */
    uint64_t created_ms;       /* wall clock, like the next two, which are loaded only */
    uint64_t ended_ms, archived_ms; /* 0: it is not */
    /* A run that is added has a state if it continues from that of `published`; it then makes no
     * start of its own. */
    struct store_blob state, frozen;
    struct store_blob memory; /* of the server's optimizer; never sent */
};

struct store_member {
    const char *id;
    bool joined;
    uint32_t rank;
    uint32_t pruned; /* the rank it has pruned itself to; 0: never */
    uint64_t examples;
    const char *software; /* program, libraries and processor; written only, not loaded */
    const char *libraries;
    uint64_t eval_rows; /* its number of held-out rows */
    uint64_t bytes_up, bytes_down;
    double train_loss;
    uint32_t trained_round, counted_in; /* of its newest update, like `digest` */
    struct digest digest;
    struct store_evaluation *evaluation; /* its newest; NULL: none */
    uint32_t refused_in, excused_in;     /* the newest rounds without its update; see round.h */
    const char *refusal;
};

struct store_evaluation { /* of a round's result; accuracy below 0: not reported */
    uint32_t round;
    uint64_t rows;
    double loss, accuracy;
};

struct store_update {
    int64_t run;
    const char *member;
    uint32_t trained_round, counted_in;
    struct store_blob blob;
    /* The rank that the member has pruned itself to with this update; 0: unchanged. Written only,
     * not loaded. */
    uint32_t pruned;
    uint64_t examples;
    double train_loss, seconds;
    uint64_t tokens;
};

struct store_round {
    uint32_t round;
    struct store_blob state; /* that this round published; size 0 if an old version forgot it */
    bool gone;               /* its file has been given up */
    uint32_t updates;
    uint64_t took_ms, aggregate_ms;
    double train_loss;
    bool reported; /* the report is made and stored: it and these three are set */
    double update_norm, error, dropped; /* a method without norms: NaN when stored, 0 when loaded */
    const char *report_json;
    double norm; /* the median norm of its updates; 0: not measured. Written only */
    /* The mean of all members' evaluations, weighted by rows; rows 0: none. Loaded only. */
    struct store_evaluation evaluation;
};

struct store_event {
    uint64_t sequence, wall_ms;
    const char *event, *text, *member; /* member "": it is about no member */
    uint32_t round;
};

struct store_place {
    const char *dir;      /* DATA */
    const char *database; /* a PostgreSQL server (db.h); NULL or "": DATA/fedlora.db */
    enum db_care care;    /* DB_UNFLUSHED: for simulations, which lose only time in a power cut */
};
/* For db_open(): the server, or the path of DATA/fedlora.db. */
err store_place_database(char *out, size_t bytes, const struct store_place *place);
/* Creates missing folders and tables. */
err store_open_at(struct store *out, const struct store_place *place);
err store_open(struct store *out, const char *dir); /* with DATA/fedlora.db */
/* Beside a service that may be running on the store: nothing is created, and tables of another
 * version are ERR_INPUT. */
err store_open_beside(struct store *out, const struct store_place *place);
void store_close(struct store *store);
enum { STORE_PATH_ROOM = 128 }; /* that DIR leaves for "/spool/", an owner and a digest */
/* For store.c only. Brings the tables to this version, and keeps a copy of the database of an older
 * one as fedlora.db.vN. ERR_INPUT: a newer version made them, or there are none, but blobs. */
err store_schema(struct store *store);
/* For store_schema.c and tests: the tables of version `from` (0: none) become those of `to`. */
err store_schema_make(struct db *db, int64_t from, int64_t to);

struct store_recovered { /* numbers of files */
    size_t removed;      /* given up, or uploads that were not continued */
    size_t lost;         /* blobs that no row names, moved to DATA/lost */
};
/* Looks for damage of the database, for at most STORE_CHECK_MS; *whole: all of it was looked at.
 * ERR_INPUT: it is damaged. Changes nothing. */
enum { STORE_CHECK_MS = 30 * 1000 };
err store_check(bool *whole, struct store *store);
/* Moves blobs that no row names to DATA/lost, and removes uploads that were not continued for
 * upload_age_ms. Counts the reports that were lost with the last process as skipped. Must run
 * before any other thread uses DATA. */
err store_recover(struct store_recovered *out, struct store *store, uint64_t upload_age_ms);

/* ---- runs; texts and lists that are loaded live in the arena */
err store_run_add(int64_t *id, struct store *store, const struct store_run *run,
                  const char *const *member, size_t members);
err store_runs(struct store_run **out, size_t *count, struct store *store, struct arena *arena);
/* *out is NULL if there is no run of this name. */
err store_run_named(struct store_run **out, struct store *store, const char *name,
                    struct arena *arena);
err store_members(struct store_member **out, size_t *count, struct store *store, int64_t run,
                  struct arena *arena);
err store_updates(struct store_update **out, size_t *count, struct store *store, int64_t run,
                  uint32_t counted_in, struct arena *arena); /* sorted by member */
/* Sorted by round, without row 0. `reports`: load their JSON too. */
err store_rounds(struct store_round **out, size_t *count, struct store *store, int64_t run,
                 bool reports, struct arena *arena);

/* Some of them: at most `most` after round `after`. */
struct store_rounds_of {
    int64_t run;
    uint32_t after;
    size_t most;
    bool reports;
};
err store_rounds_some(struct store_round **out, size_t *count, struct store *store,
                      const struct store_rounds_of *of, struct arena *arena);

err store_hold(struct store *store, int64_t run, const char *hold, const char *reason,
               const struct store_event *event);
err store_modules(struct store *store, int64_t run, const void *packed, size_t size);
err store_hello(struct store *store, int64_t run, const struct store_member *member, bool first);
err store_opened(struct store *store, int64_t run, uint32_t round, const struct store_event *event);
/* A second evaluation of the same round and member replaces the first. */
err store_evaluated(struct store *store, int64_t run, const char *member,
                    const struct store_evaluation *evaluation);
err store_bytes_down(struct store *store, int64_t run, const char *member, uint64_t bytes);
struct store_start {
    int64_t run;
    struct store_blob state, frozen;
    /* Private runs only, else NULL. */
    const char *ledger;             /* the first line of the run's privacy ledger */
    const struct cohort_seed *seed; /* of the last round; the line commits to it */
    const char *plan;               /* text of the event that describes the plan */
};
err store_started(struct store *store, const struct store_start *start);

struct store_made {                    /* what a round's state was made from; kept for ever */
    struct digest config;              /* of the run's packed configuration */
    const char *software;              /* of this coordinator */
    const struct store_update *update; /* (updates) */
    const double *weight;              /* (updates) of each in the mean, not normalised */
    size_t updates;
};
struct store_publish {
    int64_t run;
    uint32_t keep;            /* published states kept, the newest included; at least 2 */
    uint32_t updates_keep;    /* rounds whose updates are kept, this one included; 0: none */
    bool last;                /* the run is finished with this round */
    struct store_round round; /* without a report: store_report() */
    struct store_blob frozen, memory; /* blobs of this state; the previous ones are given up */
    const struct release *release;    /* of this very state: privacy/ledger/release.h */
    struct store_made made;
    /* Private runs only. */
    double next_clip;      /* clip norm of the next round; 0: the plan's */
    const char *stop;      /* why no round follows, or "" or NULL */
    const char *next_line; /* ledger lines that follow the release, or NULL */
};
err store_publish(struct store *store, const struct store_publish *publish);
/* Stores the report of a published round, with its event, and gives up the noisy mean that a
 * private run has kept for it. A second call replaces the first. */
err store_report(struct store *store, int64_t run, const struct store_round *round);
/* The number of rounds that were left without a report (events "report.skipped"). */
err store_reports_skipped(uint32_t *out, struct store *store, int64_t run);
/* All rows or none. Rows that exist already are kept as they are. */
err store_receipts(struct store *store, const struct store_update *update, size_t count);
/* For an update whose file is damaged: as if it had never arrived. */
err store_forget_update(struct store *store, const struct store_update *update);
struct store_refusal {
    struct store_update update;
    const char *why;
};
/* Takes these updates out of their round, in which their members are not asked again. All or
 * none. */
err store_refuse_updates(struct store *store, const struct store_refusal *refusal, size_t count);
/* The same on an operator's order, also without an update: the round does not wait for it. */
err store_excuse(struct store *store, int64_t run, uint32_t round, const char *member);
/* Members whose update of this round was refused may send it again. */
err store_forgive(struct store *store, int64_t run, uint32_t round);
/* The median of the norms (store_round.norm) of the newest published rounds; 0: there are
 * none. */
err store_norm(double *out, struct store *store, int64_t run);
/* The lowest training loss of a published round, and the lowest loss of its evaluations,
 * weighted by rows; 0: there is none. */
err store_losses(double *train, double *evaluated, struct store *store, int64_t run);
/* Replaces the configuration of a run, and adds this member unless it is NULL or has a row. */
err store_change(struct store *store, int64_t run, const struct store_run *with, const char *member,
                 const struct store_event *event);
/* For simulations that repeat an interrupted round: forgets the updates that count in rounds after
 * `published`. */
err store_forget_updates(struct store *store, int64_t run, uint32_t published);
/* For a run without a published round: as if no member had said hello. `keep_frozen`: its frozen
 * factors were given by an operator. */
err store_forget_shapes(struct store *store, int64_t run, bool keep_frozen);
/* Removes the blobs that store_publish() has given up, unless a row names them again. */
err store_trim(struct store *store);

/* ---- lineage (store_lineage.c) */
/* For store.c only: a part of the transactions of store_hello() and store_publish(). */
err store_lineage_hello(struct db *db, int64_t run, const struct store_member *member);
err store_lineage_publish(struct db *db, const struct store_publish *publish);

struct store_lineage { /* a published round */
    uint32_t round;
    struct store_blob state;
    uint32_t updates;
    bool known; /* a version before 9 has not recorded the next two, or its updates */
    struct digest config;
    const char *software;
};
struct store_counted { /* an update that counted in a round */
    uint32_t round;
    const char *member;
    uint32_t trained_round;
    struct store_blob blob;
    uint64_t examples;
    double weight;
    const char *software; /* "": not known */
};
/* The next published rounds after `after`, at most `most`, sorted; the start state is round 0 and
 * comes first if `after` is UINT32_MAX. */
err store_lineage_rounds(struct store_lineage **out, size_t *count, struct store *store,
                         int64_t run, uint32_t after, size_t most, struct arena *arena);
/* The newest round that published this state, and the state's size. ERR_STATE: none did. */
err store_lineage_find(uint32_t *round, uint64_t *size, struct store *store, int64_t run,
                       const struct digest *state);
/* The next updates of a round after the member `after`, at most `most`, sorted by member. */
err store_lineage_counted(struct store_counted **out, size_t *count, struct store *store,
                          int64_t run, uint32_t round, const char *after, size_t most,
                          struct arena *arena);

/* ---- privacy (store_private.c) */
enum { STORE_LEDGER_BYTES_MAX = 256 << 20 };
struct store_private {       /* a round of a run with client-level privacy */
    double clip;             /* 0: the run's first */
    struct store_blob noisy; /* the noisy mean, from its drawing until it is reported */
    double next_clip;        /* the next round's clip norm, drawn together with the mean */
};
/* All zero for a round without a row. */
err store_private_load(struct store_private *out, struct store *store, int64_t run, uint32_t round);
/* The seed of the run's last round (privacy/noise/cohort.h). ERR_STATE: there is none. */
err store_private_seed(struct cohort_seed *seed, struct store *store, int64_t run);
err store_private_noisy(struct store *store, int64_t run, uint32_t round,
                        const struct store_private *made);
/* All lines of the run's ledger; none for a run without privacy. */
err store_ledger(struct bytes *out, struct store *store, int64_t run);
/* The hash of its last line; *found is false if it has no lines. */
err store_ledger_head(bool *found, struct digest *out, struct store *store, int64_t run);
/* The total epsilon of the ledger's newest release; 0: there is none yet. */
err store_ledger_spent(double *epsilon, struct store *store, int64_t run);
/* Whole lines after the first `after`, at most 1 MiB of them, of the run's own ledger (party "") or
 * of the copy of a member's ledger. */
err store_ledger_part(struct bytes *out, struct store *store, int64_t run, const char *party,
                      uint64_t after);

struct store_copy { /* one line of a member's ledger */
    const char *text;
    size_t size; /* with its newline */
    bool ours;   /* it is a release in this run; only then are the next fields set */
    uint32_t round;
    struct digest released;
    struct account_event charged;
};
/* ERR_INPUT: the copy held for another run has a different line here, so the member has two
 * versions of one ledger. */
err store_copies_add(struct store *store, int64_t run, const char *member, uint64_t first,
                     const struct store_copy *line, size_t count);
/* *found: the copy has a release of exactly these bytes for this round. *event: all events that the
 * ledger charges to this run. */
err store_copies_charged(bool *found, struct account_event **event, size_t *count,
                         struct store *store, const struct store_update *update,
                         struct arena *arena);
/* The largest total epsilon that a member's ledger states after its newest release in this run, and
 * that member. *member is NULL if there is no release yet. */
err store_copies_spent(double *epsilon, const char **member, struct store *store, int64_t run,
                       struct arena *arena);
/* Members of whose ledger there is a copy, sorted. */
err store_copies_members(const char ***out, size_t *count, struct store *store, int64_t run,
                         struct arena *arena);

/* ---- events */
err store_event_add(struct store *store, int64_t run, const struct store_event *event);
err store_events(struct store_event **out, size_t *count, struct store *store, int64_t run,
                 uint64_t after, size_t most, struct arena *arena);

/* The sequence number after which the last `tail` events of a run begin, and, if since_ms is not 0,
 * those since that wall time. */
err store_event_place(uint64_t *after, struct store *store, int64_t run, size_t tail,
                      uint64_t since_ms);

/* The same event for several runs: all or none, and one flush of the disk. */
err store_event_add_all(struct store *store, const int64_t *run, size_t runs,
                        const struct store_event *event);
/* The text of the newest event of this name; "" if there is none. */
err store_last_event(char *out, size_t bytes, struct store *store, int64_t run, const char *event);

/* ---- epochs (store_epoch.c): tell live copies of one store apart */
enum { STORE_EPOCH_BYTES = 32 };
struct store_epoch { /* opaque to members, who keep the newest and send it with Hello */
    uint8_t byte[STORE_EPOCH_BYTES];
};
/* The epoch of this start. Once in each start, before a member is answered. */
err store_epoch_begin(struct store_epoch *out, struct store *store);
/* The epoch that a member has kept; size 0: none. ERR_STATE: it is newer than this store, or from
 * a copy that was started beside it. */
err store_epoch_judge(struct store *store, const void *epoch, size_t size);
/* The operator says that this copy is the one in use: members that know others accept it, and the
 * others are found to be old. */
err store_epoch_accept(struct store *store);

/* ---- backups that were made of this store (backup.h) */
struct store_backup {
    int64_t id;
    uint64_t made_ms; /* wall clock */
    const char *path;
    uint64_t files, bytes;
    uint64_t wrong; /* files that the store had lost */
};
err store_backup_add(struct store *store, const struct store_backup *backup);
/* The newest one. *found is false if there is none. */
err store_backup_last(bool *found, struct store_backup *out, struct store *store,
                      struct arena *arena);

/* ---- an operator's blobs, kept until a run names them */
err store_pin(struct store *store, const struct store_blob *blob, size_t pins_max);
err store_blob_known(bool *out, struct store *store, const struct digest *digest);
/* May the blob be fetched? Yes for states and frozen factors of this run; with run 0, of any run,
 * and for pinned blobs. Updates are never public. */
err store_blob_public(bool *out, struct store *store, int64_t run, const struct digest *digest);

#endif
