/* The copy of an archived run in store.archive. tests/fault/retain.c breaks it off at every
 * step. */
#include "coordinator/work/keep_record.h"

#include "base/json.h"
#include "tests/support/store_fixture.h"

static char records[SUPPORT_PATH_BYTES + 16];
enum { PATH_BYTES = sizeof records + 64 };

static void begin_records(void)
{
    begin();
    snprintf(records, sizeof records, "%s/records", dir);
}
TestSuite(keep_record, .init = begin_records, .fini = end);

static void path_in(char out[PATH_BYTES], int64_t run, const char *name)
{
    snprintf(out, PATH_BYTES, "%s/r1.%lld/%s", records, (long long)run, name);
}

/* The digest of round 1 in the record. */
static struct digest recorded_state(int64_t run)
{
    char path[PATH_BYTES];
    struct digest digest = {0};
    const char *text = NULL;
    json_t *all = NULL;
    path_in(path, run, "record.json");
    ok(json_open(&all, path, 1 << 20));
    json_t *round = json_array_get(json_object_get(all, "rounds"), 0);
    ok(json_get_str(&text, round, "state", path));
    ok(digest_parse(&digest, text));
    json_decref(all);
    return digest;
}

Test(keep_record, has_the_state_and_the_digests_of_rounds)
{
    struct store_blob state;
    struct digest is;
    char path[PATH_BYTES];
    const struct keep_record what = {.dir = records, .name = "r1", .run = add_run("r1")};
    ok(publish(what.run, 1, &state));
    ok(keep_record_make(&what, &store));
    path_in(path, what.run, "state.safetensors");
    ok(digest_of_file(&is, path));
    cr_expect(digest_equal(&is, &state.digest));
    is = recorded_state(what.run);
    cr_expect(digest_equal(&is, &state.digest));
}

Test(keep_record, is_made_without_a_file_that_the_store_has_lost)
{
    struct store_blob state;
    char path[PATH_BYTES];
    const struct keep_record what = {.dir = records, .name = "r1", .run = add_run("r1")};
    ok(publish(what.run, 1, &state));
    cr_assert_eq(remove(blob_path(dir, &state.digest).text), 0);
    ok(keep_record_make(&what, &store));
    path_in(path, what.run, "state.safetensors");
    cr_expect_not(file_exists(path));
    struct digest is = recorded_state(what.run);
    cr_expect(digest_equal(&is, &state.digest), "the record still names the state");
}
