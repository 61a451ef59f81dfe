/* The privacy ledger: one canonical JSON line a release, each with the hash of the one before it
 * and an Ed25519 signature. What leaves is recorded first: whoever makes a state or an update
 * durable writes its line in the same transaction (or file write before it), so a crash can only
 * count what was never seen. The first line says what was promised and planned, the others what was
 * done. A ledger that goes on under another plan (the training after a private basis was found;
 * another run on the same records) says so in a line of its own; unit and budget stay what the
 * first line says, for everything in it together:
 *
 *     hash = BLAKE2b-256("fedlora ledger 1" 0 line without "hash" and "signature")
 *     signature = Ed25519("fedlora ledger 1" 0 hash)
 *
 * Keys are sorted, no spaces; numbers that are not whole are C99 hexadecimal texts, so replaying is
 * exact. A writer holds a head and a key and makes lines; nothing here touches a disk but
 * ledger_key_open. A reader (ledger_read) refuses any changed byte and names the line. */
#ifndef PRIVACY_LEDGER_H
#define PRIVACY_LEDGER_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/digest.h"
#include "base/limits.h"
#include "privacy/account/account.h"
#include "privacy/noise/adaptive.h"

enum { LEDGER_LINE_BYTES = 1 << 16 };

enum ledger_unit {
    LEDGER_EXAMPLE, /* neighbours differ in one record of one party: DP-SGD in the client */
    LEDGER_CLIENT,  /* neighbours differ in one member's whole data: noise at the coordinator */
};

struct ledger_key {
    uint8_t secret[64], public[32];
};
/* An Ed25519 key in PEM, as `openssl genpkey -algorithm ed25519` writes it, readable by its owner
 * alone. */
err ledger_key_open(struct ledger_key *out, const char *path);
/* The public half: `openssl pkey -pubout`. */
err ledger_public_open(uint8_t out[32], const char *path);
void ledger_key_close(struct ledger_key *key);

struct ledger_head {
    uint64_t count;     /* lines so far */
    struct digest hash; /* of the last one; zero when there is none */
};

/* The first line, or a new plan. Texts are borrowed. */
struct ledger_terms {
    const char *job, *party; /* the run; who keeps this ledger */
    const char *purpose;     /* training; basis: the passes that find one */
    enum ledger_unit unit;
    const char *method, *weights;
    const char
        *bases; /* seed, weights; private: within this ledger; given: a file that is public */
    double epsilon, delta;        /* first line: the budget of all; what this plan keeps to */
    double noise, sampling, clip; /* planned: multiplier, rate, (first) clip norm */
    struct adaptive adaptive;
    double denominator;
    struct digest cohorts; /* the anchor of the seeds members are drawn by (cohort.h); zero: none */
    struct digest given;   /* what bases "given" is, or what training starts from; zero: nothing */
    uint64_t units;        /* in the population: members, or records */
    uint64_t dim;          /* coordinates that get noise */
    uint32_t rounds;
    uint32_t steps; /* noisy steps a release: 1 at the coordinator, of DP-SGD in a client */
};

/* One release: what was drawn, and what is charged for it. */
struct ledger_release {
    uint32_t round;
    struct account_event charged; /* noise at most what was drawn */
    double clip;                  /* C; lattice and norm_int follow from it (clip.h) */
    uint64_t sigma, sigma_bits;   /* in lattice steps; sigma_bits 0: no count of unclipped ones */
    double denominator;
    uint64_t dim;
    struct digest released;     /* of the state or update */
    double epsilon, rdp, order; /* after it, by both accountants */
};

/* Each appends one line, with its newline, and moves the head; both untouched on failure. */
err ledger_start(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                 const struct ledger_terms *terms);
/* From here on releases are made under these terms; their unit and party are the ledger's. */
err ledger_plan(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const struct ledger_terms *terms);
err ledger_add(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
               const struct ledger_release *release);
/* What happened without a release: "stop" (the budget is spent), "abort", "evaluation", "note". */
err ledger_note(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const char *kind, const char *text);

/* The same plan, of at most as many coordinates: `is` needs no line of its own after `was`. */
bool ledger_same_plan(const struct ledger_terms *was, const struct ledger_terms *is);

struct ledger_entry {
    const char *kind;                 /* release, plan, stop, abort, evaluation, note */
    const char *text;                 /* of a note; else NULL */
    const struct ledger_terms *terms; /* in force with this line */
    struct ledger_release release;
};
struct ledger {
    struct arena arena;
    struct ledger_terms terms;           /* the first line's */
    const struct ledger_terms *in_force; /* the newest plan's, or the first line's */
    struct ledger_head head;
    struct ledger_entry *entry; /* (count): all lines but the first */
    size_t count;
    uint8_t public[32]; /* that signed it, as the first line says */
};
/* All of a ledger's text. ERR_INPUT "NAME:LINE: ..." for anything that no writer wrote. That lines
 * are missing at the end only the head can tell: compare it with one noted elsewhere. */
err ledger_read(struct ledger *out, const char *text, size_t size, const char *name);
/* The lines that follow what was read before (a zeroed one: nothing). As it was on failure. */
err ledger_read_more(struct ledger *ledger, const char *text, size_t size, const char *name);
/* The hash that one line says it has; nothing is checked. */
err ledger_line_hash(struct digest *out, const char *line, size_t size, const char *name);
/* Keeps what reading on needs, and none of the entries. */
err ledger_forget(struct ledger *ledger);
void ledger_close(struct ledger *ledger);

#endif
