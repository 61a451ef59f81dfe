/* What the store keeps of runs with client-level privacy; contract in store.h. Lines of the ledger
 * are written by store_started() and store_publish(), with the state they go with. */
#include "coordinator/store.h"

#include "base/text.h"

#include <string.h>

err store_private_load(struct store_private *out, struct store *store, int64_t run, uint32_t round)
{
    struct db_query q = {0};
    struct store_private row = {0};
    bool is_there = false;
    size_t size = 0;
    TRY(db_query_open(&q, &store->db,
                      "SELECT seed,clip,noisy,noisy_size,next_clip FROM private_rounds"
                      " WHERE run=? AND round=?",
                      "ii", run, (int64_t)round));
    err e = db_query_next(&is_there, &q);
    if (!err_is(e) && is_there) {
        const void *seed = db_query_blob(&size, &q, 0);
        row.drawn = size == sizeof row.seed.byte;
        if (row.drawn) memcpy(row.seed.byte, seed, size);
        row.clip = db_query_num(&q, 1);
        if (db_query_digest(&row.noisy.digest, &q, 2))
            row.noisy.size = (uint64_t)db_query_int(&q, 3);
        row.next_clip = db_query_num(&q, 4);
    }
    db_query_close(&q);
    if (!err_is(e)) *out = row;
    return e;
}

static err insert_seed(struct db *db, int64_t run, const struct cohort_seed *seed,
                       const struct cohort *cohort)
{
    char text[DIGEST_TEXT_BYTES];
    struct digest commitment = cohort_commit(seed, cohort);
    digest_text(text, &commitment);
    TRY(db_run(db,
               "INSERT INTO private_rounds(run,round,seed) VALUES(?,?,?)"
               " ON CONFLICT(run,round) DO UPDATE SET seed=excluded.seed",
               "iib", run, (int64_t)cohort->round, (const void *)seed->byte, sizeof seed->byte));
    return db_run(
        db, "INSERT INTO events(run,wall_ms,event,text,round,member) VALUES(?,?,?,?,?,'')", "iitti",
        run, (int64_t)text_wall_ms(), "cohort.committed", text, (int64_t)cohort->round);
}

err store_private_seed(struct cohort_seed *seed, struct store *store, int64_t run,
                       const struct cohort *cohort)
{
    struct store_private was;
    TRY(store_private_load(&was, store, run, cohort->round));
    if (was.drawn) {
        *seed = was.seed;
        return ERR_NONE;
    }
    TRY(db_begin(&store->db));
    return db_end(&store->db, insert_seed(&store->db, run, seed, cohort));
}

err store_private_noisy(struct store *store, int64_t run, uint32_t round,
                        const struct store_private *made)
{
    return db_run(&store->db,
                  "INSERT INTO private_rounds(run,round,noisy,noisy_size,next_clip)"
                  " VALUES(?,?,?,?,?) ON CONFLICT(run,round) DO UPDATE SET noisy=excluded.noisy,"
                  " noisy_size=excluded.noisy_size, next_clip=excluded.next_clip",
                  "iihid", run, (int64_t)round, &made->noisy.digest, (int64_t)made->noisy.size,
                  made->next_clip);
}

err store_ledger(struct bytes *out, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = true;
    TRY(db_query_open(&q, &store->db, "SELECT text FROM ledger WHERE run=? ORDER BY line", "i",
                      run));
    err e = db_query_next(&row, &q);
    while (!err_is(e) && row) {
        const char *line = db_query_text(&q, 0);
        e = bytes_append(out, line, strlen(line));
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    return e;
}
