/* A run with noise at the coordinator is killed before and after each step that touches the
 * disk, then continued. Every round must be charged once, and the charge must match the
 * published states. Noise drawn before the kill must be the noise that is published, because two
 * draws for one round would cost twice. */
#include "coordinator/store/store.h"
#include "privacy/ledger/statement.h"
#include "tests/support/crash_fixture.h"

struct drawn { /* a noisy mean that was there when the process was killed */
    uint32_t round;
    float value[2][16];
};

static void read_small_matrices(float out[2][16], const char *dir, const struct digest *digest)
{
    struct blob_path path = blob_path(dir, digest);
    struct adapter_file file;
    ok(adapter_file_map(&file, path.text));
    cr_assert_eq(file.count, 2);
    for (size_t i = 0; i < 2; i++) {
        const struct adapter_file_factor *r = &file.module[i].factor[ADAPTER_FILE_R];
        cr_assert(r->f32 && r->rows == 4 && r->cols == 4);
        memcpy(out[i], r->f32, sizeof out[i]);
    }
    adapter_file_close(&file);
}

static void look(struct drawn *out, const char *dir)
{
    struct store store = {0};
    struct arena arena = {0};
    struct store_run *row = NULL;
    struct store_private was;
    size_t count = 0;
    *out = (struct drawn){0};
    ok(support_store_open(&store, dir));
    ok(store_runs(&row, &count, &store, &arena));
    if (count > 0) {
        ok(store_private_load(&was, &store, row->id, row->published + 1));
        if (was.noisy.size > 0) {
            out->round = row->published + 1;
            read_small_matrices(out->value, dir, &was.noisy.digest);
        }
    }
    arena_close(&arena);
    store_close(&store);
}

static void expect_charged_once(const char *dir, const struct drawn *drawn, long at)
{
    struct store store = {0};
    struct arena arena = {0};
    struct store_run *row = NULL;
    struct store_round *round = NULL;
    struct bytes text = {.max = STORE_LEDGER_BYTES_MAX};
    struct ledger ledger = {0};
    struct statement statement;
    size_t count = 0, rounds = 0;
    float state[2][16];
    ok(support_store_open(&store, dir));
    ok(store_runs(&row, &count, &store, &arena));
    cr_assert_eq(count, 1);
    ok(store_rounds(&round, &rounds, &store, row->id, false, &arena));
    ok(store_ledger(&text, &store, row->id));
    ok(ledger_read(&ledger, (const char *)text.data, text.size, "ledger"));
    ok(statement_replay(&statement, &ledger, "ledger"));
    cr_assert(rounds == ROUNDS && statement.releases == ROUNDS && ledger.count == ROUNDS,
              "step %ld: %zu rounds, %zu releases", at, rounds, statement.releases);
    for (size_t i = 0; i < ROUNDS; i++) {
        const struct ledger_release *release = &ledger.entry[i].release;
        cr_expect(release->round == i + 1 && round[i].round == i + 1 &&
                      digest_equal(&release->released, &round[i].state.digest),
                  "step %ld, round %zu: another state than was charged", at, i + 1);
    }
    if (drawn->round > 0) {
        read_small_matrices(state, dir, &round[drawn->round - 1].state.digest);
        cr_expect(!memcmp(state, drawn->value, sizeof state), "step %ld: round %u was drawn again",
                  at, drawn->round);
    }
    ledger_close(&ledger);
    bytes_close(&text);
    arena_close(&arena);
    store_close(&store);
}

static void disturb(enum fault kind)
{
    char place[SUPPORT_PATH_BYTES], key[SUPPORT_PATH_BYTES + 16], dir[SUPPORT_PATH_BYTES];
    struct drawn drawn = {0};
    int found = 0;
    make_dir(place);
    make_key(key, place);
    make_dir(dir);
    long taken = spawn(dir, FAULT_NONE, 0);
    cr_assert_gt(taken, 20);
    expect_charged_once(dir, &drawn, 0);
    support_dir_remove(dir);
    for (long at = 1; at <= taken; at += stride(taken, 100)) {
        make_dir(dir);
        drawn = (struct drawn){0};
        if (spawn(dir, kind, at) < 0) {
            look(&drawn, dir);
            cr_assert_gt(spawn(dir, FAULT_NONE, 0), 0);
        }
        found += drawn.round > 0;
        expect_charged_once(dir, &drawn, at);
        support_dir_remove(dir);
    }
    cr_expect(kind == FAULT_FULL || found > 3, "%d of %ld steps had a mean drawn", found, taken);
    support_dir_remove(place);
}

Test(crash_private, killed_before_any_step_each_round_is_drawn_and_charged_once)
{
    disturb(FAULT_KILL);
}

Test(crash_private, killed_after_any_step_each_round_is_drawn_and_charged_once)
{
    disturb(FAULT_KILL_AFTER);
}

Test(crash_private, a_disk_that_is_full_at_any_step_charges_nothing_twice)
{
    disturb(FAULT_FULL);
}
