#include "client/session/session_work.h"

#include "base/file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64];
static const struct rpc_peer self = {.role = RPC_CLIENT, .federation = "fed", .id = "a"};

static struct session_work open_new(void)
{
    struct session_work work = {0};
    snprintf(dir, sizeof dir, "/tmp/session_work.XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    err e = session_work_open(&work, dir, &self);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    return work;
}

static void remove_all(struct session_work *work)
{
    char command[128];
    session_work_close(work);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

Test(session_work, lets_one_process_in_at_a_time)
{
    struct session_work work = open_new();
    pid_t child = fork();
    if (child == 0) {
        struct session_work second = {0};
        err e = session_work_open(&second, dir, &self);
        char text[80];
        snprintf(text, sizeof text, "another fedlora join as a (process %ld)", (long)getppid());
        _Exit(e.kind == ERR_STATE && strstr(e.text, text) != NULL ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    session_work_close(&work);
    err e = session_work_open(&work, dir, &self);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    remove_all(&work);
}

Test(session_work, is_found_by_identity_below_the_state_folder)
{
    struct session_work work = open_new(), named = {0};
    char expected[128];
    setenv("XDG_STATE_HOME", dir, 1);
    err e = session_work_open(&named, NULL, &self);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    snprintf(expected, sizeof expected, "%s/fedlora/fed/a", dir);
    cr_assert_str_eq(named.dir, expected);
    session_work_close(&named);
    remove_all(&work);
}

static struct session_update keep(struct session_work *work, const char *run, uint32_t round)
{
    char path[LIMIT_PATH_BYTES];
    struct session_update u = {
        .size = 5, .examples = 7, .tokens = 9, .train_loss = 1.25, .seconds = 2};
    memset(u.state.byte, (int)round, sizeof u.state.byte);
    u.digest = digest_of("bytes", 5);
    session_work_update(path, work, run, round);
    cr_assert_eq(file_write(path, "bytes", 5, true).kind, ERR_OK);
    cr_assert_eq(session_work_keep(work, run, round, &u).kind, ERR_OK);
    return u;
}

Test(session_work, finds_an_update_only_while_it_is_whole_and_of_this_state)
{
    struct session_work work = open_new();
    struct session_update kept = keep(&work, "r", 3), found = {0};
    struct digest other = {{1}};
    char path[LIMIT_PATH_BYTES];
    cr_assert(session_work_find(&found, &work, "r", 3, &kept.state));
    cr_assert_eq(found.examples, 7);
    cr_assert_eq(found.tokens, 9);
    cr_assert_eq(found.train_loss, 1.25);
    cr_assert(digest_equal(&found.digest, &kept.digest));
    cr_assert_not(session_work_find(&found, &work, "r", 3, &other));
    cr_assert_not(session_work_find(&found, &work, "r", 2, &kept.state));
    session_work_update(path, &work, "r", 3);
    cr_assert_eq(file_write(path, "bytes of another", 10, true).kind, ERR_OK);
    cr_assert_not(session_work_find(&found, &work, "r", 3, &kept.state));
    remove_all(&work);
}

Test(session_work, drops_earlier_rounds_of_this_run_only)
{
    struct session_work work = open_new();
    struct session_update found;
    struct session_update first = keep(&work, "r", 1), second = keep(&work, "r", 2);
    struct session_update other = keep(&work, "r.x", 1), another = keep(&work, "rr", 1);
    session_work_drop_updates(&work, "r", 2);
    cr_assert_not(session_work_find(&found, &work, "r", 1, &first.state));
    cr_assert(session_work_find(&found, &work, "r", 2, &second.state));
    cr_assert(session_work_find(&found, &work, "r.x", 1, &other.state));
    cr_assert(session_work_find(&found, &work, "rr", 1, &another.state));
    remove_all(&work);
}

Test(session_work, keeps_the_blobs_that_are_needed_and_half_of_them)
{
    struct session_work work = open_new();
    struct digest digest[3] = {{{1}}, {{2}}, {{3}}};
    char path[3][LIMIT_PATH_BYTES], part[LIMIT_PATH_BYTES + 8];
    for (int i = 0; i < 3; i++) {
        session_work_blob(path[i], &work, &digest[i]);
        cr_assert_eq(file_write(path[i], "x", 1, true).kind, ERR_OK);
    }
    snprintf(part, sizeof part, "%s.part", path[1]);
    cr_assert_eq(file_write(part, "x", 1, true).kind, ERR_OK);
    session_work_drop_blobs(&work, &digest[1], 2);
    cr_assert_not(file_exists(path[0]));
    cr_assert(file_exists(path[1]) && file_exists(path[2]) && file_exists(part));
    remove_all(&work);
}

Test(session_work, keeps_the_newest_epoch)
{
    uint8_t epoch[SESSION_WORK_EPOCH] = {1}, is[SESSION_WORK_EPOCH];
    struct session_work work = open_new();
    cr_expect_eq(session_work_epoch(is, &work), 0);
    err e = session_work_keep_epoch(&work, epoch, sizeof epoch);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    epoch[31] = 7;
    e = session_work_keep_epoch(&work, epoch, sizeof epoch);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    e = session_work_keep_epoch(&work, NULL, 0);
    cr_assert_eq(e.kind, ERR_OK, "an older coordinator sends none");
    cr_expect_eq(session_work_epoch(is, &work), sizeof is);
    cr_expect_eq(memcmp(is, epoch, sizeof is), 0);
    remove_all(&work);
}

Test(session_work, keeps_its_folder_from_other_users)
{
    struct session_work work = open_new();
    struct stat st;
    session_work_close(&work);
    cr_assert_eq(chmod(dir, 0755), 0);
    err e = session_work_open(&work, dir, &self);
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    cr_assert_eq(stat(dir, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0700);
    remove_all(&work);
}
