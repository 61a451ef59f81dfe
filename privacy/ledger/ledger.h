/* The privacy ledger: one canonical JSON line for each release, with the hash of the line before it
 * and an Ed25519 signature. The line is written in the same transaction as the state or update it
 * describes, or to a file before it. So a crash can count a release that never left, but never miss
 * one that did.
 *
 * The first line has the promise and the plan, the others have the releases. A ledger that
 * continues under another plan (training after a private basis was found, or another run on the
 * same records) has a line for it. Unit and budget are those of the first line, for all lines
 * together.
 *
 *     hash = BLAKE2b-256("fedlora ledger 1" 0 line without "hash" and "signature")
 *     signature = Ed25519("fedlora ledger 1" 0 hash)
 *
 * Keys are sorted, without spaces. Numbers that are not whole are C99 hexadecimal texts, so that a
 * replay is exact. A writer holds a head and a key and makes lines. Only functions of
 * keys use a disk. A reader (ledger_read()) refuses any changed byte and names the
 * line. */
#ifndef PRIVACY_LEDGER_H
#define PRIVACY_LEDGER_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/digest.h"
#include "base/limits.h"
#include "privacy/account/account.h"
#include "privacy/noise/adaptive.h"

/* The longest line, and the most bytes of whole lines in one message. */
enum { LEDGER_LINE_BYTES = 1 << 16, LEDGER_PART_BYTES = 1 << 20 };

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
err ledger_public_write(const uint8_t public[32], const char *path);
void ledger_key_close(struct ledger_key *key);
/* Makes a new key, readable by its owner alone, and its public half; for simulated ledgers and the
 * audit log, because an operator's key of privacy ledgers is made outside of this program.
 * ERR_INPUT if `path` exists. */
err ledger_key_make(const char *path, const char *public_path);

struct ledger_head {
    uint64_t count;     /* lines so far */
    struct digest hash; /* of the last line; zero if there is none */
};

/* The first line, or a new plan. Texts are borrowed. */
struct ledger_terms {
    const char *job, *party; /* the run; the owner of this ledger */
    const char *purpose;     /* "training", or "basis": the passes that find a basis */
    enum ledger_unit unit;
    const char *method, *weights;
    /* seed, weights, private (found under this ledger) or given (a public file) */
    const char *bases;
    double epsilon, delta;        /* first line: the whole budget; later lines: of that plan */
    double noise, sampling, clip; /* planned: multiplier, rate, (first) clip norm */
    struct adaptive adaptive;
    double denominator;
    struct digest cohorts; /* anchor of the seeds that draw members (cohort.h); zero: none */
    struct digest given;   /* the file of bases "given", or the initial state; zero: none */
    uint64_t units;        /* size of the population: members, or records */
    uint64_t dim;          /* coordinates that get noise */
    uint32_t rounds;
    uint32_t steps; /* noisy steps in a release: 1 at the coordinator, else steps of DP-SGD */
    /* The first line alone: a simulation made this ledger, so it protects no real records. Its line
     * has "simulated":true, and a ledger of the other kind is never continued. */
    bool simulated;
};

/* One release: the noise that was used, and the event charged for it. */
struct ledger_release {
    uint32_t round;
    struct account_event charged; /* its noise is at most the noise used */
    double clip;                  /* C; lattice and norm_int follow from it (clip.h) */
    uint64_t sigma, sigma_bits;   /* lattice steps; sigma_bits 0: unclipped members not counted */
    double denominator;
    uint64_t dim;
    struct digest released;     /* of the state or update */
    double epsilon, rdp, order; /* totals after this release, by both accountants */
};

/* Each function appends one line, with its newline, and advances the head. Both are untouched on
 * failure. */
err ledger_start(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                 const struct ledger_terms *terms);
/* Later releases are made under these terms. Unit and party must be those of the first line. */
err ledger_plan(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const struct ledger_terms *terms);
err ledger_add(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
               const struct ledger_release *release);
/* An event without a release: "stop" (the budget is spent), "abort", "evaluation", "note". */
err ledger_note(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const char *kind, const char *text);

/* True if `is` is the same plan as `was`, with at most as many coordinates. It then needs no new
 * line. */
bool ledger_same_plan(const struct ledger_terms *was, const struct ledger_terms *is);

struct ledger;
/* ERR_INPUT unless the ledger was made by a simulation, or was not, as `simulated` says. */
err ledger_check_simulated(const struct ledger *ledger, bool simulated, const char *name);

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
    uint8_t public[32]; /* the signing key, as the first line has it */
};
/* Reads the whole text of a ledger. ERR_INPUT "NAME:LINE: ..." for any text that is not exactly in
 * the form of a writer. Missing lines at the end cannot be detected here, so compare the head with
 * one recorded elsewhere. */
err ledger_read(struct ledger *out, const char *text, size_t size, const char *name);
/* Reads the lines after those read before (a zeroed struct has read none). Unchanged on failure. */
err ledger_read_more(struct ledger *ledger, const char *text, size_t size, const char *name);
/* The "hash" field of one line, unchecked. */
err ledger_line_hash(struct digest *out, const char *line, size_t size, const char *name);
/* Frees the entries; ledger_read_more() still works. */
err ledger_forget(struct ledger *ledger);
void ledger_close(struct ledger *ledger);

#endif
