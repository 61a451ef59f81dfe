#include "sim/results.h"

#include "base/file.h"
#include "base/json.h"
#include "base/processor.h"
#include "kernels/describe.h"
#include "sim/fairness.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 4096 };
const char *const results_fates[] = {"counted", "late", "refused", "lost", "dropped"};
static const char header[] =
    "round,member,rank,examples,start_s,end_s,fate,loss,bytes,joules,attack\n";

/* ---- reading what an earlier call has left ---- */

/* Counts of a line and their places. */
static const struct {
    const char *key;
    size_t at; /* of a uint64_t or a size_t */
} counts[] = {
    {"updates", offsetof(struct simulate_round, updates)},
    {"late", offsetof(struct simulate_round, late)},
    {"lost", offsetof(struct simulate_round, lost)},
    {"dropped", offsetof(struct simulate_round, dropped)},
    {"bytes_up", offsetof(struct simulate_round, bytes_up)},
    {"bytes_down", offsetof(struct simulate_round, bytes_down)},
};
enum { COUNTS = sizeof counts / sizeof *counts };
_Static_assert(sizeof(size_t) == sizeof(uint64_t), "counts of both types are read in one way");

static err parse_fields(struct simulate_round *out, const json_t *o)
{
    static const char where[] = "rounds.jsonl";
    const char *state = "";
    int64_t round = 0;
    double virtual_s = 0;
    *out = (struct simulate_round){.train_loss = NAN,
                                   .loss = NAN,
                                   .accuracy = -1,
                                   .epsilon = NAN,
                                   .error = NAN,
                                   .cut = NAN,
                                   .rounds = out->rounds};
    TRY(json_get_int(&round, o, "round", 1, LIMIT_ROUNDS, where));
    TRY(json_get_num(&virtual_s, o, "virtual_s", where));
    TRY(json_get_num(&out->seconds, o, "seconds", where));
    TRY(json_get_str(&state, o, "state", where));
    TRY(digest_parse(&out->state, state));
    TRY(json_opt_num(&out->train_loss, o, "train_loss", where));
    TRY(json_opt_num(&out->loss, o, "loss", where));
    TRY(json_opt_num(&out->accuracy, o, "accuracy", where));
    TRY(json_opt_num(&out->joules, o, "joules", where));
    TRY(json_opt_num(&out->epsilon, o, "epsilon", where));
    TRY(json_opt_num(&out->error, o, "error", where));
    TRY(json_opt_num(&out->cut, o, "cut", where));
    TRY(json_opt_num(&out->combine_s, o, "combine_s", where));
    for (size_t i = 0; i < COUNTS; i++) {
        int64_t n = 0;
        TRY(json_get_int(&n, o, counts[i].key, 0, INT64_MAX, where));
        *(uint64_t *)(void *)((char *)out + counts[i].at) = (uint64_t)n;
    }
    out->round = (uint32_t)round;
    out->virtual_ms = (uint64_t)(virtual_s * 1000 + 0.5);
    return ERR_NONE;
}

static err parse_round(struct simulate_round *out, const char *line)
{
    json_t *o = NULL;
    TRY(json_parse(&o, line, strlen(line), "rounds.jsonl"));
    err e = parse_fields(out, o);
    json_decref(o);
    return e;
}

/* Copies the lines that are kept to a new file, which then replaces the old one. `round_of` gives a
 * line's round. */
static err keep_lines(const char *path, uint32_t published, const char *first,
                      err (*round_of)(uint32_t *round, const char *line, void *context),
                      void *context)
{
    char *text = NULL, *next;
    size_t size = 0;
    struct file_out out = {0};
    TRY(file_out_open(&out, path, true));
    err e = file_exists(path) ? file_read_all(&text, &size, path, SIZE_MAX / 2) : ERR_NONE;
    if (!err_is(e)) e = file_out_append(&out, first, strlen(first));
    char *line = text;
    if (text && *first && strchr(text, '\n') && !strncmp(text, first, 6))
        line = strchr(text, '\n') + 1;
    for (; line && *line && !err_is(e); line = next) {
        uint32_t round = 0;
        next = strchr(line, '\n');
        if (!next) break; /* the end of a line that was not written whole */
        *next++ = 0;
        e = round_of(&round, line, context);
        if (err_is(e) || round > published) continue;
        e = file_out_append(&out, line, strlen(line));
        if (!err_is(e)) e = file_out_append(&out, "\n", 1);
    }
    if (!err_is(e)) e = file_out_commit(&out);
    file_out_close(&out);
    free(text);
    return e;
}

static err round_of_json(uint32_t *round, const char *line, void *context)
{
    struct simulate_round *last = context;
    TRY(parse_round(last, line));
    *round = last->round;
    return ERR_NONE;
}

/* Columns of updates.csv that are read again. */
enum { COLUMN_MEMBER = 1, COLUMN_FATE = 6, COLUMN_BYTES = 8 };

static const char *column(const char *line, int number)
{
    while (number-- && line && (line = strchr(line, ',')))
        line++;
    return line ? line : "";
}

/* An update of the round under way that the coordinator holds is not trained again, so its line
 * stays, as if its round were published. */
static err round_of_csv(uint32_t *round, const char *line, void *context)
{
    struct results *r = context;
    char member[LIMIT_NAME_BYTES];
    const char *fate = column(line, COLUMN_FATE);
    bool late = !strncmp(fate, "late,", 5), sent = late || !strncmp(fate, "counted,", 8);
    *round = (uint32_t)strtoul(line, NULL, 10);
    snprintf(member, sizeof member, "%.*s", (int)strcspn(column(line, COLUMN_MEMBER), ","),
             column(line, COLUMN_MEMBER));
    if (!sent || *round + late <= r->published || !r->holds(r->context, member)) return ERR_NONE;
    r->kept.updates++;
    r->kept.late += late;
    r->kept.bytes_up += strtoull(column(line, COLUMN_BYTES), NULL, 10);
    *round = r->published;
    return ERR_NONE;
}

static err open_file(FILE **out, const char *path)
{
    *out = fopen(path, "ae");
    return *out ? ERR_NONE : err_sys(errno, "%s", path);
}

err results_open(struct results *r, const char *dir, uint32_t published,
                 struct simulate_round *last)
{
    char path[LIMIT_PATH_BYTES];
    struct simulate_round found = *last;
    snprintf(r->dir, sizeof r->dir, "%s", dir);
    TRY(file_join(path, sizeof path, dir, "rounds.jsonl"));
    TRY(keep_lines(path, published, "", round_of_json, &found));
    if (found.round == published) *last = found;
    TRY(open_file(&r->rounds, path));
    TRY(file_join(path, sizeof path, dir, "updates.csv"));
    r->published = published;
    TRY(keep_lines(path, published, header, round_of_csv, r));
    return open_file(&r->updates, path);
}

void results_close(struct results *r)
{
    if (r->rounds) fclose(r->rounds);
    if (r->updates) fclose(r->updates);
    *r = (struct results){0};
}

/* ---- writing ---- */

err results_read(struct simulate_round **out, size_t *count, const char *dir, struct arena *arena)
{
    char path[LIMIT_PATH_BYTES], *text = NULL, *next;
    size_t size = 0, lines = 0;
    TRY(file_join(path, sizeof path, dir, "rounds.jsonl"));
    TRY(file_read_all(&text, &size, path, SIZE_MAX / 2));
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    err e = arena_take(out, arena, lines + 1, sizeof **out);
    for (char *line = text; !err_is(e) && (next = strchr(line, '\n')); line = next + 1) {
        *next = 0;
        e = parse_round(&(*out)[*count], line);
        if (!err_is(e)) ++*count;
    }
    free(text);
    return err_is(e) ? err_in(e, "%s", path) : e;
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* One line, written at once, so that an interrupted line is the last one. */
static err write_line(FILE *file, const char *line, size_t size, const char *dir)
{
    if (fwrite(line, 1, size, file) != size || fflush(file) != 0)
        return err_sys(errno, "%s: writing the results", dir);
    return ERR_NONE;
}

static json_t *round_json(const struct simulate_round *n)
{
    char state[DIGEST_TEXT_BYTES];
    digest_text(state, &n->state);
    return json_pack(
        "{s:I,s:f,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o*,s:I,s:I,s:f,s:f,s:s}", "round",
        (json_int_t)n->round, "virtual_s", (double)n->virtual_ms / 1000, "updates",
        (json_int_t)n->updates, "late", (json_int_t)n->late, "lost", (json_int_t)n->lost, "dropped",
        (json_int_t)n->dropped, "train_loss", number(n->train_loss), "loss", number(n->loss),
        "accuracy", n->accuracy < 0 ? json_null() : number(n->accuracy), "error", number(n->error),
        "cut", number(n->cut), "epsilon", isfinite(n->epsilon) ? json_real(n->epsilon) : NULL,
        "bytes_up", (json_int_t)n->bytes_up, "bytes_down", (json_int_t)n->bytes_down, "seconds",
        n->seconds, "combine_s", n->combine_s, "state", state);
}

/* Energy is written only if a class of devices has a power. */
static json_t *round_line(const struct simulate_round *n)
{
    json_t *o = round_json(n);
    if (o && n->joules > 0) json_object_set_new(o, "joules", json_real(n->joules));
    return o;
}

err results_round(struct results *r, const struct simulate_round *round)
{
    struct bytes line = {.max = LINE_BYTES};
    json_t *o = round_line(round);
    err e = o ? json_write(&line, o) : err_sys(ENOMEM, "results");
    if (!err_is(e)) e = bytes_printf(&line, "\n");
    if (!err_is(e)) e = write_line(r->rounds, (const char *)line.data, line.size, r->dir);
    json_decref(o);
    bytes_close(&line);
    return e;
}

err results_update(struct results *r, const struct results_update *u)
{
    char line[LINE_BYTES], loss[32] = "", joules[32] = "";
    if (isfinite(u->loss)) snprintf(loss, sizeof loss, "%.6g", u->loss);
    if (u->joules > 0) snprintf(joules, sizeof joules, "%.6g", u->joules);
    int n = snprintf(line, sizeof line, "%u,%s,%u,%zu,%.3f,%.3f,%s,%s,%" PRIu64 ",%s,%s\n",
                     u->round, u->member, u->rank, u->examples, (double)u->from_ms / 1000,
                     (double)u->at_ms / 1000, results_fates[u->fate], loss, u->bytes, joules,
                     u->attack);
    return write_line(r->updates, line, (size_t)n, r->dir);
}

static json_t *spread_json(const struct fairness_spread *s)
{
    if (!s->members) return NULL;
    return json_pack("{s:f,s:f,s:f}", "mean", s->mean, "worst_tenth", s->worst, "sd", s->sd);
}

/* Nothing without rows that members have held out. */
static err add_members(json_t *result, const char *dir)
{
    struct arena arena = {0};
    struct fairness_member *member = NULL;
    struct fairness_spread loss = {0}, accuracy = {0};
    size_t count = 0;
    err e = fairness_read(&member, &count, dir, &arena);
    if (!err_is(e) && count) {
        fairness_loss(&loss, member, count);
        fairness_accuracy(&accuracy, member, count);
        json_t *all = json_pack("{s:I,s:o*,s:o*}", "measured", (json_int_t)count, "loss",
                                spread_json(&loss), "accuracy", spread_json(&accuracy));
        if (json_object_set_new(result, "members", all) != 0) e = err_sys(ENOMEM, "results");
    }
    arena_close(&arena);
    return e;
}

static err add_spectrum(json_t *result, const struct spectrum *s)
{
    json_t *list = json_array();
    bool good = list;
    for (size_t i = 0; good && i < s->values; i++)
        good = json_array_append_new(list, json_real(s->value[i])) == 0;
    good = json_object_set_new(result, "spectrum", list) == 0 && good;
    return good ? ERR_NONE : err_sys(ENOMEM, "results");
}

err results_end(struct results *r, const struct simulate_result *result,
                const Fedlora__V1__RunConfig *config)
{
    char path[LIMIT_PATH_BYTES], processor[100], libraries[150];
    struct bytes text = {.max = 1 << 16};
    processor_name(processor, sizeof processor);
    describe_libraries(libraries, sizeof libraries);
    json_t *o =
        json_pack("{s:s,s:s,s:I,s:o,s:s,s:s,s:s}", "run", config->name, "method", config->method,
                  "seed", (json_int_t)config->seed, "last", round_line(&result->last), "state_file",
                  result->state_path, "processor", processor, "libraries", libraries);
    err e = o ? add_members(o, r->dir) : err_sys(ENOMEM, "results");
    if (!err_is(e)) e = add_spectrum(o, &result->spectrum);
    if (o && *result->stopped) json_object_set_new(o, "stopped", json_string(result->stopped));
    if (!err_is(e)) e = json_write(&text, o);
    if (!err_is(e)) e = bytes_printf(&text, "\n");
    if (!err_is(e)) e = file_join(path, sizeof path, r->dir, "result.json");
    if (!err_is(e)) e = file_write(path, text.data, text.size, true);
    json_decref(o);
    bytes_close(&text);
    return e;
}
