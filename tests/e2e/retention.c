/* A real fedlorad process over TLS: runs that are over are archived and deleted, and operators read
 * lists, events and rounds in pages. */
#include "base/json.h"
#include "client/session/remote.h"
#include "tests/support/three_members.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

static void create(const char *name)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = (char *)(uintptr_t)name;
    config.method = "flora";
    config.rounds = ROUNDS;
    config.rank = 8;
    run_name = name;
    ok(fake_create_run(&ops, &config, MEMBERS));
}

static void operator_again(void)
{
    fake_close(&ops);
    open_member(&ops, "ops", 0);
}

static void finish(const char *name)
{
    size_t made, skipped;
    create(name);
    run_everyone(0, 8);
    operator_again();
    ok(fake_reports(&made, &skipped, &ops, name));
}

static size_t count_files(const char *folder)
{
    char path[SUPPORT_PATH_BYTES + 64];
    size_t files = 0;
    snprintf(path, sizeof path, "%s/%s", federation.dir, folder);
    DIR *list = opendir(path);
    for (struct dirent *entry; list && (entry = readdir(list));)
        files += entry->d_name[0] != '.';
    if (list) closedir(list);
    return files;
}

static void expect_files(const char *folder, size_t wanted)
{
    for (int i = 0; i < 200 && count_files(folder) != wanted; i++)
        usleep(50 * 1000);
    cr_expect_eq(count_files(folder), wanted, "%zu files in %s, expected %zu", count_files(folder),
                 folder, wanted);
}

static err list(Fedlora__V1__ListRunsReply **reply, const Fedlora__V1__ListRunsRequest *request)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_runs),
                                                &fedlora__v1__list_runs_reply__descriptor};
    return remote_call(reply, ops.client, &method, &request->base, 0);
}

static void expect_phase(const char *name, const char *phase)
{
    Fedlora__V1__RunStatus *status = NULL;
    for (int i = 0; i < 200; i++, usleep(50 * 1000)) {
        message_free(status);
        ok(fake_status(&status, &ops, name));
        if (!strcmp(status->phase, phase)) break;
    }
    cr_expect_str_eq(status->phase, phase);
    message_free(status);
}

static void expect_tombstone(const char *name)
{
    Fedlora__V1__ListRunsRequest request = FEDLORA__V1__LIST_RUNS_REQUEST__INIT;
    Fedlora__V1__ListRunsReply *reply = NULL;
    request.deleted = true;
    ok(list(&reply, &request));
    cr_assert_eq(reply->n_runs, 1);
    const Fedlora__V1__RunStatus *grave = reply->runs[0];
    cr_expect_str_eq(grave->config->name, name);
    cr_expect_str_eq(grave->phase, "deleted");
    cr_expect(strstr(grave->waiting_for, " by admin/ops at 127.0.0.1"), "%s", grave->waiting_for);
    cr_expect_eq(grave->state_digest.len, DIGEST_BYTES);
    message_free(reply);
}

/* `fedlorad store --json` beside the running service. */
static json_t *usage(const char *name)
{
    char command[2 * SUPPORT_PATH_BYTES];
    snprintf(command, sizeof command, "%s/fedlorad store --config %s/fedlorad.ini --json",
             FEDLORA_BUILD_DIR, federation.dir);
    FILE *pipe = popen(command, "r");
    json_t *all = json_loadf(pipe, 0, NULL), *run, *found = NULL;
    size_t i;
    cr_assert_eq(pclose(pipe), 0);
    cr_assert_not_null(all);
    json_array_foreach(json_object_get(all, "runs"), i, run)
    {
        if (!strcmp(json_string_value(json_object_get(run, "run")), name)) found = json_incref(run);
    }
    json_decref(all);
    return found;
}

static void expect_usage(const char *name, bool archived)
{
    json_t *run = usage(name), *bytes = json_object_get(run, "bytes");
    cr_assert_not_null(run);
    int64_t state = json_integer_value(json_object_get(bytes, "state"));
    int64_t updates = json_integer_value(json_object_get(bytes, "updates"));
    int64_t earlier = json_integer_value(json_object_get(bytes, "earlier"));
    cr_expect_gt(state, 0);
    cr_expect_eq(updates > 0, !archived);
    cr_expect_eq(earlier > 0, !archived);
    cr_expect_eq(json_integer_value(json_object_get(run, "total")), state + updates + earlier);
    cr_expect_eq(json_integer_value(json_object_get(run, "removes_files")), 0);
    json_decref(run);
}

Test(retention, a_run_is_archived_then_deleted_and_its_name_is_free)
{
    Fedlora__V1__RunStatus *status = NULL;
    begin("");
    create("open");
    refused(fake_command(&ops, RPC_PATH_ADMIN(archive_run), "open"), ERR_STATE,
            "run open is waiting; stop it before it is archived");
    refused(fake_command(&ops, RPC_PATH_ADMIN(delete_run), "open"), ERR_STATE,
            "stop it before it is deleted");
    finish("r");
    expect_files("store/blobs", 2 + MEMBERS);
    expect_usage("r", false);
    ok(fake_command(&ops, RPC_PATH_ADMIN(archive_run), "r"));
    expect_files("store/blobs", 1);
    expect_usage("r", true);
    fake_federation_stop(&federation, SIGKILL);
    ok(fake_federation_start(&federation));
    operator_again();
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->phase, "archived");
    cr_expect_eq(status->n_history, ROUNDS);
    for (size_t i = 0; i < status->n_history; i++) {
        cr_expect_eq(status->history[i]->state_digest.len, DIGEST_BYTES);
        cr_expect(strstr(status->history[i]->report_json, "q_proj"));
    }
    message_free(status);
    ok(fake_command(&ops, RPC_PATH_ADMIN(delete_run), "r"));
    expect_files("store/blobs", 0);
    refused(fake_status(&status, &ops, "r"), ERR_REFUSED, "there is no run \"r\"");
    expect_tombstone("r");
    finish("r");
    expect_phase("r", "finished");
    end();
}

static void expect_record(void)
{
    char path[SUPPORT_PATH_BYTES + 64], text[DIGEST_TEXT_BYTES];
    struct digest digest;
    json_t *record = NULL;
    snprintf(path, sizeof path, "%s/old/r.1/state.safetensors", federation.dir);
    ok(digest_of_file(&digest, path));
    digest_text(text, &digest);
    snprintf(path, sizeof path, "%s/old/r.1/record.json", federation.dir);
    record = json_load_file(path, 0, NULL);
    cr_assert_not_null(record);
    json_t *rounds = json_object_get(record, "rounds"),
           *updates = json_object_get(record, "updates");
    cr_assert_eq(json_array_size(rounds), ROUNDS);
    cr_expect_eq(json_array_size(updates), ROUNDS * MEMBERS);
    json_t *last = json_array_get(rounds, ROUNDS - 1);
    cr_expect_str_eq(json_string_value(json_object_get(last, "state")), text);
    cr_expect(json_is_object(json_object_get(last, "report")));
    json_decref(record);
}

Test(retention, a_finished_run_is_archived_by_itself_and_copied_before)
{
    char more[SUPPORT_PATH_BYTES + 128];
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    ok(rpc_init());
    support_dir_make(dir);
    snprintf(more, sizeof more,
             "[store]\nkeep_finished = 2s\nkeep_states = 3\nkeep_updates = 2\narchive = %s/old\n",
             dir);
    ok(fake_federation_open(&federation, dir, MEMBERS, more));
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
    finish("r");
    expect_phase("r", "archived");
    expect_files("store/blobs", 1);
    expect_files("old", 1);
    expect_record();
    cr_expect(fake_federation_logged(&federation, "event=run.archived run=r"));
    config.name = "s";
    config.from_run = "r";
    config.rounds = ROUNDS + 1;
    run_name = "s";
    ok(fake_create(&ops, &config));
    run_everyone(0, 8);
    operator_again();
    end();
}

/* ---- pages ---- */

static err watch(Fedlora__V1__WatchReply **reply, const Fedlora__V1__WatchRequest *request)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(watch_run),
                                                &fedlora__v1__watch_reply__descriptor};
    return remote_call(reply, ops.client, &method, &request->base, 0);
}

static size_t events(bool newest, uint32_t tail, uint64_t since_ms, uint64_t *after)
{
    Fedlora__V1__WatchRequest request = FEDLORA__V1__WATCH_REQUEST__INIT;
    Fedlora__V1__WatchReply *reply = NULL;
    request.run = "r";
    request.newest = newest;
    request.tail = tail;
    request.since_ms = since_ms;
    ok(watch(&reply, &request));
    size_t n = reply->n_events;
    *after = reply->after;
    message_free(reply);
    return n;
}

static size_t runs_of(uint32_t after, uint32_t limit, bool open, uint32_t *next)
{
    Fedlora__V1__ListRunsRequest request = FEDLORA__V1__LIST_RUNS_REQUEST__INIT;
    Fedlora__V1__ListRunsReply *reply = NULL;
    request.after = after;
    request.limit = limit;
    request.open = open;
    ok(list(&reply, &request));
    size_t n = reply->n_runs;
    *next = reply->next;
    message_free(reply);
    return n;
}

Test(retention, operators_read_in_pages)
{
    uint64_t last = 0, after = 0;
    uint32_t next = 0;
    begin("");
    finish("r");
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "x%d", i);
        create(name);
    }
    size_t all = events(false, 0, 0, &last);
    cr_expect_gt(all, 10);
    cr_expect_eq(events(true, 3, 0, &after), 3);
    cr_expect_eq(after, last);
    cr_expect_eq(events(true, 0, 0, &after), 0);
    cr_expect_eq(after, last, "the next request continues after the newest");
    cr_expect_eq(events(false, 0, 3600 * 1000, &after), all);
    usleep(20 * 1000);
    cr_expect_eq(events(false, 0, 1, &after), 0);
    cr_expect_eq(events(true, 100000, 0, &after), all);
    cr_expect_eq(runs_of(0, 0, false, &next), 5);
    cr_expect_eq(next, 0);
    cr_expect_eq(runs_of(0, 0, true, &next), 4);
    cr_expect_eq(runs_of(0, 2, false, &next), 2);
    cr_expect_eq(next, 2);
    ok(fake_command(&ops, RPC_PATH_ADMIN(delete_run), "r"));
    cr_expect_eq(runs_of(next, 2, false, &next), 2, "a page continues after a run was deleted");
    cr_expect_eq(next, 4);
    cr_expect_eq(runs_of(next, 2, false, &next), 1);
    cr_expect_eq(next, 0);
    end();
}
