/* A store in a folder of its own, with the blobs and runs that tests of it need. */
#ifndef TESTS_SUPPORT_STORE_FIXTURE_H
#define TESTS_SUPPORT_STORE_FIXTURE_H

#include "base/file.h"
#include "coordinator/store/store.h"
#include "tests/support/database.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

/* Undoes the versions of the tables from 9 on, which add what cannot be added twice. A later
 * version must be added here. */
#define STORE_WITHOUT_9                                                                            \
    "DROP TABLE counted; DROP TABLE made; DROP TABLE software;"                                    \
    " ALTER TABLE members DROP COLUMN software; ALTER TABLE rounds DROP COLUMN report_z;"          \
    " ALTER TABLE runs DROP COLUMN began; ALTER TABLE runs DROP COLUMN ended_ms;"                  \
    " ALTER TABLE runs DROP COLUMN archived_ms; ALTER TABLE runs DROP COLUMN deleted_ms;"          \
    " ALTER TABLE runs DROP COLUMN deleted_by; ALTER TABLE runs DROP COLUMN deleted_name;"

static char dir[SUPPORT_PATH_BYTES];
static struct store store;

static inline void begin(void)
{
    support_dir_make(dir);
    ok(support_store_open(&store, dir));
}
static inline void end(void)
{
    store_close(&store);
    support_dir_remove(dir);
}

/* A blob as admission and aggregation leave it. */
static inline struct store_blob make_blob(const char *text)
{
    struct store_blob blob = {digest_of(text, strlen(text)), strlen(text)};
    char part[SUPPORT_PATH_BYTES + 16];
    snprintf(part, sizeof part, "%s/spool/part", dir);
    ok(file_write(part, text, strlen(text), true));
    ok(blob_adopt(dir, part, &blob.digest));
    return blob;
}

static inline bool has_blob(const struct store_blob *blob)
{
    uint64_t size;
    return !err_is(blob_size(&size, dir, &blob->digest));
}

static inline int64_t add_run(const char *name)
{
    static const char *const members[] = {"a", "b"};
    struct store_run run = {.name = name, .config = "config", .config_size = 6, .created_ms = 5};
    int64_t id = 0;
    ok(store_run_add(&id, &store, &run, members, 2));
    return id;
}

static inline struct store_update make_update(int64_t run, const char *member, uint32_t round)
{
    char text[64];
    snprintf(text, sizeof text, "update of %s for %u", member, round);
    return (struct store_update){.run = run,
                                 .member = member,
                                 .trained_round = round,
                                 .counted_in = round,
                                 .blob = make_blob(text),
                                 .examples = 7,
                                 .train_loss = 0.5};
}

static inline err publish(int64_t run, uint32_t round, struct store_blob *state)
{
    char text[32];
    snprintf(text, sizeof text, "state %u", round);
    *state = make_blob(text);
    struct store_publish p = {
        .run = run,
        .keep = 2,
        .updates_keep = 1,
        .round = {.round = round, .state = *state, .updates = 2, .report_json = "{}"}};
    struct release *release = NULL;
    ok(release_plain(&release, &state->digest));
    p.release = release;
    err e = store_publish(&store, &p);
    release_close(release);
    return e;
}

#endif
