/* A simulator of whole runs in which all faults are drawn from a seed. The coordinator is the real
 * one without its listener: state machine, admission, combining and store on a disk. Members,
 * network and clock are modelled: calls and replies are lost, doubled, late and in another order;
 * the coordinator is killed between or within the steps that touch its disk, or its machine loses
 * what was not flushed; steps of the disk fail; bytes are damaged on the way and on the disk;
 * members vanish and return; the clock jumps; an operator pauses and resumes. After a while the
 * faults end, and the run must end too.
 *
 *     test_fault_seeds                       a short series, as in CI
 *     test_fault_seeds --seeds FROM COUNT    seeds FROM, FROM + 1, ...
 *     test_fault_seeds --seed N              one seed, and each of its events
 *
 * Checked after each event: no update that was acknowledged is lost or counted twice, a digest that
 * was published never changes, a round has its quorum, and the status agrees with the store.
 * Checked at the end: each state follows from the state before and the updates of its rows, and
 * where every round waits for all members the last state is that of the run without faults. */
#include "base/log.h"
#include "base/text.h"
#include "coordinator/store/spool.h"
#include "coordinator/work/weights.h"
#include "tests/support/seeded_members.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>

/* ---- the coordinator ---- */

static void nothing_changed(struct run *run, void *context)
{
    (void)run, (void)context;
}
static void nobody_sleeps(void *context)
{
    (void)context;
}
static uint64_t virtual_ms(void *context)
{
    (void)context;
    return w.now - w.booted;
}

static void shut(void)
{
    if (w.shop.receipts || w.shop.maths) run_shop_stop(&w.shop);
    run_close(w.run);
    w.run = NULL;
    run_shop_close(&w.shop);
    must(w.in_flight == 0, "%zu admissions have no result", w.in_flight);
}

static err begin(void)
{
    struct store_recovered found;
    size_t runs = 0;
    TRY(run_shop_open(&w.shop));
    w.shop.simulated = false; /* that was for the workers: digests are checked as in a service */
    TRY(store_recover(&found, w.shop.store, 1000000));
    TRY(run_load_all(&w.run, &runs, &w.shop));
    must(w.shop.asides == 0, "set aside: %s", w.shop.asides ? w.shop.aside->why.text : "");
    must(runs == 1 || !w.created, "the run is gone");
    if (!runs) return run_create(&w.run, &w.shop, seeded_config(w.k));
    run_apply(w.run, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = virtual_ms(NULL)});
    return ERR_NONE;
}

/* A start that fails is tried again, as a service manager would do. */
static void start(void)
{
    w.starts_at = 0;
    w.shop = (struct run_shop){.config = &w.config,
                               .changed = nothing_changed,
                               .wake = nobody_sleeps,
                               .now_ms = virtual_ms,
                               .simulated = true};
    err e = begin();
    if (!err_is(e) && !shaky.dead) w.created = true;
    say("start: %s", err_is(e) ? e.text : shaky.dead ? "killed" : "ok");
    if (!err_is(e) || shaky.dead) return;
    shut();
    w.starts_at = w.now + 1000;
}

static void crash(void)
{
    bool machine = chance(0.4);
    shaky.dead = true; /* what is left to close has no effect on the disk */
    shut();
    shaky_disk_restart(machine);
    totals.kills++;
    totals.machine += machine;
    say("killed%s", machine ? ", with its machine" : "");
    if (machine) w.booted = w.now - 1 - rng_below(&w.rng, 1000);
    w.starts_at = w.now + 1 + rng_below(&w.rng, chance(0.3) ? 100000 : 500);
}

static void admitted(struct work_job *work)
{
    struct admit_job *job = (struct admit_job *)(void *)work;
    struct message *to = job->owner;
    size_t m = job->member_index;
    run_admitted(w.run, job);
    w.in_flight--;
    if (err_is(work->result)) {
        if (work->result.kind != ERR_STOPPED) refuse(to, work->result);
    } else if (!shaky.dead) {
        struct promise *p = &w.promise[m][job->update.trained_round];
        *p = (struct promise){.counted_in = job->update.counted_in};
        answer(to, &(struct message){.durable = true});
    }
    free(to);
    free(job);
}

/* As serve_submit.c does it: the header is judged, bytes go to the spool, and a complete file to
 * the worker. */
static err take_upload(const struct message *call, struct message *reply)
{
    const struct update *u = seeded_update(w.kind, w.run, call->member, call->round);
    struct spool_key key = {.digest = u->digest,
                            .size = u->bytes.size,
                            .run = w.run->config->name,
                            .owner = members[call->member]};
    struct round_place place;
    struct spool spool;
    char copy[8192];
    run_apply_member(w.run, ROUND_ON_SEEN, call->member);
    TRY(round_judge(&place, &w.run->round, call->member, call->round, &key.digest));
    reply->durable = place.have;
    reply->offset = spool_received(w.dir, &key);
    if (place.have || call->call == OFFSET) return ERR_NONE;
    TRY(spool_open(&spool, w.dir, &key, call->offset, 0));
    REQUIRE(u->bytes.size <= sizeof copy);
    memcpy(copy, u->bytes.data, u->bytes.size);
    if (call->damaged) copy[call->offset + call->size / 2] ^= 4;
    err e = spool_append(&spool, copy + call->offset, call->size);
    reply->offset = spool.received;
    spool_close(&spool);
    if (err_is(e) || spool.received < key.size) return e;
    struct admit_job *job = calloc(1, sizeof *job);
    struct message *owner = malloc(sizeof *owner);
    REQUIRE(job && owner);
    *owner = *call;
    *job = (struct admit_job){.job = {.done = admitted},
                              .owner = owner,
                              .member_index = call->member,
                              .resumed = spool.resumed};
    snprintf(job->part, sizeof job->part, "%s", spool.path);
    snprintf(job->member, sizeof job->member, "%s", members[call->member]);
    job->update.blob = (struct store_blob){key.digest, key.size};
    job->update.examples = 10 + call->member;
    job->update.train_loss = 1.0 / call->round;
    e = run_admit(w.run, job, call->round);
    if (err_is(e)) {
        free(job);
        free(owner);
    } else {
        w.in_flight++;
        reply->size = 1; /* answered later */
    }
    return e;
}

static err take_task(const struct message *call, struct message *reply)
{
    struct run_train_task train;
    struct round *r = &w.run->round;
    if (!r->member[call->member].joined) return err_make(ERR_STATE, "say hello first");
    run_apply_member(w.run, ROUND_ON_SEEN, call->member);
    reply->task = round_task(r, call->member);
    reply->round = reply->task == ROUND_TASK_TRAIN ? round_under_way(r) : r->published;
    if (reply->task == ROUND_TASK_TRAIN) TRY(run_train_task(&train, w.run, call->member));
    return ERR_NONE;
}

static err take_call(const struct message *call, struct message *reply)
{
    const struct store_evaluation v = {.round = call->round, .rows = 3, .loss = 1, .accuracy = -1};
    switch (call->call) {
    case HELLO:
        return seeded_hello(w.run, call->member);
    case TASK:
        return take_task(call, reply);
    case EVALUATION:
        return run_evaluated(w.run, call->member, &v);
    default:
        return take_upload(call, reply);
    }
}

static void serve(const struct message *call)
{
    struct message reply = {0};
    if (!w.run) return; /* nobody listens */
    err e = take_call(call, &reply);
    say("%s of %s, round %u: %s", call_names[call->call], members[call->member], call->round,
        err_is(e) ? e.text : "ok");
    if (err_is(e))
        refuse(call, e);
    else if (call->call != UPLOAD || reply.durable || !reply.size)
        answer(call, &reply);
    if (!w.works_at) w.works_at = w.now + 1 + rng_below(&w.rng, chance(0.3) ? 2000 : 3);
}

/* ---- faults and events ---- */

static void flip_bit(void)
{
    struct arena arena = {0};
    struct store_update *row = NULL;
    size_t rows = 0, m;
    const struct round *r = &w.run->round;
    uint32_t under_way = round_under_way(r);
    must_do(store_updates(&row, &rows, w.shop.store, w.run->id, under_way, &arena), "updates");
    if (rows && r->stage == ROUND_TRAINING) {
        const struct store_update *u = &row[rng_below(&w.rng, rows)];
        struct blob_path path = blob_path(w.dir, &u->blob.digest);
        FILE *f = fopen(path.text, "r+b");
        must(f, "%s", path.text);
        long at = (long)rng_below(&w.rng, u->blob.size);
        fseek(f, at, SEEK_SET);
        int byte = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(byte ^ 1 << rng_below(&w.rng, 8), f);
        fclose(f);
        must(round_find(&m, r, u->member), "%s", u->member);
        w.promise[m][u->trained_round].damaged = true;
        totals.flips++;
        say("a flipped bit in the update of %s for round %u", u->member, u->trained_round);
    }
    arena_close(&arena);
}

/* The operator repeats a command until it is answered. */
static void command(void)
{
    enum round_event_kind kind = w.paused ? ROUND_ON_RESUME : ROUND_ON_PAUSE;
    err e = run_hold(w.run, kind);
    if (err_is(e) || shaky.dead) {
        if (kind == ROUND_ON_RESUME) w.paused = round_phase(&w.run->round) == ROUND_PAUSED;
        return;
    }
    totals.pauses++;
    w.paused = kind == ROUND_ON_PAUSE;
    say("%s", w.paused ? "paused" : "resumed");
}

static void disturb(void)
{
    size_t m = (size_t)rng_below(&w.rng, MEMBERS);
    if (chance(w.kills) && w.run) {
        if (rng_below(&w.rng, 4) == 0) {
            crash();
            return;
        }
        shaky.half = rng_below(&w.rng, 2) ? SHAKY_AFTER : SHAKY_BEFORE;
        shaky.kill_at = shaky.steps + 1 + (long)rng_below(&w.rng, 12);
    }
    if (chance(0.01)) {
        w.member[m] = (struct member){.wakes = w.now + rng_below(&w.rng, 150000)};
        totals.vanished++;
    }
    if (chance(0.004)) {
        w.now += rng_below(&w.rng, 4000000);
        totals.jumps++;
    }
    if (w.run && chance(w.flips)) flip_bit();
    if (w.run && !shaky.dead && (chance(0.01) || (w.paused && (w.quiet || chance(0.1))))) command();
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return b && b < a ? b : a;
}

/* The time of the next event. */
static uint64_t next_time(void)
{
    uint64_t at = w.now + 1000;
    for (size_t i = 0; i < w.messages; i++)
        at = least(at, w.message[i].at);
    for (size_t m = 0; m < MEMBERS; m++)
        if (!w.member[m].done) at = least(at, w.member[m].wakes);
    at = least(at, w.starts_at);
    at = least(at, w.works_at);
    uint64_t tick = w.run ? round_wake_ms(&w.run->round) : 0;
    if (tick && tick + w.booted > w.now) at = least(at, tick + w.booted);
    return at > w.now ? at : w.now + 1;
}

static void deliver(void)
{
    for (size_t i = 0; i < w.messages && !shaky.dead; i++) {
        if (w.message[i].at > w.now) continue;
        struct message m = w.message[i];
        w.message[i--] = w.message[--w.messages];
        m.reply ? hear(&m) : serve(&m);
        check_all();
    }
}

static void event(void)
{
    w.now = next_time();
    w.quiet = w.quiet || w.now > FAULTY_MS;
    shaky.fails = w.quiet ? 0 : w.fails;
    if (w.starts_at && w.now >= w.starts_at) start();
    if (!shaky.dead) deliver();
    for (size_t m = 0; m < MEMBERS; m++)
        if (!w.member[m].done && w.now >= w.member[m].wakes) member_turn(m);
    if (w.run && !shaky.dead && w.works_at && w.now >= w.works_at) {
        w.works_at = 0;
        run_shop_turn(&w.shop);
    }
    if (w.run && !shaky.dead) run_tick(w.run, virtual_ms(NULL));
    if (!shaky.dead) disturb();
    if (shaky.dead) crash();
    check_all();
    totals.events++;
}

static bool finished(void)
{
    for (size_t m = 0; m < MEMBERS; m++)
        if (!w.member[m].done) return false;
    return w.run != NULL;
}

/* ---- the end of a run ---- */

/* Combines each round once more, outside the coordinator. */
static void combine_again(const char *dir)
{
    struct arena arena = {0};
    const struct run *run = w.run;
    char made[SUPPORT_PATH_BYTES + 16];
    snprintf(made, sizeof made, "%s/made", dir);
    for (uint32_t r = 1; r <= ROUNDS && !w.k->option; r++) {
        struct store_update *row = NULL;
        struct contribution from[MEMBERS];
        struct blob_path path[MEMBERS], state = blob_path(w.dir, &w.shown[r - 1]);
        struct method_report report = {0};
        struct digest is;
        size_t rows = 0;
        must_do(store_updates(&row, &rows, w.shop.store, run->id, r, &arena), "updates");
        for (size_t i = 0; i < rows; i++) {
            double late = row[i].counted_in - row[i].trained_round;
            path[i] = blob_path(w.dir, &row[i].blob.digest);
            from[i] = (struct contribution){row[i].member, (double)row[i].examples / sqrt(1 + late),
                                            path[i].text};
        }
        const struct method_next next = {.state_path = state.text,
                                         .contribution = from,
                                         .count = rows,
                                         .carry_error = run->config->carry_error,
                                         .rounds = ROUNDS,
                                         .threads = 1};
        must_do(method_next(&report, run->method, made, &next), "combining again");
        must_do(digest_of_file(&is, made), made);
        must(digest_equal(&is, &w.shown[r]), "the state of round %u is not that of its updates", r);
        method_report_close(&report);
    }
    arena_close(&arena);
}

static void set_chances(void)
{
    static const double lost[] = {0, 0.02, 0.2}, kills[] = {0, 0.01, 0.05, 0.1},
                        fails[] = {0, 0, 0.01, 0.1};
    w.lost = lost[rng_below(&w.rng, 3)];
    w.doubled = lost[rng_below(&w.rng, 3)];
    w.slow = lost[rng_below(&w.rng, 3)];
    w.kills = kills[rng_below(&w.rng, 4)];
    w.fails = fails[rng_below(&w.rng, 4)];
    w.flips = lost[rng_below(&w.rng, 3)] / 4;
}

/* Returns the last state. */
static struct digest simulate(uint64_t seed, size_t kind, bool without_faults, bool trace)
{
    static const char *allowed[MEMBERS] = {"icu", "lab", "ward"};
    w = (struct world){
        .seed = seed, .kind = kind, .k = &kinds[kind], .now = 1, .starts_at = 1, .trace = trace};
    rng_init(&w.rng, "seeds", seed, "", 0);
    w.quiet = without_faults;
    shaky.rng = &w.rng;
    shaky.notes = true;
    set_chances();
    support_dir_make(w.dir);
    w.config = (struct config){.path = w.dir,
                               .database = support_database(w.database, w.dir),
                               .keep_states = ROUNDS + 1,
                               .keep_updates = ROUNDS + 1,
                               .retry_ms = 2000,
                               .absent_ms = 30000,
                               .threads = 1,
                               .allowed = {MEMBERS, allowed}};
    long events = 0;
    for (size_t m = 0; m < MEMBERS; m++)
        w.member[m].wakes = 1 + m;
    while (!finished()) {
        must(w.now < FAULTY_MS + END_MS && events++ < EVENTS, "the run does not end");
        event();
    }
    shaky.fails = 0;
    shaky.kill_at = 0;
    combine_again(w.dir);
    struct digest last = w.shown[ROUNDS];
    shut();
    support_dir_remove(w.dir);
    totals.seeds++;
    return last;
}

static void run_seed(uint64_t seed, bool trace)
{
    static struct digest reference[KINDS];
    static bool has_reference[KINDS];
    size_t kind = (size_t)(seed % KINDS);
    if (waits_for_all(&kinds[kind]) && !has_reference[kind]) {
        reference[kind] = simulate(seed, kind, true, false);
        has_reference[kind] = true;
    }
    struct digest last = simulate(seed, kind, false, trace);
    must(!waits_for_all(&kinds[kind]) || digest_equal(&last, &reference[kind]),
         "another last state than without faults");
}

/* Assertions of the coordinator end the process, which has to say for which seed. */
static void name_seed(int signal_number)
{
    char text[64];
    int n = snprintf(text, sizeof text, "seed %llu crashed\n", (unsigned long long)w.seed);
    if (write(2, text, (size_t)n) < 0) _exit(1);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* Logs of thousands of faults help only with --seed. */
static void prepare(bool logs)
{
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
    signal(SIGABRT, name_seed);
    signal(SIGSEGV, name_seed);
    log_init(logs ? LOG_DEBUG : LOG_ERROR + 1, false);
    if (!shaky.real.open) shaky_disk_install();
}

static void report(void)
{
    printf(
        "RESULT seeds %ld %ld seeds, %ld events: %ld kills, %ld of them of the machine, %ld failed "
        "steps of the "
        "disk, %ld calls lost, %ld doubled, %ld bits flipped on the disk, %ld uploads damaged "
        "on the way, %ld members gone and back, %ld jumps of the clock, %ld pauses and resumes\n",
        totals.seeds, totals.seeds, totals.events, totals.kills, totals.machine, shaky.failed,
        totals.lost, totals.doubled, totals.flips, totals.wrong_bytes, totals.vanished,
        totals.jumps, totals.pauses);
}

Test(seeds, no_fault_loses_an_update_or_changes_a_state)
{
    prepare(false);
    for (uint64_t seed = 1; seed <= 80; seed++)
        run_seed(seed, false);
    report();
    cr_expect_gt(totals.kills, 50);
    cr_expect_gt(shaky.failed, 50);
    cr_expect_gt(totals.flips, 3);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seed")) {
        alone = true;
        prepare(true);
        run_seed(strtoull(argv[2], NULL, 10), true);
        report();
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "--seeds")) {
        uint64_t from = strtoull(argv[2], NULL, 10), count = strtoull(argv[3], NULL, 10);
        alone = true;
        prepare(false);
        for (uint64_t seed = from; seed < from + count; seed++)
            run_seed(seed, false);
        report();
        return 0;
    }
    struct criterion_test_set *tests = criterion_initialize();
    int result = 0;
    if (criterion_handle_args(argc, argv, true)) result = !criterion_run_all_tests(tests);
    criterion_finalize(tests);
    return result;
}
