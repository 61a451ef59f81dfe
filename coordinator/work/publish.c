#include "coordinator/work/publish.h"

#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/room.h"
#include "coordinator/work/publish_gather.h"

#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { REPORT_BYTES_MAX = 16 << 20 };

/* Unfinished files are in the spool, under names that store_recover() removes after a crash. */
static void make_path(char out[LIMIT_PATH_BYTES], const struct store *store,
                      const struct publish_job *p, const char *what)
{
    int n = snprintf(out, LIMIT_PATH_BYTES, "%s/spool/make.%lld.%s", store->dir, (long long)p->run,
                     what);
    REQUIRE(n > 0 && n < LIMIT_PATH_BYTES);
}

/* The digest is computed from the file, not from memory, so the committed digest is that of bytes
 * that can be read back. */
static err adopt(struct store_blob *out, const struct store *store, const char *path)
{
    struct store_blob blob = {0};
    struct stat st;
    TRY(digest_of_file(&blob.digest, path));
    if (stat(path, &st) != 0) return err_make(ERR_MACHINE, "%s: vanished", path);
    blob.size = (uint64_t)st.st_size;
    TRY(blob_adopt(store->dir, path, &blob.digest));
    *out = blob;
    return ERR_NONE;
}

static struct private_what what_of(const struct publish_job *p)
{
    return (struct private_what){.method = p->method, .options = &p->options};
}

/* The plan's lines, without the "privacy: " at their beginning. */
static void say_in_one_line(char *out, size_t bytes, const char *lines)
{
    static const char head[] = "privacy: ";
    size_t used = 0;
    *out = 0;
    while (*lines) {
        size_t n = strcspn(lines, "\n");
        if (!strncmp(lines, head, strlen(head))) {
            lines += strlen(head);
            n -= strlen(head);
        }
        if (used < bytes)
            used += (size_t)snprintf(out + used, bytes - used, "%s%.*s", used ? "; " : "", (int)n,
                                     lines);
        lines += n + (lines[n] == '\n');
    }
}

/* The start state and, in a private run, the ledger's first line and the seed: one transaction.
 * A crash before it leaves nothing, so the plan may be drawn again; after it, the ledger's
 * commitment can never change. */
static err commit_start(struct publish_job *p, struct store *store, const char *path)
{
    struct private_start start = {0};
    struct private_what what = what_of(p);
    struct private_dims dims;
    err e = ERR_NONE;
    if (p->terms.on) {
        TRY_OUT(e, private_measure(&dims, path, &what));
        TRY_OUT(e, private_begin(&start, &p->terms, &dims));
        say_in_one_line(p->says, sizeof p->says, (const char *)start.says.data);
        p->ledger_head = start.head;
    }
    TRY_OUT(e, adopt(&p->made.state, store, path));
    struct store_start row = {.run = p->run, .state = p->made.state, .frozen = p->made.frozen};
    if (p->terms.on) row.ledger = (const char *)start.line.data;
    if (p->terms.on) row.seed = &start.seed;
    if (p->terms.on) row.plan = p->says;
    e = store_started(store, &row);
out:
    private_start_close(&start);
    return e;
}

/* Frozen factors first, because the state names their digest. With basis=gradient they are found
 * by the first rounds instead. */
static err make_start(struct publish_job *p, struct store *store)
{
    char path[LIMIT_PATH_BYTES], frozen_text[DIGEST_TEXT_BYTES];
    struct method_start start = p->start;
    struct blob_path frozen = {0};
    bool found_later = p->options.basis == METHOD_BASIS_GRADIENT;
    if (p->method->frozen && p->made.frozen.size == 0 && !found_later) {
        make_path(path, store, p, "frozen");
        TRY(method_make_frozen(p->method, path, &start));
        TRY(adopt(&p->made.frozen, store, path));
    }
    if (p->made.frozen.size) {
        frozen = blob_path(store->dir, &p->made.frozen.digest);
        digest_text(frozen_text, &p->made.frozen.digest);
        start.frozen_path = frozen.text;
        start.frozen_digest = frozen_text;
    }
    make_path(path, store, p, "state");
    TRY(method_start(p->method, path, &start));
    return commit_start(p, store, path);
}

/* Paths of the files of one round: those that are read, and those that are made. */
struct made {
    struct blob_path state, frozen, memory;
    char next_state[LIMIT_PATH_BYTES], next_frozen[LIMIT_PATH_BYTES], next_memory[LIMIT_PATH_BYTES];
};

/* Fills `made` with the paths, and returns the arguments that point to them. memory_out and
 * frozen_out are given only in rounds that may write those files. */
static struct method_next files(struct made *made, const struct publish_job *p,
                                const struct store *store)
{
    made->state = blob_path(store->dir, &p->from.state.digest);
    made->frozen = blob_path(store->dir, &p->from.frozen.digest);
    made->memory = blob_path(store->dir, &p->from.memory.digest);
    make_path(made->next_state, store, p, "state");
    make_path(made->next_frozen, store, p, "frozen");
    make_path(made->next_memory, store, p, "memory");
    bool optimizes = p->options.server != METHOD_SERVER_NONE;
    bool finds = p->round == method_setup_rounds(&p->options);
    return (struct method_next){.state_path = made->state.text,
                                .frozen_path = p->from.frozen.size ? made->frozen.text : NULL,
                                .memory_path = p->from.memory.size ? made->memory.text : NULL,
                                .memory_out = optimizes ? made->next_memory : NULL,
                                .frozen_out = finds ? made->next_frozen : NULL,
                                .carry_error = p->carry_error,
                                .rounds = p->rounds,
                                .threads = p->threads};
}

/* Frozen factors and the optimizer's memory are durable before the state that names them. A
 * crash in between leaves blobs that no row names. */
static err adopt_all(struct publish_job *p, const struct made *made, const struct store *store)
{
    p->made.frozen = p->from.frozen;
    if (p->report.memory_made) TRY(adopt(&p->made.memory, store, made->next_memory));
    if (p->report.frozen_made) TRY(adopt(&p->made.frozen, store, made->next_frozen));
    return adopt(&p->made.state, store, made->next_state);
}

/* With privacy, one update with the noisy mean takes the place of the members' updates. Its row
 * is durable before it is used: after a crash the same mean is taken, because a second draw of
 * noise for one round would be a second release. */
static err make_private(struct private_round *round, struct publish_job *p, struct store *store,
                        const char *state_path)
{
    char path[LIMIT_PATH_BYTES];
    struct contribution *only = NULL;
    bool made = false;
    make_path(path, store, p, "noisy");
    struct private_files files = {.state = state_path,
                                  .out = path,
                                  .from = p->contribution,
                                  .count = p->contributions,
                                  .what = what_of(p)};
    TRY(private_open(round, &p->terms, store, p->run, p->round));
    TRY(private_mean(&made, round, &files, p->noise_ahead));
    if (made) {
        TRY(adopt(&round->was.noisy, store, path));
        TRY(store_private_noisy(store, p->run, p->round, &round->was));
    }
    TRY(arena_take(&only, &p->arena, 1, sizeof *only));
    struct blob_path where = blob_path(store->dir, &round->was.noisy.digest);
    *only = (struct contribution){.member = "private", .weight = 1};
    TRY(arena_text(&only->path, &p->arena, where.text, strlen(where.text)));
    p->contribution = only;
    p->contributions = 1;
    return ERR_NONE;
}

/* For the round that has just opened. If this fails, private_mean() draws the noise at the end
 * of the round, or reports why it cannot. */
static err draw_noise(struct publish_job *p, struct store *store)
{
    struct private_round round = {0};
    struct blob_path state = blob_path(store->dir, &p->from.state.digest);
    struct private_files files = {.state = state.text, .what = what_of(p)};
    TRY(private_open(&round, &p->terms, store, p->run, p->round));
    err e = private_noise_ahead(&p->noise_ahead, &round, &files);
    private_close(&round);
    return e;
}

/* A run without privacy makes a release too, which says so, because store_publish() accepts nothing
 * else. */
static err make_release(struct release **out, struct publish_job *p, struct private_round *round,
                        const char *state_path)
{
    struct private_files files = {.state = state_path, .what = what_of(p)};
    if (!p->terms.on) return release_plain(out, &p->made.state.digest);
    return private_release(out, p->stop, round, &files, &p->made.state.digest);
}

/* From here on the round is published: state, privacy charge and the run's end are one
 * transaction. A crash before it leaves the updates in place and the round is combined again, to
 * the same bytes. */
static err commit(struct publish_job *p, struct store *store, struct private_round *round)
{
    struct release *release = NULL;
    struct blob_path state = blob_path(store->dir, &p->made.state.digest);
    TRY(make_release(&release, p, round, state.text));
    struct store_publish publish = {.run = p->run,
                                    .keep = p->keep,
                                    .updates_keep = p->updates_keep,
                                    .last = p->round == p->rounds,
                                    .round = p->result,
                                    .frozen = p->made.frozen,
                                    .memory = p->made.memory,
                                    .release = release,
                                    .next_clip = round->next_clip};
    publish.made = (struct store_made){.config = p->config_digest,
                                       .software = p->software,
                                       .update = p->update,
                                       .weight = p->weights,
                                       .updates = p->result.updates};
    publish.stop = p->stop;
    publish.next_line = (const char *)round->next_line.data;
    snprintf(p->says, sizeof p->says, "%s", release_says(release));
    err e = store_publish(store, &publish);
    if (!err_is(e) && p->terms.on) p->ledger_head = round->ledger.head.hash;
    release_close(release);
    return e;
}

/* ---- reports ---- */

void (*publish_report_hook)(const struct work_job *job);

/* Called between modules, from any thread of the parallel loop. */
static bool gives_way(void *context)
{
    return work_gives_way(context);
}

static void fill_result(struct publish_job *p)
{
    const struct method_report_row *total = &p->report.total;
    double norm = p->report.measured ? total->update_norm : NAN; /* of methods with `keeps` */
    p->result.reported = true;
    p->result.update_norm = norm;
    p->result.error = norm > 0 ? total->error / norm : total->error;
    p->result.dropped = norm > 0 ? total->dropped / norm : total->dropped;
}

/* `gives_way_to`: NULL if the report must be made now. */
static err measure(struct publish_job *p, struct made *made, const struct method_next *next,
                   bool (*gives_way_to)(void *context))
{
    const struct method_report_options options = {.directions = p->directions,
                                                  .give_way = gives_way_to,
                                                  .context = &p->job,
                                                  .threads = p->threads,
                                                  .frozen = p->report_frozen};
    if (!p->report.measured) /* rounds that only find a basis have measured everything */
        TRY(method_report_make(&p->report, p->method, made->next_state, next, &options));
    fill_result(p);
    return ERR_NONE;
}

static err keep_report(struct publish_job *p, struct store *store)
{
    struct bytes json = {.max = REPORT_BYTES_MAX};
    err e = method_report_json(&json, &p->report);
    if (!err_is(e)) {
        p->result.report_json = (const char *)json.data;
        e = store_report(store, p->run, &p->result);
    }
    p->result.report_json = NULL; /* it points into `json`, which is freed here */
    bytes_close(&json);
    return e;
}

/* The round is published, whatever fails here: a report that is not stored is lost, and files that
 * are not removed now are removed by the next round or the next start. */
static void give_up_at_once(struct publish_job *p, struct store *store)
{
    err e = keep_report(p, store);
    if (err_is(e)) p->result.reported = false;
    e = store_trim(store);
    (void)e;
}

/* The next state from a closed round's updates. The effect of a crash at each point:
 *
 * while combining         files in the spool, removed at the next start; combined again
 * after the noisy mean    private runs: its row is there, so the same mean is used again
 * after adopt_all()       blobs that no row names, removed at the next start; combined again
 * after commit()          the round is published; only its report is lost */
static err make_next(struct publish_job *p, struct store *store)
{
    struct made made;
    struct private_round round = {0};
    struct method_next next = files(&made, p, store);
    uint64_t began = text_now_ms();
    err e = ERR_NONE;
    /* The next state is about as large as this one. */
    if (!p->trusts_disk) TRY_OUT(e, room_check(store->dir, p->from.state.size, 0));
    TRY_OUT(e, publish_check_from(p, store));
    TRY_OUT(e, publish_gather(p, store));
    next.contribution = p->contribution;
    next.count = p->contributions;
    TRY_OUT(e, publish_bound(p, store, &next));
    malloc_trim(0); /* give back what the uploads' buffers left, before the sums need memory */
    if (p->terms.on) TRY_OUT(e, make_private(&round, p, store, next.state_path));
    next.contribution = p->contribution;
    next.count = p->contributions;
    e = method_next(&p->report, p->method, made.next_state, &next);
    if (err_is(e)) e = publish_blame(p, store, made.next_state, &next, e);
    if (err_is(e)) goto out;
    /* The report needs the updates, and nothing is left of them after the commit. */
    if (!p->updates_keep) TRY_OUT(e, measure(p, &made, &next, NULL));
    TRY_OUT(e, adopt_all(p, &made, store));
    uint64_t now = text_now_ms();
    p->result.round = p->round;
    p->result.state = p->made.state;
    p->result.aggregate_ms = now - began;
    p->result.took_ms = p->open_ms + (now - began);
    e = commit(p, store, &round);
    if (!err_is(e) && !p->updates_keep) give_up_at_once(p, store);
out:
    private_close(&round);
    return e;
}

/* Every file read here was a blob of the round when it was published, and the store names it until
 * the report is stored or the run's next round is published. So it does not matter what
 * store_trim() removes for other runs while this report waits or has given way. Two files may be
 * removed, and are not read: the optimizer's memory, and frozen factors that a setup round has
 * replaced. */
static err make_report(struct publish_job *p, struct store *store)
{
    struct made made;
    struct blob_path state = blob_path(store->dir, &p->made.state.digest);
    struct method_next next = files(&made, p, store);
    next.contribution = p->contribution;
    next.count = p->contributions;
    snprintf(made.next_state, sizeof made.next_state, "%s", state.text);
    if (publish_report_hook) publish_report_hook(&p->job);
    TRY(measure(p, &made, &next, gives_way));
    return keep_report(p, store);
}

static void publish_one(struct publish_job *p, struct store *store)
{
    err e = ERR_NONE;
    switch (p->kind) {
    case PUBLISH_NOISE:
        p->job.result = draw_noise(p, store);
        return;
    case PUBLISH_REPORT:
        p->job.result = make_report(p, store);
        break;
    case PUBLISH_START:
        p->job.result = make_start(p, store);
        break;
    case PUBLISH_NEXT:
        /* Removes what earlier rounds gave up, in case their reports were not made. */
        e = store_trim(store);
        p->job.result = make_next(p, store);
        break;
    }
    /* The round stays published even if these steps fail. Files that are not removed now are
     * removed later, or by the next start, which also writes the copy of the ledger again. */
    bool published = p->kind == PUBLISH_NEXT && !err_is(p->job.result);
    if (p->kind == PUBLISH_REPORT) e = store_trim(store);
    if (p->terms.on && (published || p->kind == PUBLISH_START) && !err_is(p->job.result))
        e = private_export(store, p->run, p->terms.run);
    (void)e;
}

void publish_run(struct work_job *batch, struct store *store)
{
    for (struct work_job *job = batch; job; job = job->next)
        publish_one((struct publish_job *)(void *)job, store);
}

/* Also frees the noise if it was not used, and the contributions' paths. */
void publish_close(struct publish_job *job)
{
    private_noise_ahead_close(job->noise_ahead);
    method_report_close(&job->report);
    arena_close(&job->arena);
    free(job);
}
