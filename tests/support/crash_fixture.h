/* A whole run whose members are scripted in the same process. Its n-th step that touches the
 * disk kills the process or fails. Every coordinator is a forked process with threads of its
 * own, as in fedlorad; the parent starts no thread, so that it can fork. Include this header in
 * one file of a program only. */
#ifndef TESTS_SUPPORT_CRASH_FIXTURE_H
#define TESTS_SUPPORT_CRASH_FIXTURE_H

#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "coordinator/run/run.h"
#include "coordinator/store/spool.h"
#include "proto/message.h"
#include "tests/support/database.h"
#include "tests/support/faulty_disk.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS = 3, ROUNDS = 3, STEPS_MAX = 4000, SECONDS_MAX = 20 };

static const char *const members[MEMBERS] = {"icu", "lab", "ward"};
static const struct method_module modules[] = {{"model.layers.0.q_proj", 12, 10},
                                               {"model.layers.0.v_proj", 6, 10}};
static bool with_memory;       /* fedit with the server's FedAdam, instead of flora */
static uint32_t report_every;  /* 0: the default */
static const char *ledger_key; /* fed-sb with noise at the coordinator, instead of flora */

/* ---- scripted members ---- */
static void fill(float *out, size_t n, const char *what, const char *member, uint32_t round)
{
    char label[64];
    struct rng rng;
    snprintf(label, sizeof label, "%s %s", member, what);
    rng_init(&rng, "crash test", 1, label, round);
    rng_fill_uniform(&rng, out, n, 0.25);
}

/* The rank is the member's own: with flora 2 for the first member, 3 for the second, and so on. */
static void make_update(struct bytes *out, const struct run *run, size_t m, uint32_t round)
{
    static float a[2][96], b[2][96];
    struct adapter_file_module module[2] = {0};
    char base[DIGEST_TEXT_BYTES], frozen[DIGEST_TEXT_BYTES] = "";
    struct digest digest;
    uint32_t rank = run->member[m].rank;
    memcpy(digest.byte, run->config->base_digest.data, DIGEST_BYTES);
    digest_text(base, &digest);
    if (ledger_key) digest_text(frozen, &run->newest.frozen.digest);
    for (size_t i = 0; i < 2; i++) {
        const struct method_module *shape = &modules[i];
        module[i].name = shape->name;
        module[i].rank = rank;
        module[i].alpha = run_alpha(run, m);
        if (ledger_key) {
            fill(a[i], (size_t)rank * rank, "R", members[m], round * 2 + (uint32_t)i);
            module[i].factor[ADAPTER_FILE_R] = (struct adapter_file_factor){a[i], rank, rank, NULL};
            continue;
        }
        fill(a[i], (size_t)rank * shape->d_in, "A", members[m], round * 2 + (uint32_t)i);
        fill(b[i], (size_t)shape->d_out * rank, "B", members[m], round * 2 + (uint32_t)i);
        module[i].factor[ADAPTER_FILE_A] =
            (struct adapter_file_factor){a[i], rank, shape->d_in, NULL};
        module[i].factor[ADAPTER_FILE_B] =
            (struct adapter_file_factor){b[i], shape->d_out, rank, NULL};
    }
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = run->config->name,
                                     .method = run->config->method,
                                     .base = base,
                                     .frozen = frozen,
                                     .member = members[m],
                                     .round = round,
                                     .rank = rank,
                                     .alpha = run_alpha(run, m)};
    err e = adapter_file_write_bytes(out, &meta, module, 2);
    REQUIRE(!err_is(e));
}

struct script {
    struct run *run;
    size_t in_flight;
};

static void admitted(struct work_job *work)
{
    struct admit_job *job = (struct admit_job *)(void *)work;
    struct script *script = job->owner;
    run_admitted(script->run, job);
    script->in_flight--;
    free(job);
}

static err upload(struct script *script, size_t m, const struct bytes *update, uint32_t round)
{
    struct run *run = script->run;
    struct spool_key key = {.digest = digest_of(update->data, update->size),
                            .size = update->size,
                            .run = run->config->name,
                            .owner = members[m]};
    struct round_place place;
    struct spool spool;
    TRY(round_judge(&place, &run->round, m, round, &key.digest));
    if (place.have) return ERR_NONE;
    uint64_t offset = spool_received(run->shop->store->dir, &key);
    TRY(spool_open(&spool, run->shop->store->dir, &key, offset, 0));
    err e = spool_append(&spool, update->data + offset, update->size - offset);
    spool_close(&spool);
    if (err_is(e)) return e;
    struct admit_job *job = calloc(1, sizeof *job);
    REQUIRE(job);
    *job = (struct admit_job){
        .job = {.done = admitted}, .owner = script, .member_index = m, .resumed = spool.resumed};
    snprintf(job->part, sizeof job->part, "%s", spool.path);
    snprintf(job->member, sizeof job->member, "%s", members[m]);
    job->update.blob = (struct store_blob){key.digest, key.size};
    job->update.examples = 10 + m;
    job->update.train_loss = 1.0 / round;
    e = run_admit(run, job, round);
    if (err_is(e))
        free(job);
    else
        script->in_flight++;
    return e;
}

/* One turn of a member: it says hello, or trains and submits. After an error it tries again in
 * its next turn. */
static void member_turn(struct script *script, size_t m)
{
    struct run *run = script->run;
    if (!run->round.member[m].joined || !run->round.member[m].seen_ms) {
        Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
        Fedlora__V1__ModuleShape shape[2], *list[2] = {&shape[0], &shape[1]};
        for (size_t i = 0; i < 2; i++) {
            fedlora__v1__module_shape__init(&shape[i]);
            shape[i].name = (char *)(uintptr_t)modules[i].name;
            shape[i].d_out = modules[i].d_out;
            shape[i].d_in = modules[i].d_in;
        }
        hello.base_digest = run->config->base_digest;
        hello.modules = list;
        hello.n_modules = 2;
        hello.rank = with_memory ? 8 : 2 + (uint32_t)m;
        hello.examples = 10 + m;
        err e = run_hello(run, m, &hello);
        if (err_is(e)) return;
    }
    if (round_task(&run->round, m) != ROUND_TASK_TRAIN) return;
    if (err_is(run_save_opening(run))) return;
    run_apply_member(run, ROUND_ON_TASK, m);
    struct bytes update = {.max = 1 << 20};
    make_update(&update, run, m, round_under_way(&run->round));
    err e = upload(script, m, &update, round_under_way(&run->round));
    (void)e;
    bytes_close(&update);
}

/* ---- one coordinator ---- */
static void nothing_changed(struct run *run, void *context)
{
    (void)run, (void)context;
}
static void nobody_sleeps(void *context)
{
    (void)context;
}

static Fedlora__V1__RunConfig *new_config(void)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT, *out = NULL;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    Fedlora__V1__MemberConfig member[MEMBERS], *list[MEMBERS];
    struct digest base = digest_of("a base", 6);
    struct bytes packed = {.max = 1 << 20};
    for (size_t i = 0; i < MEMBERS; i++) {
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = (char *)(uintptr_t)members[i];
        list[i] = &member[i];
    }
    training.steps = 1;
    config.name = "crash";
    static char *options[] = {"server=fedadam"};
    config.method = with_memory ? "fedit" : ledger_key ? "fed-sb" : "flora";
    config.method_options = options;
    config.n_method_options = with_memory;
    config.rounds = ROUNDS;
    config.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, base.byte};
    config.members = list;
    config.n_members = MEMBERS;
    config.rank = ledger_key ? 4 : 8;
    config.report_every = report_every;
    config.training = &training;
    if (ledger_key) {
        privacy.unit = "client";
        privacy.epsilon = 10;
        privacy.delta = 1e-5;
        privacy.noise = 2;
        privacy.clip = 0.25;
        privacy.force = true;
        config.privacy = &privacy;
        config.deadline_ms = 60 * 1000;
    }
    err e = message_pack(&packed, &config.base);
    if (!err_is(e))
        e = message_unpack(&out, &fedlora__v1__run_config__descriptor, packed.data, packed.size);
    REQUIRE(!err_is(e));
    bytes_close(&packed);
    return out;
}

static err find_or_create(struct run **out, struct run_shop *shop)
{
    struct arena arena = {0};
    struct store_run *row = NULL;
    size_t count = 0;
    err e = store_runs(&row, &count, shop->store, &arena);
    if (!err_is(e) && count > 0) {
        e = run_load(out, shop, row);
        if (!err_is(e))
            run_apply(*out, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = text_now_ms()});
    } else if (!err_is(e))
        e = run_create(out, shop, new_config());
    arena_close(&arena);
    return e;
}

static err coordinate(struct run_shop *shop)
{
    struct script script = {0};
    uint64_t until = text_now_ms() + SECONDS_MAX * 1000;
    err e = ERR_NONE;
    /* A command of the operator that fails is given again. */
    for (int i = 0; i < 5; i++) {
        e = find_or_create(&script.run, shop);
        if (!err_is(e)) break;
    }
    if (err_is(e)) return e;
    while (round_phase(&script.run->round) != ROUND_FINISHED && text_now_ms() < until) {
        for (size_t m = 0; m < MEMBERS; m++)
            member_turn(&script, m);
        if (!work_take(shop->receipts) && !work_take(shop->maths)) usleep(100);
        run_tick(script.run, text_now_ms());
    }
    if (round_phase(&script.run->round) != ROUND_FINISHED) {
        char text[512];
        round_waiting_for(text, sizeof text, &script.run->round, text_now_ms());
        e = err_make(ERR_MACHINE, "the run hangs, waiting for %s", text);
    }
    while (script.run->report && text_now_ms() < until) /* a stop would drop the last report */
        if (!work_take(shop->maths)) usleep(100);
    run_shop_stop(shop);
    run_close(script.run);
    return e;
}

/* A store and two workers on `dir`; `use` does the rest, and closes the workers. */
static err serve_run_with(const char *dir, err (*use)(struct run_shop *shop))
{
    static const char *allowed[MEMBERS] = {"icu", "lab", "ward"};
    char database[DATABASE_BYTES];
    struct config config = {.path = dir,
                            .database = support_database(database, dir),
                            .keep_states = ledger_key ? ROUNDS + 1 : 2,
                            .keep_updates = 1,
                            .retry_ms = 1,
                            .absent_ms = 90000,
                            .threads = 1,
                            .ledger_key = ledger_key,
                            .allowed = {MEMBERS, allowed}};
    struct run_shop shop = {
        .config = &config, .changed = nothing_changed, .wake = nobody_sleeps, .now_ms = run_clock};
    struct store_recovered found;
    err e = run_shop_open(&shop);
    if (!err_is(e)) e = store_recover(&found, shop.store, 1000000);
    if (err_is(e))
        run_shop_stop(&shop);
    else
        e = use(&shop);
    run_shop_close(&shop);
    return e;
}

static err serve_run(const char *dir)
{
    return serve_run_with(dir, coordinate);
}

/* Returns the steps taken, or -1 when the process was killed. */
static long spawn(const char *dir, enum fault kind, long at)
{
    int pipe_fd[2];
    long taken = -1;
    cr_assert_eq(pipe(pipe_fd), 0);
    fflush(NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        log_init(LOG_ERROR, false);
        install_faults(kind, at);
        err e = ERR_NONE;
        /* A start that fails because of the disk is tried again, as a service manager would do. */
        for (int i = 0; i < 3; i++) {
            e = serve_run(dir);
            if (!err_is(e)) break;
        }
        if (err_is(e)) fprintf(stderr, "step %ld, fault %d: %s\n", at, (int)kind, e.text);
        long done = atomic_load(&steps);
        if (!err_is(e) && write(pipe_fd[1], &done, sizeof done) != sizeof done) _exit(2);
        _exit(err_is(e) ? 1 : 0);
    }
    close(pipe_fd[1]);
    if (read(pipe_fd[0], &taken, sizeof taken) != sizeof taken) taken = -1;
    close(pipe_fd[0]);
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    cr_assert(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0),
              "step %ld, fault %d: status %d", at, (int)kind, status);
    return killed ? -1 : taken;
}

/* A folder in memory is enough, because a killed process loses nothing that the kernel has. fsync()
 * costs nothing there. */
static void make_dir(char dir[SUPPORT_PATH_BYTES])
{
    if (!getenv("FEDLORA_FAULT_DISK") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    support_dir_make(dir);
}

/* Makes a key for signing ledgers; runs that are created afterwards are private. */
static inline void make_key(char path[SUPPORT_PATH_BYTES + 16], const char *dir)
{
    char command[2 * SUPPORT_PATH_BYTES];
    snprintf(path, SUPPORT_PATH_BYTES + 16, "%s/key", dir);
    snprintf(command, sizeof command, "umask 077 && openssl genpkey -algorithm ed25519 -out %s",
             path);
    cr_assert_eq(system(command), 0);
    ledger_key = path;
}

/* The steps that are tested: all of them if FEDLORA_FAULT_ALL is set, else about `some`, spread
 * evenly. */
static inline long stride(long taken, long some)
{
    return getenv("FEDLORA_FAULT_ALL") || taken <= some ? 1 : taken / some;
}

#endif
