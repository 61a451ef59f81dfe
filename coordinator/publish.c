#include "coordinator/publish.h"

#include "base/file.h"
#include "base/text.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { REPORT_BYTES_MAX = 16 << 20 };

/* Files being made lie in the spool under a name the recovery knows to remove. */
static void make_path(char out[LIMIT_PATH_BYTES], const struct store *store,
                      const struct publish_job *p, const char *what)
{
    int n = snprintf(out, LIMIT_PATH_BYTES, "%s/spool/make.%lld.%s", store->dir, (long long)p->run,
                     what);
    REQUIRE(n > 0 && n < LIMIT_PATH_BYTES);
}

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

static err make_start(struct publish_job *p, struct store *store)
{
    char path[LIMIT_PATH_BYTES], frozen_text[DIGEST_TEXT_BYTES];
    struct method_start start = p->start;
    struct blob_path frozen = {0};
    if (p->method->frozen && p->frozen.size == 0) {
        make_path(path, store, p, "frozen");
        TRY(method_make_frozen(p->method, path, &start));
        TRY(adopt(&p->frozen, store, path));
    }
    if (p->frozen.size) {
        frozen = blob_path(store->dir, &p->frozen.digest);
        digest_text(frozen_text, &p->frozen.digest);
        start.frozen_path = frozen.text;
        start.frozen_digest = frozen_text;
    }
    make_path(path, store, p, "state");
    TRY(method_start(p->method, path, &start));
    TRY(adopt(&p->state, store, path));
    return store_started(store, p->run, &p->state, &p->frozen);
}

static double weight_of(const struct publish_job *p, const struct store_update *u)
{
    if (p->weights == PUBLISH_UNIFORM) return 1;
    if (p->weights == PUBLISH_EXAMPLES) return (double)u->examples;
    for (size_t i = 0; i < p->given_count; i++)
        if (!strcmp(p->given[i].member, u->member)) return p->given[i].weight;
    return 1;
}

/* The contributions of the round, by member, and the members' mean loss under the same weights. */
static err gather(struct method_next *next, struct publish_job *p, struct store *store)
{
    struct store_update *update = NULL;
    struct contribution *c = NULL;
    struct blob_path *path = NULL;
    size_t count = 0;
    double sum = 0, loss = 0;
    TRY(store_updates(&update, &count, store, p->run, p->round, &p->arena));
    REQUIRE(count > 0);
    TRY(arena_take(&c, &p->arena, count, sizeof *c));
    TRY(arena_take(&path, &p->arena, count, sizeof *path));
    for (size_t i = 0; i < count; i++) {
        path[i] = blob_path(store->dir, &update[i].blob.digest);
        c[i] = (struct contribution){update[i].member, weight_of(p, &update[i]), path[i].text};
        sum += c[i].weight;
        loss += c[i].weight * update[i].train_loss;
    }
    next->contribution = c;
    next->count = count;
    p->result.updates = (uint32_t)count;
    p->result.train_loss = sum > 0 ? loss / sum : 0;
    return ERR_NONE;
}

static void fill_result(struct publish_job *p, const struct method_report *report)
{
    const struct method_report_row *total = &report->total;
    double norm = total->update_norm;
    p->result.update_norm = norm;
    p->result.error = norm > 0 ? total->error / norm : total->error;
    p->result.dropped = norm > 0 ? total->dropped / norm : total->dropped;
}

static err make_next(struct publish_job *p, struct store *store)
{
    char path[LIMIT_PATH_BYTES];
    struct method_report report = {0};
    struct bytes json = {.max = REPORT_BYTES_MAX};
    struct blob_path state = blob_path(store->dir, &p->state.digest);
    struct blob_path frozen = blob_path(store->dir, &p->frozen.digest);
    struct method_next next = {.state_path = state.text,
                               .frozen_path = p->frozen.size ? frozen.text : NULL,
                               .carry_error = p->carry_error,
                               .rounds = p->rounds,
                               .threads = p->threads};
    uint64_t began = text_now_ms();
    err e = ERR_NONE;
    TRY_OUT(e, gather(&next, p, store));
    make_path(path, store, p, "state");
    malloc_trim(0); /* what the uploads' buffers left in the heap, before the sums need memory */
    TRY_OUT(e, method_next(&report, p->method, path, &next));
    TRY_OUT(e, method_report_json(&json, &report));
    TRY_OUT(e, adopt(&p->state, store, path));
    fill_result(p, &report);
    uint64_t now = text_now_ms();
    p->result.round = p->round;
    p->result.state = p->state;
    p->result.aggregate_ms = now - began;
    p->result.took_ms = now - p->opened_ms;
    struct store_publish publish = {.run = p->run,
                                    .keep = p->keep,
                                    .updates_keep = p->updates_keep,
                                    .last = p->round == p->rounds,
                                    .round = p->result};
    publish.round.report_json = (const char *)json.data;
    TRY_OUT(e, store_publish(store, &publish));
out:
    method_report_close(&report);
    bytes_close(&json);
    return e;
}

void publish_run(struct work_job *batch, struct store *store)
{
    for (struct work_job *job = batch; job; job = job->next) {
        struct publish_job *p = (struct publish_job *)(void *)job;
        struct store_blob state = p->state, frozen = p->frozen;
        job->result = p->is_start ? make_start(p, store) : make_next(p, store);
        if (err_is(job->result)) {
            p->state = state; /* what was not committed is not there */
            p->frozen = frozen;
            continue;
        }
        /* The round stands; files that are not removed now go at the next start. */
        err e = store_trim(store);
        (void)e;
    }
}

void publish_close(struct publish_job *job)
{
    arena_close(&job->arena);
    free(job);
}
