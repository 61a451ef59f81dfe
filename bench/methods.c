/* Measures the convergence of one method on real rows, by a whole run in this process without the
 * network. It calls the functions that `fedlora join` and the coordinator's worker call:
 * member_train(), method_check_update(), method_next(), member_evaluate().
 *
 *   bench_methods --base B --data DIR --method M ... --out RESULTS.jsonl
 *
 * DIR contains one JSON Lines file per member, and test.jsonl. One JSON line is appended to
 * RESULTS.jsonl. --help lists all options. */
#include "agg/round/method.h"
#include "agg/round/method_options.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "bench/methods_options.h"
#include "engine/member/member_evaluate.h"
#include "engine/member/member_train.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MEMBERS_MAX = 64 };

struct member {
    char id[LIMIT_NAME_BYTES];
    uint32_t rank;
    double alpha;
    struct dataset data;
    uint64_t bytes_up;
    struct train_options round; /* training of one round, for the plan */
    struct train_ledger ledger; /* with --epsilon; no file is opened */
};

struct bench {
    struct bench_options o;
    const struct method *method;
    struct method_options options;
    struct training_options training;
    uint32_t rounds; /* including the rounds that compute the basis */
    struct model model;
    struct tokenizer *tokenizer;
    struct engine *engine;
    char base[DIGEST_TEXT_BYTES];
    struct dataset test;
    struct member member[MEMBERS_MAX];
    size_t members;
    char dir[LIMIT_PATH_BYTES - 64], frozen[LIMIT_PATH_BYTES], frozen_digest[DIGEST_TEXT_BYTES];
    uint64_t bytes_down; /* of one member: states, and frozen factors once */
    double server_seconds, train_seconds;
    json_t *history;
    struct arena arena;
};

static double now(void)
{
    return (double)text_now_ms() / 1000;
}

static uint64_t size_of(const char *path)
{
    struct stat st = {0};
    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void path_of(char out[LIMIT_PATH_BYTES], const struct bench *b, const char *what, uint32_t n)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%u", b->dir, what, n);
}

/* ---- opening ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static err find_members(struct bench *b)
{
    DIR *folder = opendir(b->o.data);
    if (folder == NULL) return err_make(ERR_INPUT, "%s: no such folder", b->o.data);
    for (struct dirent *d; (d = readdir(folder)) != NULL && b->members < MEMBERS_MAX;) {
        size_t n = strlen(d->d_name);
        if (n < 7 || n > LIMIT_NAME_BYTES || strcmp(d->d_name + n - 6, ".jsonl") != 0) continue;
        if (strcmp(d->d_name, "test.jsonl") == 0 || strcmp(d->d_name, "val.jsonl") == 0) continue;
        snprintf(b->member[b->members++].id, LIMIT_NAME_BYTES, "%.*s", (int)n - 6, d->d_name);
    }
    closedir(folder);
    if (b->members == 0)
        return err_make(ERR_INPUT, "%s: contains no JSON Lines file of a member", b->o.data);
    qsort(b->member, b->members, sizeof *b->member, by_text);
    return ERR_NONE;
}

/* The alpha that the coordinator would send to a member of this rank. With frozen factors it is the
 * alpha of the whole state, and for R alone the rank, so that the scale is 1. */
static double alpha_of(const struct bench *b, uint32_t rank)
{
    if (b->method->frozen) rank = (uint32_t)b->o.rank;
    if (b->method->factors(1) & METHOD_R) return rank;
    return b->o.scale > 0 ? b->o.scale * rank : b->o.alpha;
}

static err rank_members(struct bench *b)
{
    const char *at = b->o.ranks;
    for (size_t i = 0; i < b->members; i++) {
        struct member *m = &b->member[i];
        char *end = NULL;
        m->rank = *at ? (uint32_t)strtoul(at, &end, 10) : (uint32_t)b->o.rank;
        if (*at && (end == at || m->rank == 0))
            return err_make(ERR_INPUT, "--ranks: expected %zu numbers", b->members);
        if (*at) at = *end == ',' ? end + 1 : end;
        if (*b->o.ranks && *at == 0 && i + 1 < b->members)
            return err_make(ERR_INPUT, "--ranks: expected %zu numbers", b->members);
        m->alpha = alpha_of(b, m->rank);
    }
    return ERR_NONE;
}

static err open_data(struct dataset *out, struct bench *b, const char *path)
{
    const struct data_options how = {
        .tokenizer = b->tokenizer, .vocab = b->model.arch.vocab, .seq = (uint32_t)b->o.seq};
    return data_open(out, path, &how);
}

static err open_base(struct bench *b)
{
    const struct engine_options engine = {.threads = (int)b->o.threads};
    struct digest digest;
    TRY(model_open(&b->model, b->o.base));
    TRY(tokenizer_open(&b->tokenizer, b->o.base));
    TRY(model_digest(&digest, &b->model));
    digest_text(b->base, &digest);
    TRY(engine_open(&b->engine, &b->model, &engine));
    model_drop_pages(&b->model);
    return ERR_NONE;
}

static err open_rows(struct bench *b)
{
    char path[LIMIT_PATH_BYTES], name[LIMIT_NAME_BYTES + 8];
    TRY(file_join(path, sizeof path, b->o.data, "test.jsonl"));
    TRY(open_data(&b->test, b, b->o.test ? b->o.test : path));
    for (size_t i = 0; i < b->members; i++) {
        snprintf(name, sizeof name, "%s.jsonl", b->member[i].id);
        TRY(file_join(path, sizeof path, b->o.data, name));
        TRY(open_data(&b->member[i].data, b, path));
    }
    return ERR_NONE;
}

/* The privacy plan that `fedlora join` would make. This benchmark charges no ledger. */
static err plan_privacy(struct bench *b, struct member *m)
{
    train_set(&m->round, &b->training);
    const struct train_ledger_options options = {.train = &m->round,
                                                 .epsilon = b->o.epsilon,
                                                 .delta = b->o.delta,
                                                 .clip = b->o.clip_norm,
                                                 .sampling = b->o.sampling,
                                                 .rounds = (uint32_t)b->o.rounds,
                                                 .ledger = "none",
                                                 .key = "none",
                                                 .method = b->o.method,
                                                 .bases = "seed"};
    return train_ledger_plan(&m->ledger, &options, m->data.count);
}

static err bench_open(struct bench *b)
{
    const char *tmp = getenv("TMPDIR");
    b->method = method_find(b->o.method);
    if (b->method == NULL) return err_make(ERR_INPUT, "--method %s: unknown", b->o.method);
    TRY(method_options_parse(&b->options, b->method, b->o.option.item, b->o.option.count));
    b->rounds = (uint32_t)b->o.rounds + method_setup_rounds(&b->options);
    TRY(find_members(b));
    TRY(rank_members(b));
    training_options_defaults(&b->training);
    b->training.steps = b->o.steps;
    b->training.batch = b->o.batch;
    b->training.lr = b->o.lr;
    b->training.schedule = b->o.schedule;
    TRY(open_base(b));
    TRY(open_rows(b));
    for (size_t i = 0; i < b->members && b->o.epsilon > 0; i++)
        TRY(plan_privacy(b, &b->member[i]));
    snprintf(b->dir, sizeof b->dir, "%.3000s/fedlora-methods-XXXXXX", tmp ? tmp : "/tmp");
    if (mkdtemp(b->dir) == NULL) return err_make(ERR_MACHINE, "%s: cannot create a folder", b->dir);
    b->history = json_array();
    return ERR_NONE;
}

static void bench_close(struct bench *b)
{
    static const char *const kinds[] = {"state", "update", "frozen", "memory"};
    char path[LIMIT_PATH_BYTES];
    for (uint32_t k = 0; b->dir[0] && k < 4; k++)
        for (uint32_t i = 0; i < MEMBERS_MAX + b->rounds + 2; i++) {
            path_of(path, b, kinds[k], i);
            unlink(path);
        }
    if (b->dir[0]) rmdir(b->dir);
    for (size_t i = 0; i < b->members; i++)
        data_close(&b->member[i].data);
    json_decref(b->history);
    data_close(&b->test);
    engine_close(b->engine);
    tokenizer_close(b->tokenizer);
    model_close(&b->model);
    arena_close(&b->arena);
}

/* ---- the coordinator's side ---- */

static err list_modules(struct method_module **out, size_t *count, struct bench *b)
{
    struct adapter shape = {0};
    const struct adapter_fresh fresh = {.targets = b->o.targets, .rank = 1, .alpha = 1};
    struct method_module *module = NULL;
    TRY(adapter_open_fresh(&shape, &b->model.arch, &fresh));
    err e = arena_take(&module, &b->arena, shape.count, sizeof *module);
    for (size_t i = 0; i < shape.count && !err_is(e); i++) {
        const struct adapter_module *m = &shape.module[i];
        char name[LIMIT_TENSOR_NAME_BYTES];
        model_module_name(name, m->layer, m->kind);
        module[i] = (struct method_module){.d_out = m->d_out, .d_in = m->d_in};
        e = arena_text(&module[i].name, &b->arena, name, strlen(name));
    }
    if (!err_is(e)) *out = module;
    if (!err_is(e)) *count = shape.count;
    adapter_close(&shape);
    return e;
}

/* Every member downloads the frozen factors once. */
static err take_frozen(struct bench *b, const char *path)
{
    struct digest digest;
    TRY(digest_of_file(&digest, path));
    digest_text(b->frozen_digest, &digest);
    snprintf(b->frozen, sizeof b->frozen, "%s", path);
    b->bytes_down += size_of(path);
    return ERR_NONE;
}

static err start(struct bench *b)
{
    struct method_start s = {.run = "bench",
                             .base = b->base,
                             .seed = (uint64_t)b->o.seed,
                             .rank = (uint32_t)b->o.rank,
                             .alpha = alpha_of(b, (uint32_t)b->o.rank),
                             .option = b->o.option.item,
                             .option_count = b->o.option.count,
                             .threads = (int)b->o.threads};
    char path[LIMIT_PATH_BYTES];
    struct method_module *module = NULL;
    TRY(list_modules(&module, &s.module_count, b));
    s.module = module;
    double since = now();
    if (b->method->frozen && b->options.basis != METHOD_BASIS_GRADIENT) {
        path_of(path, b, "frozen", 0);
        if (b->o.frozen == NULL) TRY(method_make_frozen(b->method, path, &s));
        TRY(take_frozen(b, b->o.frozen != NULL ? b->o.frozen : path));
        s.frozen_path = b->frozen;
        s.frozen_digest = b->frozen_digest;
    }
    path_of(path, b, "state", 1);
    TRY(method_start(b->method, path, &s));
    b->server_seconds += now() - since;
    return ERR_NONE;
}

static err combine(struct method_report *report, struct bench *b, uint32_t round)
{
    struct contribution contribution[MEMBERS_MAX];
    static char update[MEMBERS_MAX][LIMIT_PATH_BYTES];
    char state[LIMIT_PATH_BYTES], next_path[LIMIT_PATH_BYTES], frozen[LIMIT_PATH_BYTES];
    char memory[LIMIT_PATH_BYTES], memory_next[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < b->members; i++) {
        path_of(update[i], b, "update", (uint32_t)i);
        contribution[i] =
            (struct contribution){b->member[i].id, (double)b->member[i].data.count, update[i]};
    }
    path_of(state, b, "state", round);
    path_of(next_path, b, "state", round + 1);
    path_of(memory, b, "memory", round);
    path_of(memory_next, b, "memory", round + 1);
    path_of(frozen, b, "frozen", round);
    const struct method_next next = {.state_path = state,
                                     .frozen_path = b->frozen[0] ? b->frozen : NULL,
                                     .contribution = contribution,
                                     .count = b->members,
                                     .carry_error = b->o.carry_error,
                                     .rounds = b->rounds,
                                     .threads = (int)b->o.threads,
                                     .memory_path = file_exists(memory) ? memory : NULL,
                                     .memory_out = memory_next,
                                     .frozen_out = frozen};
    double since = now();
    TRY(method_next(report, b->method, next_path, &next));
    b->server_seconds += now() - since;
    const struct method_report_options norms = {.threads = (int)b->o.threads};
    TRY(method_report_make(report, b->method, next_path, &next, &norms));
    unlink(state);
    return report->frozen_made ? take_frozen(b, frozen) : ERR_NONE;
}

/* ---- a member's side ---- */

static struct member_round describe(const struct bench *b, const char *state, uint32_t round)
{
    return (struct member_round){.run = "bench",
                                 .member = "",
                                 .method = b->method->name,
                                 .base = b->base,
                                 .state_path = state,
                                 .frozen_path = b->frozen[0] ? b->frozen : NULL,
                                 .frozen_digest = b->frozen_digest,
                                 .round = round,
                                 .seed = (uint64_t)b->o.seed};
}

static err train_member(double *loss, struct bench *b, struct member_state *state, uint32_t round,
                        size_t i)
{
    struct member *m = &b->member[i];
    char path[LIMIT_PATH_BYTES];
    struct train_result result = {0};
    struct method_task task;
    struct training_options training = b->training;
    struct member_round r = describe(b, state->file.path, round);
    const struct member_train work = {.engine = b->engine,
                                      .data = &m->data,
                                      .round = &r,
                                      .training = &training,
                                      .ledger = b->o.epsilon > 0 ? &m->ledger : NULL};
    method_task(&task, b->method, &b->options, round);
    r.member = m->id;
    r.state = state;
    r.rank = m->rank;
    r.alpha = m->alpha;
    r.trains = task.trains;
    r.gradient = task.gradient;
    r.prox = b->options.prox;
    if (b->method->prunes) r.prune_gamma = b->options.prune_gamma;
    if (b->method->prunes) r.prune_lambda = b->options.prune_lambda;
    if (b->o.sampling > 0 && b->o.epsilon == 0)
        training.batch = (int64_t)ceil(b->o.sampling * (double)m->data.count);
    path_of(path, b, "update", (uint32_t)i);
    double since = now();
    err e = member_train(&result, path, &work);
    b->train_seconds += now() - since;
    if (err_is(e)) return err_in(e, "%s, round %u", m->id, round);
    m->bytes_up += size_of(path);
    *loss += result.mean_loss / (double)b->members;
    return ERR_NONE;
}

/* Checks an update as the coordinator does. A member that has pruned keeps the rank that it
 * sent. */
static err check_update(struct bench *b, const struct adapter_file *state, uint32_t round, size_t i)
{
    char path[LIMIT_PATH_BYTES];
    struct member *m = &b->member[i];
    struct adapter_file update = {0};
    const struct method_expect expect = {
        .state = state, .member = m->id, .round = round, .rank = m->rank, .alpha = m->alpha};
    path_of(path, b, "update", (uint32_t)i);
    TRY(method_check_update(b->method, path, &expect));
    if (!b->method->prunes) return ERR_NONE;
    TRY(adapter_file_map(&update, path));
    m->rank = update.meta.rank;
    m->alpha = alpha_of(b, m->rank);
    adapter_file_close(&update);
    return ERR_NONE;
}

static err train_all(double *loss, struct bench *b, uint32_t round)
{
    char path[LIMIT_PATH_BYTES];
    struct adapter_file file = {0};
    struct member_state state = {0};
    path_of(path, b, "state", round);
    b->bytes_down += size_of(path);
    struct member_round r = describe(b, path, round);
    double since = now();
    err e = member_state_open(&state, &r);
    b->train_seconds += now() - since;
    if (!err_is(e)) e = adapter_file_map(&file, path);
    *loss = 0;
    for (size_t i = 0; i < b->members && !err_is(e); i++) {
        e = train_member(loss, b, &state, round, i);
        if (!err_is(e)) e = check_update(b, &file, round, i);
    }
    adapter_file_close(&file);
    member_state_close(&state);
    return e;
}

static err measure(struct member_evaluation *out, struct bench *b, uint32_t round)
{
    char path[LIMIT_PATH_BYTES];
    struct member_round r = describe(b, path, round);
    struct dataset some = b->test;
    const struct member_evaluate work = {
        .engine = b->engine, .tokenizer = b->tokenizer, .data = &some, .round = &r};
    path_of(path, b, "state", round);
    r.evaluates = true;
    if (round <= b->rounds && b->o.check_rows > 0 && (size_t)b->o.check_rows < some.count)
        some.count = (size_t)b->o.check_rows;
    return member_evaluate(out, &work);
}

/* ---- the run ---- */

static err run_round(struct member_evaluation *m, struct bench *b, uint32_t round)
{
    struct method_report report = {0};
    double loss;
    TRY(train_all(&loss, b, round));
    TRY(combine(&report, b, round));
    err e = measure(m, b, round + 1);
    if (err_is(e)) goto out;
    const struct method_report_row *t = &report.total;
    json_t *row = json_pack("{s:i, s:f, s:f, s:f, s:i, s:f, s:f, s:i, s:I}", "round", (int)round,
                            "train_loss", loss, "loss", m->loss, "accuracy", m->accuracy, "rows",
                            (int)m->rows, "update_norm", t->update_norm, "error",
                            t->update_norm > 0 ? t->error / t->update_norm : 0.0, "rank",
                            (int)t->rank, "bytes_down", (json_int_t)b->bytes_down);
    REQUIRE(row != NULL && json_array_append_new(b->history, row) == 0);
    fprintf(stderr,
            "%s %s lr %g seed %lld round %u: train %.3f, test %.3f, %.1f %% of %zu; norm %.3f, "
            "error %.3f; training %.0f s, combining %.1f s\n",
            b->o.method, b->o.label, b->o.lr, (long long)b->o.seed, round, loss, m->loss,
            100 * m->accuracy, (size_t)m->rows, t->update_norm,
            t->update_norm > 0 ? t->error / t->update_norm : 0, b->train_seconds,
            b->server_seconds);
out:
    method_report_close(&report);
    return e;
}

static err write_result(const struct bench *b, const struct member_evaluation *m)
{
    json_t *up = json_array();
    for (size_t i = 0; i < b->members; i++)
        json_array_append_new(up, json_integer((json_int_t)b->member[i].bytes_up));
    json_t *line =
        json_pack("{s:s, s:s, s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:I, s:o, s:f, s:f, s:O}",
                  "method", b->o.method, "label", b->o.label, "seed", (json_int_t)b->o.seed, "lr",
                  b->o.lr, "rank", (json_int_t)b->o.rank, "rounds", (json_int_t)b->o.rounds,
                  "steps", (json_int_t)b->o.steps, "loss", m->loss, "accuracy", m->accuracy,
                  "bytes_down", (json_int_t)b->bytes_down, "bytes_up", up, "server_seconds",
                  b->server_seconds, "train_seconds", b->train_seconds, "history", b->history);
    double noise = b->member[0].ledger.summary.noise;
    if (line != NULL && b->o.epsilon > 0)
        json_object_update_new(line, json_pack("{s:f, s:f, s:f, s:f, s:f}", "epsilon", b->o.epsilon,
                                               "delta", b->o.delta, "noise", noise, "clip",
                                               b->o.clip_norm, "sampling", b->o.sampling));
    struct bytes text = {.max = 1 << 20};
    REQUIRE(line != NULL);
    err e = json_write(&text, line);
    if (!err_is(e)) e = bytes_append(&text, "\n", 1);
    FILE *file = err_is(e) ? NULL : fopen(b->o.out, "a");
    if (!err_is(e) && (file == NULL || fwrite(text.data, 1, text.size, file) != text.size))
        e = err_make(ERR_MACHINE, "%s: cannot be written", b->o.out);
    if (file != NULL && fclose(file) != 0 && !err_is(e))
        e = err_make(ERR_MACHINE, "%s: cannot be written", b->o.out);
    json_decref(line);
    bytes_close(&text);
    return e;
}

static err run(struct bench *b)
{
    struct member_evaluation m = {0};
    TRY(bench_open(b));
    TRY(start(b));
    for (uint32_t round = 1; round <= b->rounds; round++)
        TRY(run_round(&m, b, round));
    return write_result(b, &m);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct arena arena = {0};
    err e = read_options(&b.o, argc, argv, &arena);
    if (!err_is(e) && !b.o.help) e = run(&b);
    if (err_is(e)) fprintf(stderr, "bench_methods: %s\n", e.text);
    bench_close(&b);
    arena_close(&arena);
    return err_exit_code(e);
}
