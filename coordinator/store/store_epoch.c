/* Epochs: which start of which store a member has talked to last. Two live copies of one store, for
 * example a backup that was started while the original still runs, would both hand out rounds, and
 * each would lose what the other has accepted. */
#include "coordinator/store/store.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>

enum { EPOCHS_KEPT = 1000, ACCEPT_JUMP = 1000000 };

/* STORE_EPOCH_BYTES on the wire: the store's id, the number of its start (big-endian), and random
 * bytes of that start, because two copies may count the same number. */
enum { ID = 16, NUMBER = 8, NONCE = 8 };
_Static_assert(ID + NUMBER + NONCE == STORE_EPOCH_BYTES, "the parts of an epoch");

static uint64_t number_of(const uint8_t *epoch)
{
    uint64_t n = 0;
    for (int i = 0; i < NUMBER; i++)
        n = n << 8 | epoch[ID + i];
    return n;
}

static void set_number(uint8_t *epoch, uint64_t n)
{
    for (int i = NUMBER - 1; i >= 0; i--, n >>= 8)
        epoch[ID + i] = (uint8_t)n;
}

/* The newest start; *found false: this store was never started. */
static err newest(bool *found, struct store_epoch *out, struct db *db)
{
    struct db_query q = {0};
    size_t size = 0;
    TRY(db_query_open(&q, db, "SELECT epoch FROM epochs ORDER BY start DESC LIMIT 1", ""));
    err e = db_query_next(found, &q);
    const void *epoch = !err_is(e) && *found ? db_query_blob(&size, &q, 0) : NULL;
    *found = size == STORE_EPOCH_BYTES;
    if (*found) memcpy(out->byte, epoch, STORE_EPOCH_BYTES);
    db_query_close(&q);
    return e;
}

static err insert(struct db *db, const struct store_epoch *epoch)
{
    return db_run(db, "INSERT INTO epochs VALUES(?,?)", "ib", (int64_t)number_of(epoch->byte),
                  (const void *)epoch->byte, (size_t)STORE_EPOCH_BYTES);
}

/* The next start, `step` after the newest. With `forget` the earlier ones become unknown. */
static err add(struct store_epoch *out, struct db *db, uint64_t step, bool forget)
{
    bool found = false;
    uint64_t number = 0;
    TRY(newest(&found, out, db));
    if (found)
        number = number_of(out->byte);
    else
        randombytes_buf(out->byte, ID);
    set_number(out->byte, number + step);
    randombytes_buf(out->byte + ID + NUMBER, NONCE);
    int64_t kept = (int64_t)number + (forget ? 1 : 1 - EPOCHS_KEPT);
    TRY(db_run(db, "DELETE FROM epochs WHERE start<?", "i", kept));
    return insert(db, out);
}

/* On a full disk the last start's epoch is used once more, so that a coordinator can be started to
 * make room; two copies that were both started so cannot be told apart. */
err store_epoch_begin(struct store_epoch *out, struct store *store)
{
    struct db *db = &store->db;
    struct store_epoch made = {0};
    bool found = false;
    REQUIRE(sodium_init() >= 0);
    err e = db_begin(db);
    if (!err_is(e)) e = db_end(db, add(&made, db, 1, false));
    if (e.sys == ENOSPC) {
        TRY(newest(&found, &made, db));
        if (found) e = ERR_NONE;
    }
    if (!err_is(e)) *out = made;
    return e;
}

/* The jump is larger than the number of starts that any other copy can have had. */
err store_epoch_accept(struct store *store)
{
    struct store_epoch made = {0};
    REQUIRE(sodium_init() >= 0);
    TRY(db_begin(&store->db));
    return db_end(&store->db, add(&made, &store->db, ACCEPT_JUMP, true));
}

/* Another random part of a start that is in this store's list: a copy was started beside it. */
static err is_fork(bool *out, struct db *db, const struct store_epoch *theirs)
{
    int64_t differs = 0;
    TRY(db_number(&differs, db, "SELECT EXISTS(SELECT 1 FROM epochs WHERE start=? AND epoch<>?)",
                  "ib", (int64_t)number_of(theirs->byte), (const void *)theirs->byte,
                  (size_t)STORE_EPOCH_BYTES));
    *out = differs != 0;
    return ERR_NONE;
}

/* An epoch of another store is accepted: the operator has made a new store, and its runs are other
 * runs. */
err store_epoch_judge(struct store *store, const void *epoch, size_t size)
{
    struct store_epoch theirs, ours;
    bool found = false, fork = false;
    if (size == 0) return ERR_NONE;
    if (size != STORE_EPOCH_BYTES)
        return err_make(ERR_INPUT, "epoch: %zu bytes, expected %d", size, STORE_EPOCH_BYTES);
    memcpy(theirs.byte, epoch, size);
    TRY(newest(&found, &ours, &store->db));
    if (!found || memcmp(ours.byte, theirs.byte, ID) != 0) return ERR_NONE;
    uint64_t is = number_of(theirs.byte), newest_is = number_of(ours.byte);
    if (is <= newest_is) TRY(is_fork(&fork, &store->db, &theirs));
    if (is <= newest_is && !fork) return ERR_NONE;
    return err_make(ERR_STATE,
                    "this coordinator runs on an old copy of its store: the member knows start "
                    "%llu of another copy, this is start %llu. The operator must stop one of the "
                    "two; if this copy is to stay, fedlorad --accept-copy says so",
                    (unsigned long long)is, (unsigned long long)newest_is);
}
