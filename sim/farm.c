#include "sim/farm.h"

#include "base/file.h"
#include "sim/farm_wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static err no_send(int to, const void *data, size_t bytes)
{
    (void)data, (void)bytes;
    return err_make(ERR_STATE, "there is no rank %d", to);
}
static err no_receive(struct bytes *out, int from)
{
    (void)out;
    return err_make(ERR_STATE, "there is no rank %d", from);
}
struct ranks ranks = {.count = 1, .send = no_send, .receive = no_receive};

/* ---- rank 0 ---- */

struct farm {
    char file[FARM_FILES][LIMIT_PATH_BYTES]; /* the states that the other ranks have */
    size_t files;                            /* sent so far */
    struct bytes message;
    bool open; /* the other ranks have a pool */
};

static err begin(struct farm *f, enum farm_kind kind)
{
    bytes_clear(&f->message);
    return bytes_append(&f->message, &kind, sizeof kind);
}

static err send_all(struct farm *f)
{
    for (int to = 1; to < ranks.count; to++)
        TRY(ranks.send(to, f->message.data, f->message.size));
    return ERR_NONE;
}

static void hello_of_program(struct farm_hello *h)
{
    memset(h, 0, sizeof *h);
    snprintf(h->version, sizeof h->version, "%s", FEDLORA_VERSION);
    const uint64_t sizes[] = {sizeof(struct member_round), sizeof(struct training_options),
                              sizeof(struct dataset), sizeof(struct data_row)};
    memcpy(h->sizes, sizes, sizeof sizes);
}

static err await_pools(struct farm *f)
{
    err first = ERR_NONE;
    for (int from = 1; from < ranks.count; from++) {
        err answer;
        TRY(ranks.receive(&f->message, from));
        if (f->message.size != sizeof answer)
            return err_make(ERR_INPUT, "rank %d runs another version of this program", from);
        memcpy(&answer, f->message.data, sizeof answer);
        if (err_is(answer) && !err_is(first)) first = err_in(answer, "rank %d", from);
    }
    return first;
}

static err farm_hello(struct farm *f, const struct fleet *fleet, const struct pool_options *o)
{
    struct farm_hello hello;
    hello_of_program(&hello);
    hello.base = fleet->base;
    hello.pool = *o;
    hello.pool.engine.device = NULL;
    snprintf(hello.device, sizeof hello.device, "%s", o->engine.device);
    TRY(begin(f, FARM_OPEN));
    TRY(bytes_append(&f->message, &hello, sizeof hello));
    TRY(farm_put_text(&f->message, fleet->model.path));
    TRY(send_all(f));
    f->open = true;
    return await_pools(f);
}

err farm_open(struct farm **out, const struct fleet *fleet, const struct pool_options *o)
{
    struct farm *f;
    *out = NULL;
    if (ranks.count == 1) return ERR_NONE;
    if (!(f = calloc(1, sizeof *f))) return err_sys(ENOMEM, "ranks");
    f->message.max = FARM_MESSAGE_MAX;
    err e = farm_hello(f, fleet, o);
    if (err_is(e))
        farm_close(f);
    else
        *out = f;
    return e;
}

/* An error of the network ends the job anyway, because a rank that is lost aborts all of them. */
void farm_close(struct farm *f)
{
    if (!f) return;
    err e = f->open ? begin(f, FARM_CLOSE) : ERR_NONE;
    if (f->open && !err_is(e)) e = send_all(f);
    bytes_close(&f->message);
    free(f);
}

void farm_end(void)
{
    const enum farm_kind kind = FARM_END;
    for (int to = 1; to < ranks.count; to++) {
        err e = ranks.send(to, &kind, sizeof kind);
        if (err_is(e)) return;
    }
}

/* The other ranks get a file once, and keep the newest ones. */
static err send_file(struct farm *f, const char *path)
{
    char *contents = NULL;
    size_t size = 0;
    if (!path) return ERR_NONE;
    for (size_t i = 0; i < FARM_FILES; i++)
        if (!strcmp(f->file[i], path)) return ERR_NONE;
    err e = file_read_all(&contents, &size, path, FARM_MESSAGE_MAX / 2);
    if (!err_is(e)) e = begin(f, FARM_FILE);
    if (!err_is(e)) e = farm_put_text(&f->message, path);
    if (!err_is(e)) e = bytes_append(&f->message, contents, size);
    free(contents);
    TRY(e);
    snprintf(f->file[f->files++ % FARM_FILES], LIMIT_PATH_BYTES, "%s", path);
    return send_all(f);
}

/* The tasks of each rank lie one after the other. The longest is dealt first, to the rank with the
 * least work. Factors that members keep and their ledgers are files of rank 0, so it trains
 * these members itself. */
struct share {
    struct pool_task **task; /* (count) sorted by rank */
    size_t *first;           /* (ranks + 1) */
};

static void share_close(struct share *d)
{
    free(d->task);
    free(d->first);
}

static uint64_t tokens(const struct pool_task *t)
{
    return fleet_task_tokens(t->training, 0, t->data->count, t->data->tokens);
}

static int by_tokens(const void *a, const void *b)
{
    const struct pool_task *x = *(struct pool_task *const *)a, *y = *(struct pool_task *const *)b;
    uint64_t m = tokens(x), n = tokens(y);
    if (m != n) return m > n ? -1 : 1;
    return strcmp(x->round.member, y->round.member);
}

static bool stays(const struct pool_task *t)
{
    return t->round.kept_path || t->ledger;
}

static err share_tasks(struct share *out, struct pool_task *const *task, size_t count)
{
    size_t n = (size_t)ranks.count, at = 0;
    struct share d = {calloc(count, sizeof *d.task), calloc(n + 1, sizeof *d.first)};
    struct pool_task **sorted = calloc(count, sizeof *sorted);
    uint64_t *load = calloc(n, sizeof *load);
    size_t *owner = calloc(count, sizeof *owner);
    bool good = d.task && d.first && sorted && load && owner;
    if (good) {
        memcpy(sorted, task, count * sizeof *task);
        qsort(sorted, count, sizeof *sorted, by_tokens);
        for (size_t i = 0; i < count; i++) {
            for (size_t k = 1; k < n && !stays(sorted[i]); k++)
                if (load[k] < load[owner[i]]) owner[i] = k;
            load[owner[i]] += tokens(sorted[i]);
        }
        for (size_t k = 0; k < n; k++) {
            d.first[k] = at;
            for (size_t i = 0; i < count; i++)
                if (owner[i] == k) d.task[at++] = sorted[i];
        }
        d.first[n] = at;
    }
    free(sorted);
    free(load);
    free(owner);
    if (!good) {
        share_close(&d);
        return err_sys(ENOMEM, "ranks");
    }
    *out = d;
    return ERR_NONE;
}

static err send_tasks(struct farm *f, int to, struct pool_task *const *task, size_t count)
{
    uint64_t n = count;
    for (size_t i = 0; i < count; i++) {
        TRY(send_file(f, task[i]->round.state_path));
        TRY(send_file(f, task[i]->round.frozen_path));
    }
    TRY(begin(f, FARM_TRAIN));
    TRY(bytes_append(&f->message, &n, sizeof n));
    for (size_t i = 0; i < count; i++)
        TRY(farm_put_order(&f->message, task[i]));
    return ranks.send(to, f->message.data, f->message.size);
}

static err take_done(struct farm *f, int from, struct pool_task *t)
{
    struct farm_done done;
    TRY(ranks.receive(&f->message, from));
    struct farm_reader in = {f->message.data, f->message.size, 0};
    TRY(farm_take(&done, &in, sizeof done));
    TRY(done.error);
    if (done.size != in.size - in.at)
        return err_make(ERR_INPUT, "rank %d sent an update of another size", from);
    t->result = done.result;
    t->digest = done.digest;
    t->size = done.size;
    return file_write(t->path, in.data + in.at, done.size, true);
}

void farm_train(struct farm *f, struct pool *pool, struct pool_task *const *task, size_t count)
{
    struct share d = {0};
    err e = share_tasks(&d, task, count);
    for (size_t k = 1; k < (size_t)ranks.count && !err_is(e); k++)
        e = send_tasks(f, (int)k, d.task + d.first[k], d.first[k + 1] - d.first[k]);
    if (err_is(e)) {
        for (size_t i = 0; i < count; i++)
            task[i]->error = e;
        share_close(&d);
        return;
    }
    pool_train(pool, d.task, d.first[1]);
    for (size_t k = 1; k < (size_t)ranks.count; k++)
        for (size_t i = d.first[k]; i < d.first[k + 1]; i++)
            d.task[i]->error = take_done(f, (int)k, d.task[i]);
    share_close(&d);
}

/* ---- the other ranks ---- */

struct server {
    struct fleet fleet; /* only its model */
    bool has_model;
    struct pool *pool;
    char device[64];
    char dir[LIMIT_PATH_BYTES]; /* of its states and updates */
    struct {
        char path[LIMIT_PATH_BYTES]; /* on rank 0 */
        size_t number;               /* of the file here */
    } file[FARM_FILES];
    size_t files; /* received so far */
    struct bytes reply;
};

static void server_path(char out[LIMIT_PATH_BYTES], const struct server *s, const char *kind,
                        size_t number)
{
    snprintf(out, LIMIT_PATH_BYTES, "%.200s/%s-%zu", s->dir, kind, number);
}

static void server_forget(struct server *s)
{
    pool_close(s->pool);
    s->pool = NULL;
    if (s->has_model) model_close(&s->fleet.model);
    s->has_model = false;
    for (size_t i = 0; i < FARM_FILES; i++) {
        char path[LIMIT_PATH_BYTES];
        server_path(path, s, "state", s->file[i].number);
        if (s->file[i].path[0]) file_disk.unlink(path);
        s->file[i].path[0] = 0;
    }
    s->files = 0;
}

static err server_open(struct server *s, struct farm_reader *in, struct arena *arena)
{
    struct farm_hello own, hello;
    const char *base = NULL;
    hello_of_program(&own);
    TRY(farm_take(&hello, in, sizeof hello));
    if (memcmp(own.version, hello.version, sizeof own.version) != 0 ||
        memcmp(own.sizes, hello.sizes, sizeof own.sizes) != 0)
        return err_make(ERR_INPUT, "runs another version of this program");
    TRY(farm_take_text(&base, in, arena));
    TRY(model_open(&s->fleet.model, base));
    s->has_model = true;
    TRY(model_digest(&s->fleet.base, &s->fleet.model));
    if (memcmp(&s->fleet.base, &hello.base, sizeof hello.base) != 0)
        return err_make(ERR_INPUT, "%s: is another base model than on rank 0", base);
    snprintf(s->device, sizeof s->device, "%s", hello.device);
    hello.pool.engine.device = s->device;
    return pool_open(&s->pool, &s->fleet, &hello.pool);
}

static err server_file(struct server *s, struct farm_reader *in, struct arena *arena)
{
    char path[LIMIT_PATH_BYTES];
    const char *from = NULL;
    size_t slot = s->files % FARM_FILES;
    TRY(farm_take_text(&from, in, arena));
    if (!from) return err_make(ERR_INPUT, "a message of rank 0 names no file");
    server_path(path, s, "state", s->file[slot].number);
    if (s->file[slot].path[0]) file_disk.unlink(path);
    s->file[slot].number = s->files++;
    snprintf(s->file[slot].path, LIMIT_PATH_BYTES, "%s", from);
    server_path(path, s, "state", s->file[slot].number);
    return file_write(path, in->data + in->at, in->size - in->at, true);
}

/* The place of a file of rank 0 on this rank. */
static err own_path(const char **path, const struct server *s, struct arena *arena)
{
    char own[LIMIT_PATH_BYTES];
    if (!*path) return ERR_NONE;
    for (size_t i = 0; i < FARM_FILES; i++) {
        if (strcmp(s->file[i].path, *path)) continue;
        server_path(own, s, "state", s->file[i].number);
        return arena_text(path, arena, own, strlen(own));
    }
    return err_make(ERR_STATE, "%s: was not sent to this rank", *path);
}

static err send_done(struct server *s, struct pool_task *t)
{
    char *update = NULL;
    size_t size = 0;
    struct farm_done done = {.error = t->error, .result = t->result, .digest = t->digest};
    if (!err_is(t->error))
        done.error = file_read_all(&update, &size, t->path, FARM_MESSAGE_MAX / 2);
    file_disk.unlink(t->path);
    done.size = size;
    bytes_clear(&s->reply);
    err e = bytes_append(&s->reply, &done, sizeof done);
    if (!err_is(e)) e = bytes_append(&s->reply, update, size);
    free(update);
    TRY(e);
    return ranks.send(0, s->reply.data, s->reply.size);
}

static err server_train(struct server *s, struct farm_reader *in, struct arena *arena)
{
    uint64_t count = 0;
    struct farm_order *order = NULL;
    struct pool_task **task = NULL;
    TRY(farm_take(&count, in, sizeof count));
    TRY(arena_take(&order, arena, count + 1, sizeof *order));
    TRY(arena_take(&task, arena, count + 1, sizeof(struct pool_task *)));
    for (size_t i = 0; i < count; i++) {
        TRY(farm_take_order(&order[i], in, arena));
        task[i] = &order[i].task;
        TRY(own_path(&task[i]->round.state_path, s, arena));
        TRY(own_path(&task[i]->round.frozen_path, s, arena));
        server_path(task[i]->path, s, "update", i);
    }
    pool_train(s->pool, task, count);
    for (size_t i = 0; i < count; i++)
        TRY(send_done(s, task[i]));
    return ERR_NONE;
}

static err serve_one(struct server *s, enum farm_kind kind, struct farm_reader *in,
                     struct arena *arena)
{
    switch (kind) {
    case FARM_OPEN: {
        err answer = server_open(s, in, arena);
        return ranks.send(0, &answer, sizeof answer);
    }
    case FARM_FILE:
        return server_file(s, in, arena);
    case FARM_TRAIN:
        return server_train(s, in, arena);
    case FARM_CLOSE:
        server_forget(s);
        return ERR_NONE;
    case FARM_END:
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "rank 0 sent a message of an unknown kind");
}

static err serve_all(struct server *s)
{
    struct bytes message = {.max = FARM_MESSAGE_MAX};
    enum farm_kind kind = FARM_CLOSE;
    err e = ERR_NONE;
    while (!err_is(e) && kind != FARM_END) {
        struct arena arena = {0};
        e = ranks.receive(&message, 0);
        struct farm_reader in = {message.data, message.size, 0};
        if (!err_is(e)) e = farm_take(&kind, &in, sizeof kind);
        if (!err_is(e)) e = serve_one(s, kind, &in, &arena);
        arena_close(&arena);
    }
    bytes_close(&message);
    return e;
}

err farm_serve(void)
{
    struct server s = {.reply = {.max = FARM_MESSAGE_MAX}};
    const char *tmp = getenv("TMPDIR");
    snprintf(s.dir, sizeof s.dir, "%.200s/fedlora-rank-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(s.dir)) return err_sys(errno, "%s", s.dir);
    err e = serve_all(&s);
    server_forget(&s);
    bytes_close(&s.reply);
    if (rmdir(s.dir) != 0 && !err_is(e)) e = err_sys(errno, "%s", s.dir);
    return e;
}
