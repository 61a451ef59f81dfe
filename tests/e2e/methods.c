/* Every method over the wire: fedlorad, three `fedlora join` processes, with different ranks if the
 * method allows it, and a tiny model. Each published state has the bytes that agg/ makes from the
 * updates (other tests check agg/), members learn, killing fedlorad changes no byte, and a
 * simulation of the same run in one process gives the same bytes. */
#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/store.h"
#include "tests/support/database.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/method_runs.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { JOIN_MS = 120000, POLL_US = 5000 };

/* fedlorad answers 50 calls of a peer a second. */
enum { STATUS_US = 25000 };

static char dir[SUPPORT_PATH_BYTES];
static struct fake_federation federation;
static struct fake_member ops;
static struct fake_base base;

/* ---- the federation */

/* tests/e2e/tiny.py */
static void tiny(const char *arguments)
{
    char command[2 * SUPPORT_PATH_BYTES];
    snprintf(command, sizeof command, "cd %s && python3 %s/tests/e2e/tiny.py %s", dir,
             FEDLORA_SOURCE_DIR, arguments);
    cr_assert_eq(system(command), 0, "%s", command);
}

static void open_ops(void)
{
    const struct fake_options options = {
        .server = federation.address, .certs = federation.certs, .id = "ops", .run = ""};
    ok(fake_open(&ops, &options));
}

/* The value after "KEY": in the JSON output of `fedlora COMMAND`. */
static void ask(char out[80], const char *command, const char *key)
{
    char line[3 * SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 32], *text = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/said.json", dir);
    snprintf(line, sizeof line, "%s/fedlora %s --json >%s", FEDLORA_BUILD_DIR, command, path);
    cr_assert_eq(system(line), 0, "%s", line);
    ok(file_read_all(&text, &size, path, 1 << 20));
    const char *at = strstr(text, key);
    cr_assert_not_null(at, "%s in %s", key, text);
    at += strlen(key) + strspn(at + strlen(key), "\": ");
    snprintf(out, 80, "%.*s", (int)strcspn(at, "\",\n}"), at);
    free(text);
}

static struct digest base_digest(void)
{
    struct digest digest;
    char command[SUPPORT_PATH_BYTES + 64], hex[80];
    snprintf(command, sizeof command, "inspect %s/base", dir);
    ask(hex, command, "\"digest\"");
    ok(digest_parse(&digest, hex));
    return digest;
}

static void begin(void)
{
    support_dir_make(dir);
    ok(rpc_init());
    tiny("model base");
    tiny("rows m0.jsonl --seed 1 --rows 8");
    tiny("rows m1.jsonl --seed 2 --rows 12");
    tiny("rows m2.jsonl --seed 3 --rows 16");
    ok(fake_federation_open(&federation, dir, MEMBERS, ""));
    base.digest = base_digest();
}

/* A coordinator with an empty store that keeps all old states and updates. */
static void start(const char *name)
{
    FILE *file;
    char path[SUPPORT_PATH_BYTES + 64];
    snprintf(federation.store, sizeof federation.store, "%.500s/%.40s", federation.dir, name);
    snprintf(path, sizeof path, "%s/fedlorad.ini", federation.dir);
    file = fopen(path, "w");
    cr_assert_not_null(file);
    fprintf(file,
            "[server]\nlisten = %s\nca = %s/ca.pem\ncert = %s/server.pem\nkey = %s/server.key\n"
            "[store]\npath = %s\nkeep_states = 99\nkeep_updates = 99\n"
            "[federation]\nname = test\nmembers = m0,m1,m2\n",
            federation.address, federation.certs, federation.certs, federation.certs,
            federation.store);
    fclose(file);
    ok(fake_federation_start(&federation));
    open_ops();
}

static void stop(void)
{
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
}

static void end(void)
{
    fake_federation_close(&federation);
    support_dir_remove(dir);
}

/* ---- one run */

static err create(const struct variant *v)
{
    static char *ids[MEMBERS] = {"m0", "m1", "m2"}, *targets[] = {"q", "v", "down"};
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig member[MEMBERS], *list[MEMBERS];
    char *part = (char *)(uintptr_t)v->targets;
    for (int i = 0; i < MEMBERS; i++) {
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = ids[i];
        member[i].rank = v->mixed ? run_ranks[i] : 0;
        if (i == 1 && v->targets) {
            member[i].targets = &part;
            member[i].n_targets = 1;
        }
        list[i] = &member[i];
    }
    training.steps = RUN_STEPS;
    training.batch = RUN_BATCH;
    training.seq = RUN_SEQ;
    training.lr = RUN_LR;
    training.seed = RUN_SEED;
    training.clip = 1; /* the default of fedlora simulate */
    training.precision = "f32";
    training.schedule = "constant";
    training.keep_optimizer = v->keep_optimizer;
    config.name = (char *)(uintptr_t)v->run;
    config.method = (char *)(uintptr_t)v->method;
    config.rounds = v->rounds;
    config.rank = run_rank(v);
    config.seed = RUN_SEED;
    config.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, base.digest.byte};
    config.members = list;
    config.n_members = MEMBERS;
    config.targets = targets;
    config.n_targets = 3;
    config.training = &training;
    config.evaluate_every = 1;
    config.method_options = (char **)(uintptr_t)v->option;
    while (config.n_method_options < OPTIONS_MAX && v->option[config.n_method_options])
        config.n_method_options++;
    return fake_create(&ops, &config);
}

/* Starts `fedlora join` as member i; the third member also evaluates. */
static pid_t join(const char *run, int i)
{
    char program[600], log[SUPPORT_PATH_BYTES + 32], id[8], own[4][32];
    snprintf(program, sizeof program, "%s/fedlora", FEDLORA_BUILD_DIR);
    snprintf(log, sizeof log, "%s/m%d.log", dir, i);
    snprintf(id, sizeof id, "m%d", i);
    snprintf(own[0], sizeof own[0], "certs/%s.pem", id);
    snprintf(own[1], sizeof own[1], "certs/%s.key", id);
    snprintf(own[2], sizeof own[2], "%s.jsonl", id);
    snprintf(own[3], sizeof own[3], "work-%s", id);
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0 || chdir(dir) != 0) _exit(126);
    execl(program, "fedlora", "join", "--run", run, "--server", federation.address, "--ca",
          "certs/ca.pem", "--cert", own[0], "--key", own[1], "--base", "base", "--data", own[2],
          "--work", own[3], "--threads", "1", i == 2 ? "--eval-data" : (char *)NULL, "m2.jsonl",
          (char *)NULL);
    _exit(127);
}

/* Waits for the member. Returns its exit status, or 99 if it had to be killed after a while. */
static int wait_for(pid_t pid)
{
    int status = 0;
    for (uint64_t until = text_now_ms() + JOIN_MS; text_now_ms() < until; usleep(POLL_US))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return 99;
}

static uint32_t round_of(const char *run)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, run));
    bool over = !strcmp(status->phase, "finished");
    uint32_t round = over ? UINT32_MAX : status->round;
    message_free(status);
    return round;
}

/* Kills fedlorad once in each round, soon after the round is opened. */
static void kill_in_every_round(const struct variant *v)
{
    int kills = 0;
    for (uint32_t round = 1; round <= v->rounds; round++) {
        for (int tries = 0; round_of(v->run) < round && tries < 1000; tries++)
            usleep(STATUS_US);
        if (round_of(v->run) == UINT32_MAX) break;
        usleep(20000 * round);
        fake_close(&ops);
        cr_expect_eq(fake_federation_stop(&federation, SIGKILL), -1);
        ok(fake_federation_start(&federation));
        open_ops();
        kills++;
    }
    cr_expect_geq(kills, 2, "%s was over after %d kills", v->run, kills);
}

static void take_part(const struct variant *v, void (*disturb)(const struct variant *))
{
    pid_t pid[MEMBERS];
    for (int i = 0; i < MEMBERS; i++)
        pid[i] = join(v->run, i);
    if (disturb) disturb(v);
    for (int i = 0; i < MEMBERS; i++) {
        int status = wait_for(pid[i]);
        cr_assert_eq(status, 0, "%s: m%d ended with status %d; see %s/m%d.log", v->run, i, status,
                     dir, i);
    }
}

static struct digest last_state(const char *run)
{
    struct digest digest = {0};
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, run));
    cr_expect_str_eq(status->phase, "finished", "%s is %s: %s", run, status->phase,
                     status->waiting_for);
    cr_assert_eq(status->state_digest.len, DIGEST_BYTES);
    memcpy(digest.byte, status->state_digest.data, DIGEST_BYTES);
    message_free(status);
    return digest;
}

/* ---- the same by agg alone, from what the store holds */

struct replay {
    struct store store;
    struct arena arena;
    const struct store_run *run;
    const struct method *method;
    struct method_options options;
    struct method_start start;
    char frozen[SUPPORT_PATH_BYTES + 64], hex[DIGEST_TEXT_BYTES];
    bool has_frozen, has_memory;
};

static void replay_path(char out[SUPPORT_PATH_BYTES + 64], const char *name)
{
    snprintf(out, SUPPORT_PATH_BYTES + 64, "%s/replay.%s", dir, name);
}

static void replay_open(struct replay *r, const struct variant *v)
{
    struct store_run *row = NULL;
    size_t count = 0, options = 0;
    static Fedlora__V1__HelloRequest *list;
    static struct method_module module[64];
    static char hex[DIGEST_TEXT_BYTES];
    ok(support_store_open(&r->store, federation.store));
    ok(store_runs(&row, &count, &r->store, &r->arena));
    for (size_t i = 0; i < count; i++)
        if (!strcmp(row[i].name, v->run)) r->run = &row[i];
    cr_assert_not_null(r->run);
    message_free(list);
    ok(message_unpack(&list, &fedlora__v1__hello_request__descriptor, r->run->modules,
                      r->run->modules_size));
    cr_assert_leq(list->n_modules, 64);
    for (size_t i = 0; i < list->n_modules; i++)
        module[i] = (struct method_module){list->modules[i]->name, list->modules[i]->d_out,
                                           list->modules[i]->d_in};
    while (options < OPTIONS_MAX && v->option[options])
        options++;
    digest_text(hex, &base.digest);
    r->method = method_find(v->method);
    ok(method_options_parse(&r->options, r->method, v->option, options));
    uint32_t rank = run_rank(v);
    r->start = (struct method_start){.run = v->run,
                                     .base = hex,
                                     .seed = RUN_SEED,
                                     .rank = rank,
                                     .alpha = r->method->alpha > 0 ? r->method->alpha : 2 * rank,
                                     .module = module,
                                     .module_count = list->n_modules,
                                     .option = v->option,
                                     .option_count = options,
                                     .threads = 1};
}

static void replay_start(struct replay *r)
{
    char state[SUPPORT_PATH_BYTES + 64];
    struct digest digest;
    replay_path(state, "state");
    replay_path(r->frozen, "frozen");
    r->has_frozen = r->method->frozen && r->options.basis != METHOD_BASIS_GRADIENT;
    if (r->has_frozen) {
        ok(method_make_frozen(r->method, r->frozen, &r->start));
        ok(digest_of_file(&digest, r->frozen));
        digest_text(r->hex, &digest);
        r->start.frozen_path = r->frozen;
        r->start.frozen_digest = r->hex;
    }
    ok(method_start(r->method, state, &r->start));
}

/* Combines one round; its files replace those of the round before. */
static void replay_round(struct replay *r, uint32_t round)
{
    char path[6][SUPPORT_PATH_BYTES + 64];
    static const char *const names[6] = {"state",      "frozen",      "memory",
                                         "state.next", "frozen.next", "memory.next"};
    struct store_update *update = NULL;
    struct contribution *c = NULL;
    struct blob_path *blob = NULL;
    struct method_report report = {0};
    size_t count = 0;
    for (int i = 0; i < 6; i++)
        replay_path(path[i], names[i]);
    ok(store_updates(&update, &count, &r->store, r->run->id, round, &r->arena));
    cr_assert_eq(count, MEMBERS);
    ok(arena_take(&c, &r->arena, count, sizeof *c));
    ok(arena_take(&blob, &r->arena, count, sizeof *blob));
    for (size_t i = 0; i < count; i++) {
        blob[i] = blob_path(r->store.dir, &update[i].blob.digest);
        c[i] = (struct contribution){update[i].member, (double)update[i].examples, blob[i].text};
    }
    const struct method_next next = {
        .state_path = path[0],
        .frozen_path = r->has_frozen ? path[1] : NULL,
        .memory_path = r->has_memory ? path[2] : NULL,
        .contribution = c,
        .count = count,
        .carry_error = 1e-4,
        .rounds = (uint32_t)r->run->published,
        .threads = 1,
        .frozen_out = round == method_setup_rounds(&r->options) ? path[4] : NULL,
        .memory_out = r->options.server != METHOD_SERVER_NONE ? path[5] : NULL};
    ok(method_next(&report, r->method, path[3], &next));
    cr_assert_eq(rename(path[3], path[0]), 0);
    if (report.frozen_made) cr_assert_eq(rename(path[4], path[1]), 0);
    if (report.memory_made) cr_assert_eq(rename(path[5], path[2]), 0);
    r->has_frozen |= report.frozen_made;
    r->has_memory |= report.memory_made;
    method_report_close(&report);
}

static void expect_replay(const struct variant *v)
{
    struct replay r = {0};
    struct store_round *row = NULL;
    size_t count = 0;
    struct digest digest;
    char state[SUPPORT_PATH_BYTES + 64];
    replay_path(state, "state");
    replay_open(&r, v);
    ok(store_rounds(&row, &count, &r.store, r.run->id, false, &r.arena));
    cr_assert_eq(count, v->rounds);
    replay_start(&r);
    for (uint32_t round = 1; round <= v->rounds; round++) {
        replay_round(&r, round);
        ok(digest_of_file(&digest, state));
        cr_expect(digest_equal(&digest, &row[round - 1].state.digest),
                  "%s: the state of round %u is not what agg makes of the updates", v->run, round);
    }
    bool optimizes = r.options.server != METHOD_SERVER_NONE;
    cr_expect_eq(r.run->memory.size > 0, optimizes, "%s: memory", v->run);
    store_close(&r.store);
    arena_close(&r.arena);
}

/* ---- tests */

static double first_loss; /* of the base alone */

/* The third member has evaluated every round, and the last state is better than the first. With
 * strong options for pruning the largest member has pruned its rank. */
static void expect_learning(const struct variant *v)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, v->run));
    cr_assert_eq(status->n_history, v->rounds);
    const Fedlora__V1__MemberStatus *largest = status->members[MEMBERS - 1];
    if (method_find(v->method)->prunes && v->option[0])
        cr_expect_lt(largest->rank, 8, "%s: m2 prunes", v->run);
    for (size_t i = 0; i < status->n_history; i++)
        cr_expect_eq(status->history[i]->eval_rows, 16, "%s: round %zu", v->run, i + 1);
    double last = status->history[v->rounds - 1]->eval_loss;
    cr_expect_lt(last, 0.98 * first_loss, "%s: loss %g, of the base %g", v->run, last, first_loss);
    message_free(status);
}

static void measure_base(void)
{
    char command[2 * SUPPORT_PATH_BYTES + 128], loss[80];
    snprintf(command, sizeof command,
             "eval --base %s/base --data %s/m2.jsonl --precision f32 --quiet", dir, dir);
    ask(loss, command, "\"loss\"");
    first_loss = strtod(loss, NULL);
    cr_assert_gt(first_loss, 0);
}

static void every_method(struct digest *last)
{
    start("plain");
    for (size_t i = 0; i < variant_count; i++) {
        const struct variant *v = &variants[i];
        ok(create(v));
        take_part(v, NULL);
        last[i] = last_state(v->run);
        expect_replay(v);
        expect_learning(v);
    }
    stop();
}

static void killed_ones(const struct digest *last)
{
    start("killed");
    for (size_t i = 0; i < variant_count; i++) {
        const struct variant *v = &variants[i];
        if (!v->killed) continue;
        ok(create(v));
        take_part(v, kill_in_every_round);
        struct digest again = last_state(v->run);
        cr_expect(digest_equal(&again, &last[i]), "%s: killing fedlorad changed the result",
                  v->run);
    }
    stop();
}

/* The same runs in one process: with one worker; with two, a coordinator that crashes after a third
 * of the updates, and another order of arrival. */
static void simulated_ones(const struct digest *last)
{
    static const char *const how[] = {"--workers 1", "--workers 2 --crash 0.33 --jitter 1"};
    char ini[SUPPORT_PATH_BYTES + 32], command[4 * SUPPORT_PATH_BYTES], hex[80];
    snprintf(ini, sizeof ini, "%s/run.ini", dir);
    for (size_t i = 0; i < variant_count; i++) {
        const struct variant *v = &variants[i];
        write_simulation(ini, v, dir);
        for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
            struct digest digest = {0};
            snprintf(command, sizeof command,
                     "simulate %s --run %s -o %s/sim-%s-%zu --seed %d --precision f32 --quiet %s",
                     ini, v->run, dir, v->run, k, RUN_SEED, how[k]);
            ask(hex, command, "\"state\"");
            ok(digest_parse(&digest, hex));
            cr_expect(digest_equal(&digest, &last[i]), "%s: fedlora %s gives another state", v->run,
                      command);
        }
    }
}

Test(methods, run_over_the_wire_to_the_state_that_their_updates_make_through_any_kill)
{
    struct digest last[VARIANTS_MAX];
    begin();
    list_variants();
    measure_base();
    every_method(last);
    killed_ones(last);
    simulated_ones(last);
    end();
}
