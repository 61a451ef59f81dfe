/* The manifest of a published state: everything that the state was made from, signed by the
 * coordinator, as one JSON document:
 *
 *     {"manifest":{"about":{..},"rounds":[..],"software":{..}},"signature":{"hash","key","value"}}
 *
 *     about      run, method, options, base, state, frozen factors, privacy, audit head, ...
 *     rounds     for each published round: state, configuration, program, and its updates with
 *                member, digest and weight
 *     software   descriptions of programs and machines, by the digest that rounds name
 *
 *     hash  = BLAKE2b-256("fedlora manifest 1" 0 canonical text of "manifest")
 *     value = Ed25519("fedlora manifest 1" 0 hash)
 *
 * It is written in pieces, because a run may have millions of updates:
 *
 *     manifest_begin(out, &w, about)
 *         manifest_round(out, &w, &round)                     once for each round, in order
 *             manifest_update(out, &w, &update)               once for each update, by member
 *     manifest_end(out, &w, key)
 *     manifest_close(&w)                                      in any case
 *
 * Each appends canonical text to `out`, which the caller may empty in between. Pure. */
#ifndef LINEAGE_MANIFEST_H
#define LINEAGE_MANIFEST_H

#include "base/bytes.h"
#include "base/digest.h"
#include "base/json.h"
#include "privacy/ledger/ledger.h"

struct manifest_writer {
    struct digest_stream hash;
    json_t *software;           /* {digest: text} so far */
    bool any_round, any_update; /* of the list that is open */
};

struct manifest_round {
    uint32_t round;
    struct digest state;
    uint64_t state_bytes;
    const struct digest *config; /* NULL: not recorded */
    const char *software;        /* "": not recorded */
    uint32_t updates;            /* their number, also if they are withheld */
};
struct manifest_update {
    const char *member, *software;
    uint32_t trained_round;
    struct digest digest;
    uint64_t bytes, examples;
    double weight;
};

/* Takes over `about`, also on failure. */
err manifest_begin(struct bytes *out, struct manifest_writer *w, json_t *about);
err manifest_round(struct bytes *out, struct manifest_writer *w,
                   const struct manifest_round *round);
err manifest_update(struct bytes *out, struct manifest_writer *w,
                    const struct manifest_update *update);
err manifest_end(struct bytes *out, struct manifest_writer *w, const struct ledger_key *key);
void manifest_close(struct manifest_writer *w);

/* Reads a manifest and checks its signature. *out is the document's "manifest"; json_decref() it.
 * ERR_INPUT: a byte was changed, or another key has signed. */
err manifest_read(json_t **out, const char *path, const uint8_t key[32]);

/* Gives `differs` each difference between the manifest and a state: its digest, and what the
 * metadata of its file says (NULL: not given), and each place where the manifest contradicts
 * itself. Returns their number. */
struct manifest_state {
    struct digest digest;
    const char *run, *method, *base, *frozen;
};
size_t manifest_compare(const json_t *manifest, const struct manifest_state *state,
                        void (*differs)(void *context, const char *text), void *context);

#endif
