#include "sim/federation.h"

#include "base/file.h"
#include "base/text.h"
#include "client/session/session_describe.h"
#include "client/session/session_task.h"
#include "proto/message.h"
#include "sim/federation_privacy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Beside the coordinator's own folders: the factors that simulated members keep. */
#define KEPT_DIR "../kept"
enum { CONFIG_BYTES_MAX = 64 << 20, NEVER_MS = INT32_MAX };

/* ---- the coordinator's shop ---- */

static void changed(struct run *run, void *context)
{
    (void)run, (void)context;
}
static void wake(void *context)
{
    (void)context;
}
static uint64_t virtual_ms(void *context)
{
    const struct federation *f = context;
    return f->now_ms;
}

/* Every member of the fleet is allowed. A member is never absent, because no poll reminds the
 * coordinator of it. */
static err open_config(struct federation *f, const char *dir, const Fedlora__V1__RunConfig *config,
                       size_t threads)
{
    const char **id = NULL;
    int64_t keep = (int64_t)config->late_rounds + 1; /* late tasks are trained when they arrive */
    TRY(arena_text(&dir, &f->arena, dir, strlen(dir)));
    TRY(arena_take(&id, &f->arena, f->fleet->members, sizeof *id));
    for (size_t i = 0; i < f->fleet->members; i++)
        id[i] = f->fleet->member[i].id;
    f->config = (struct config){.path = dir,
                                .threads = (int64_t)threads,
                                .keep_states = keep > FEDERATION_STATES ? keep : FEDERATION_STATES,
                                .keep_updates = 1,
                                .absent_ms = NEVER_MS,
                                .retry_ms = 1000,
                                .allowed = {f->fleet->members, id}};
    return ERR_NONE;
}

static err open_shop(struct federation *f)
{
    struct store_recovered found;
    size_t runs = 0;
    f->shop = (struct run_shop){.config = &f->config,
                                .changed = changed,
                                .now_ms = virtual_ms,
                                .wake = wake,
                                .context = f,
                                .simulated = true};
    TRY(run_shop_open(&f->shop));
    TRY(store_recover(&found, f->shop.store, UINT64_MAX));
    TRY(run_load_all(&f->run, &runs, &f->shop));
    return f->shop.asides ? f->shop.aside->why : ERR_NONE;
}

static void close_shop(struct federation *f)
{
    run_shop_stop(&f->shop);
    run_close(f->run);
    f->run = NULL;
    run_shop_close(&f->shop);
}

/* ---- the run ---- */

/* The configuration names all members, with what the caller's configuration says of them. */
static err list_members(Fedlora__V1__RunConfig *c, const struct fleet *fleet, struct arena *arena)
{
    Fedlora__V1__MemberConfig **list = NULL, *own = NULL;
    size_t members = fleet->members;
    TRY(arena_take(&list, arena, members, sizeof(Fedlora__V1__MemberConfig *)));
    TRY(arena_take(&own, arena, members, sizeof *own));
    for (size_t i = 0; i < members; i++) {
        const char *id = fleet->member[i].id;
        own[i] = (Fedlora__V1__MemberConfig)FEDLORA__V1__MEMBER_CONFIG__INIT;
        own[i].id = (char *)(uintptr_t)id;
        list[i] = &own[i];
        for (size_t k = 0; k < c->n_members; k++)
            if (!strcmp(c->members[k]->id, id)) list[i] = c->members[k];
    }
    c->members = list;
    c->n_members = members;
    return ERR_NONE;
}

err federation_config(Fedlora__V1__RunConfig **out, const struct fleet *fleet,
                      const Fedlora__V1__RunConfig *config)
{
    Fedlora__V1__RunConfig named = *config;
    struct digest base = fleet->base, frozen;
    struct bytes packed = {.max = CONFIG_BYTES_MAX};
    struct arena arena = {0};
    named.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, base.byte};
    if (fleet->frozen) TRY(digest_of_file(&frozen, fleet->frozen));
    if (fleet->frozen) named.frozen_digest = (ProtobufCBinaryData){DIGEST_BYTES, frozen.byte};
    err e = list_members(&named, fleet, &arena);
    if (!err_is(e)) e = message_pack(&packed, &named.base);
    if (!err_is(e))
        e = message_unpack(out, &fedlora__v1__run_config__descriptor, packed.data, packed.size);
    bytes_close(&packed);
    arena_close(&arena);
    return e;
}

err federation_check(const struct fleet *fleet, const Fedlora__V1__RunConfig *config)
{
    Fedlora__V1__RunConfig *named = NULL;
    TRY(federation_config(&named, fleet, config));
    err e = run_config_create(named);
    if (!err_is(e)) e = federation_privacy_check(named);
    message_free(named);
    return e;
}

/* As an operator uploads it before the run that names it. */
static err give_frozen(struct federation *f)
{
    char part[LIMIT_PATH_BYTES], spool[LIMIT_PATH_BYTES];
    struct file_map map = {0};
    struct store_blob blob;
    if (!f->fleet->frozen) return ERR_NONE;
    TRY(file_join(spool, sizeof spool, f->config.path, "spool"));
    TRY(file_join(part, sizeof part, spool, "frozen.part"));
    TRY(digest_of_file(&blob.digest, f->fleet->frozen));
    TRY(file_map_open(&map, f->fleet->frozen));
    blob.size = map.size;
    err e = file_write(part, map.data, map.size, /*replace*/ true);
    file_map_close(&map);
    if (!err_is(e)) e = blob_adopt(f->config.path, part, &blob.digest);
    return err_is(e) ? e : store_pin(f->shop.store, &blob, ADMIT_PINS_MAX);
}

/* run_create() takes over the message. */
static err create_run(struct federation *f, const Fedlora__V1__RunConfig *config)
{
    Fedlora__V1__RunConfig *named = NULL;
    TRY(give_frozen(f));
    TRY(federation_config(&named, f->fleet, config));
    return run_create(&f->run, &f->shop, named);
}

/* All members join at once. After a restart that changes nothing in the store. */
static err say_hello(struct federation *f)
{
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
    struct session_describe about = {.arch = &f->fleet->model.arch, .base = &f->fleet->base};
    struct arena arena = {0};
    err e = session_describe(&hello, &about, &arena);
    for (size_t i = 0; i < f->fleet->members && !err_is(e); i++) {
        size_t m = 0;
        const struct fleet_member *member = &f->fleet->member[i];
        if (!round_find(&m, &f->run->round, member->id) || m != i)
            e = err_make(ERR_INPUT, "the run in this folder has no member %s", member->id);
        hello.rank = member->rank;
        hello.examples = federation_privacy_examples(f, i);
        if (!err_is(e)) e = run_hello(f->run, i, &hello);
    }
    arena_close(&arena);
    if (!err_is(e)) run_shop_turn(&f->shop);
    return e;
}

/* Most members adapt the same modules, and then share one list. */
static err keep_modules(struct federation *f)
{
    size_t members = f->fleet->members;
    TRY(arena_take(&f->adapts, &f->arena, members, sizeof *f->adapts));
    TRY(arena_take(&f->adapts_count, &f->arena, members, sizeof *f->adapts_count));
    for (size_t i = 0; i < members; i++) {
        const struct run_member *m = &f->run->member[i];
        const char **list = NULL;
        bool same = i && m->adapts_count == f->adapts_count[i - 1];
        for (size_t k = 0; k < m->adapts_count && same; k++)
            same = !strcmp(m->adapts[k], f->adapts[i - 1][k]);
        f->adapts_count[i] = m->adapts_count;
        if (same) {
            f->adapts[i] = f->adapts[i - 1];
            continue;
        }
        TRY(arena_take(&list, &f->arena, m->adapts_count + 1, sizeof *list));
        for (size_t k = 0; k < m->adapts_count; k++)
            TRY(arena_text(&list[k], &f->arena, m->adapts[k], strlen(m->adapts[k])));
        f->adapts[i] = (char *const *)(uintptr_t)list;
    }
    return ERR_NONE;
}

static err make_kept_dir(const struct federation *f)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, f->config.path, KEPT_DIR));
    return file_make_dirs(path);
}

/* After a restart the store knows which members have fetched the frozen factors. */
static err know_files(struct federation *f)
{
    uint32_t setup = method_setup_rounds(&f->run->options);
    TRY(cost_files_open(&f->files, f->run->config, f->run->modules));
    if (f->fleet->frozen) TRY(cost_files_give(&f->files, f->fleet->frozen));
    if (f->has_frozen) return ERR_NONE;
    TRY(arena_take(&f->has_frozen, &f->arena, f->fleet->members, sizeof *f->has_frozen));
    for (size_t i = 0; i < f->fleet->members; i++)
        f->has_frozen[i] = f->run->round.member[i].counted_in > setup ||
                           (!setup && f->run->member[i].bytes_down > 0);
    return ERR_NONE;
}

/* Updates of a private run must not be trained again, because each one spends of the budget. The
 * ranks to which members have pruned themselves are kept with their updates. */
bool federation_repeats(const struct federation *f)
{
    const struct run *run = f->run;
    bool prunes = run->method->prunes && run->options.prune_lambda > 0;
    return !run->config->privacy && !prunes;
}

static err forget_part(struct federation *f)
{
    if (!federation_repeats(f) || !round_updates(&f->run->round)) return ERR_NONE;
    TRY(store_forget_updates(f->shop.store, f->run->id, f->run->round.published));
    close_shop(f);
    TRY(open_shop(f));
    return f->run ? ERR_NONE : err_make(ERR_STATE, "the run is not in the store");
}

err federation_open(struct federation *f, const struct fleet *fleet, const char *dir,
                    const Fedlora__V1__RunConfig *config, size_t threads)
{
    char store[LIMIT_PATH_BYTES];
    *f = (struct federation){.fleet = fleet, .now_ms = 1};
    err e;
    TRY(file_join(store, sizeof store, dir, "store"));
    bool new = !file_is_dir(store);
    TRY_OUT(e, file_make_dirs(store));
    TRY_OUT(e, lock_open(&f->lock, store));
    TRY_OUT(e, open_config(f, store, config, threads));
    TRY_OUT(e, federation_privacy_key(f, config, dir, new));
    TRY_OUT(e, open_shop(f));
    f->loaded = f->run != NULL;
    TRY_OUT(e, f->run ? forget_part(f) : create_run(f, config));
    TRY_OUT(e, session_task_training(&f->training, f->run->config->training));
    return ERR_NONE;
out:
    federation_close(f);
    return e;
}

/* A run that was just created has begun already. The tick draws the members of a round that was
 * open before a restart, as the coordinator's loop does. */
static err begin(struct federation *f, bool loaded)
{
    if (loaded)
        run_apply(f->run, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = f->now_ms});
    TRY(say_hello(f));
    federation_tick(f, f->now_ms);
    return ERR_NONE;
}

err federation_start(struct federation *f, const char *dir, uint64_t now_ms)
{
    if (now_ms > f->now_ms) f->now_ms = now_ms;
    TRY(begin(f, f->loaded));
    TRY(keep_modules(f));
    TRY(know_files(f));
    if (federation_keeps(f)) TRY(make_kept_dir(f));
    return federation_privacy_join(f, dir);
}

void federation_close(struct federation *f)
{
    close_shop(f);
    lock_close(&f->lock);
    cost_files_close(&f->files);
    arena_close(&f->arena);
    *f = (struct federation){0};
}

err federation_crash(struct federation *f)
{
    close_shop(f);
    cost_files_close(&f->files); /* it points into the run */
    TRY(open_shop(f));
    if (!f->run) return err_make(ERR_STATE, "the run is not in the store after a crash");
    TRY(begin(f, /*loaded*/ true));
    return know_files(f);
}

/* ---- tasks ---- */

/* Counted by the coordinator too, as it does for a real download. */
static uint64_t download(struct federation *f, size_t member, const Fedlora__V1__TrainTask *task)
{
    struct run_member *m = &f->run->member[member];
    uint64_t bytes = task->state_size;
    if (task->frozen_digest.len && !f->has_frozen[member]) {
        bytes += task->frozen_size;
        f->has_frozen[member] = true;
    }
    m->bytes_down += bytes;
    m->bytes_down_new += bytes;
    return bytes;
}

static void blob_digest(struct digest *out, bool *has, const ProtobufCBinaryData *from)
{
    *has = from->len == DIGEST_BYTES;
    if (*has) memcpy(out->byte, from->data, DIGEST_BYTES);
}

/* The run's own strings are gone after a crash; these are kept. */
void federation_adopt(struct federation_task *task, const struct federation *f)
{
    struct member_round *r = &task->round;
    r->run = r->state_path = r->frozen_path = r->frozen_digest = r->kept_path = NULL;
    r->state = NULL;
    r->member = f->fleet->member[task->member].id;
    r->method = f->run->method->name;
    r->base = f->fleet->base_text;
    r->adapts = f->adapts[task->member];
    r->adapts_count = f->adapts_count[task->member];
}

err federation_task(bool *has, struct federation_task *out, struct federation *f, size_t member)
{
    struct run *run = f->run;
    struct run_train_task task;
    Fedlora__V1__HelloReply hello;
    bool has_state = false;
    *has = round_task(&run->round, member) == ROUND_TASK_TRAIN;
    if (!*has) return ERR_NONE;
    struct federation_task t = {.member = member};
    TRY(run_train_task(&task, run, member));
    run_hello_reply(&hello, run, member);
    TRY(session_task_round(&t.round, &hello, &task.message));
    blob_digest(&t.state, &has_state, &task.message.state_digest);
    blob_digest(&t.frozen, &t.has_frozen, &task.message.frozen_digest);
    federation_adopt(&t, f);
    struct cost_size update;
    TRY(cost_files_update(&update, &f->files, &t.round));
    t.up_bytes = update.bytes;
    t.down_bytes = download(f, member, &task.message);
    *out = t;
    return ERR_NONE;
}

static void set_paths(struct federation_paths *paths, struct member_round *round,
                      const struct federation *f, const struct digest *state,
                      const struct digest *frozen)
{
    snprintf(paths->state, sizeof paths->state, "%s", blob_path(f->config.path, state).text);
    paths->frozen_text[0] = 0;
    round->run = f->run->config->name;
    round->state_path = paths->state;
    round->frozen_path = NULL;
    round->frozen_digest = paths->frozen_text;
    if (!frozen) return;
    snprintf(paths->frozen, sizeof paths->frozen, "%s", blob_path(f->config.path, frozen).text);
    digest_text(paths->frozen_text, frozen);
    round->frozen_path = paths->frozen;
}

static void set_kept(struct federation_paths *paths, struct member_round *round,
                     const struct federation *f, size_t member)
{
    if (!federation_keeps(f)) return;
    round->member = f->fleet->member[member].id;
    snprintf(paths->kept, sizeof paths->kept, "%.*s/%s/%s", (int)sizeof paths->kept / 2,
             f->config.path, KEPT_DIR, round->member);
    round->kept_path = paths->kept;
}

void federation_paths(struct federation_paths *paths, struct member_round *round,
                      const struct federation *f, const struct federation_task *task)
{
    *round = task->round;
    set_paths(paths, round, f, &task->state, task->has_frozen ? &task->frozen : NULL);
    set_kept(paths, round, f, task->member);
}

void federation_newest(struct federation_paths *paths, struct member_round *round,
                       const struct federation *f)
{
    const struct publish_blobs *newest = &f->run->newest;
    *round = (struct member_round){.member = "",
                                   .method = f->run->method->name,
                                   .base = f->fleet->base_text,
                                   .round = f->run->round.published,
                                   .evaluates = true};
    set_paths(paths, round, f, &newest->state.digest,
              newest->frozen.size ? &newest->frozen.digest : NULL);
}

/* The factors that a member keeps are those of the round in which its newest update counted. */
void federation_model(struct federation_paths *paths, struct member_round *round,
                      const struct federation *f, size_t member)
{
    federation_newest(paths, round, f);
    set_kept(paths, round, f, member);
    if (f->run->method->keeps) round->round = f->run->round.member[member].counted_in;
}

err federation_upload(char path[LIMIT_PATH_BYTES], const struct federation *f, size_t member,
                      uint32_t round)
{
    char name[LIMIT_NAME_BYTES + 32], spool[LIMIT_PATH_BYTES];
    snprintf(name, sizeof name, "%s.%u.part", f->fleet->member[member].id, round);
    TRY(file_join(spool, sizeof spool, f->config.path, "spool"));
    return file_join(path, LIMIT_PATH_BYTES, spool, name);
}

bool federation_accepts(const struct federation *f, size_t member, uint32_t round)
{
    struct round_place place;
    const struct digest none = {0};
    return !err_is(round_judge(&place, &f->run->round, member, round, &none));
}

/* ---- updates ---- */

static void admitted(struct work_job *work)
{
    struct admit_job *job = (struct admit_job *)(void *)work;
    struct federation *f = job->owner;
    f->refused = err_is(work->result);
    if (f->refused) snprintf(f->refusal, sizeof f->refusal, "%s", work->result.text);
    run_admitted(f->run, job);
    free(job);
}

err federation_submit(struct federation *f, const struct federation_task *task,
                      struct pool_task *done, uint64_t seconds)
{
    TRY(federation_privacy_charge(f, task, done));
    struct admit_job *job = calloc(1, sizeof *job);
    if (!job) return err_sys(ENOMEM, "an update");
    job->job.done = admitted;
    job->owner = f;
    job->member_index = task->member;
    job->digested = true;
    snprintf(job->part, sizeof job->part, "%s", done->path);
    snprintf(job->member, sizeof job->member, "%s", task->round.member);
    snprintf(job->run, sizeof job->run, "%s", f->run->config->name);
    job->update.blob = (struct store_blob){done->digest, done->size};
    job->update.examples = federation_privacy_examples(f, task->member);
    job->update.train_loss = done->result.mean_loss;
    job->update.tokens = done->result.tokens;
    job->update.seconds = (double)seconds;
    f->refused = false;
    err e = run_admit(f->run, job, task->round.round);
    if (err_is(e)) {
        file_disk.unlink(job->part);
        free(job);
    } else {
        run_shop_turn(&f->shop);
    }
    federation_privacy_sent(f, task);
    return e;
}

err federation_figures(struct federation_figures *out, const struct federation *f)
{
    struct arena arena = {0};
    struct store_round *round = NULL;
    size_t rounds = 0;
    *out = (struct federation_figures){.error = NAN, .cut = NAN};
    err e = store_rounds(&round, &rounds, f->shop.store, f->run->id, false, &arena);
    const struct store_round *last = !err_is(e) && rounds ? &round[rounds - 1] : NULL;
    if (last) out->combine_s = (double)last->aggregate_ms / 1000;
    if (last && last->reported && last->update_norm > 0) {
        out->error = last->error;
        out->cut = last->dropped;
    }
    arena_close(&arena);
    return e;
}

void federation_tick(struct federation *f, uint64_t now_ms)
{
    if (now_ms > f->now_ms) f->now_ms = now_ms;
    run_tick(f->run, f->now_ms);
    run_shop_turn(&f->shop);
}
