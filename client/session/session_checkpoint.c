#include "client/session/session_checkpoint.h"

#include "base/file.h"
#include "base/safetensors.h"
#include "base/stop.h"
#include "base/text.h"
#include "base/version.h"
#include "client/session/session_hold.h"
#include "client/session/session_runs.h"
#include "proto/message.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 3, NUMBERS = 7, NUMBER_BYTES = 40, MESSAGE_BYTES = 1 << 21 };
static const char *const block_name[BLOCKS] = {"first", "second", "value"};
static const char *const number_name[NUMBERS] = {
    "fedlora.first_loss", "fedlora.last_loss", "fedlora.learned", "fedlora.loss_sum",
    "fedlora.seconds",    "fedlora.steps",     "fedlora.tokens"};

static void path_of(char out[LIMIT_PATH_BYTES], const struct session *s, const char *run)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.checkpoint.safetensors", s->work.dir, run);
}

/* ---- the key */

static err add_message(struct digest_stream *d, const ProtobufCMessage *message)
{
    struct bytes packed = {.max = MESSAGE_BYTES};
    err e = message_pack(&packed, message);
    if (!err_is(e)) digest_add(d, packed.data, packed.size);
    bytes_close(&packed);
    return e;
}

static void add_text(struct digest_stream *d, const char *text)
{
    digest_add(d, text, strlen(text) + 1);
}

static void add_data(struct digest_stream *d, const struct dataset *data)
{
    for (size_t i = 0; i < data->count; i++) {
        const struct data_row *r = &data->row[i];
        digest_add(d, &r->count, sizeof r->count);
        digest_add(d, r->id, r->count * sizeof *r->id);
        digest_add(d, r->label, r->count * sizeof *r->label);
    }
}

/* Without the fields that change while a round is the same. */
static err find_key(struct session_checkpoint *c)
{
    struct session *s = c->s;
    struct digest_stream d;
    Fedlora__V1__TrainTask task = *c->task;
    Fedlora__V1__HelloReply hello = *s->hello;
    if (c->has_key) return ERR_NONE;
    task.deadline_ms = 0;
    task.rounds = hello.rounds = 0;
    task.ledger_head = hello.epoch = (ProtobufCBinaryData){0};
    digest_begin(&d);
    add_text(&d, FEDLORA_VERSION);
    add_text(&d, c->promise);
    add_text(&d, s->local.base_text);
    add_text(&d, engine_device(s->local.engine));
    add_text(&d, dtype_name(engine_precision(s->local.engine)));
    TRY(add_message(&d, &task.base));
    TRY(add_message(&d, &hello.base));
    add_data(&d, &s->local.data);
    c->key = digest_end(&d);
    c->has_key = true;
    return ERR_NONE;
}

/* ---- the file */

static err write_file(const struct session_checkpoint *c, const struct train_snapshot *t)
{
    char number[NUMBERS][NUMBER_BYTES], key[DIGEST_TEXT_BYTES];
    const float *block[BLOCKS] = {t->first, t->second, t->value};
    struct tensor tensor[BLOCKS];
    struct metadata metadata[NUMBERS + 2] = {{"fedlora.key", key}, {"fedlora.kind", "checkpoint"}};
    struct file_out file = {0};
    const double real[NUMBERS] = {t->first_loss, t->last_loss, 0, t->loss_sum, t->seconds};
    const uint64_t whole[NUMBERS] = {[2] = t->learned, [5] = t->steps, [6] = t->tokens};
    digest_text(key, &c->key);
    for (size_t i = 0; i < NUMBERS; i++) { /* %a is exact */
        if (i == 2 || i > 4)
            snprintf(number[i], NUMBER_BYTES, "%" PRIu64, whole[i]);
        else
            snprintf(number[i], NUMBER_BYTES, "%a", real[i]);
        metadata[i + 2] = (struct metadata){number_name[i], number[i]};
    }
    for (size_t i = 0; i < BLOCKS; i++)
        tensor[i] = (struct tensor){.name = block_name[i],
                                    .dtype = DTYPE_F32,
                                    .dims = 1,
                                    .shape = {t->count},
                                    .count = t->count,
                                    .size = t->count * sizeof(float),
                                    .data = block[i]};
    TRY(file_out_open(&file, c->path, /*replace*/ true));
    err e = safetensors_write_file(&file, tensor, BLOCKS, metadata, NUMBERS + 2);
    if (!err_is(e)) e = file_out_commit(&file);
    file_out_close(&file);
    return e;
}

/* True if the file is one of this task. Its blocks are copied into memory of *out. */
static bool read_snapshot(struct train_snapshot *out, const struct safetensors *st, const char *key)
{
    struct train_snapshot t = {0};
    const char *is = safetensors_metadata(st, "fedlora.key"), *number[NUMBERS];
    const struct tensor *tensor[BLOCKS];
    bool good = is && strcmp(is, key) == 0;
    for (size_t i = 0; i < NUMBERS; i++)
        good = (number[i] = safetensors_metadata(st, number_name[i])) && good;
    for (size_t i = 0; i < BLOCKS; i++) {
        tensor[i] = safetensors_find(st, block_name[i]);
        good = good && tensor[i] && tensor[i]->dtype == DTYPE_F32 &&
               tensor[i]->count == tensor[0]->count;
    }
    if (!good) return false;
    t.count = tensor[0]->count;
    float *block = malloc(BLOCKS * t.count * sizeof *block + 1);
    if (!block) return false;
    for (size_t i = 0; i < BLOCKS; i++)
        memcpy(block + i * t.count, tensor[i]->data, tensor[i]->size);
    t.first = block;
    t.second = block + t.count;
    t.value = block + 2 * t.count;
    t.first_loss = strtod(number[0], NULL);
    t.last_loss = strtod(number[1], NULL);
    t.learned = strtoull(number[2], NULL, 10);
    t.loss_sum = strtod(number[3], NULL);
    t.seconds = strtod(number[4], NULL);
    t.steps = strtoull(number[5], NULL, 10);
    t.tokens = strtoull(number[6], NULL, 10);
    *out = t;
    return true;
}

/* ---- the trainer's calls */

/* A round that the coordinator has ended is not continued. */
static bool due(void *user, bool stopped)
{
    const struct session_checkpoint *c = user;
    uint64_t every = c->s->o->checkpoint_ms;
    if (stopped) return stop_asked != 0;
    return every && text_now_ms() - c->last_ms >= every;
}

static void take(void *user, const struct train_snapshot *t)
{
    struct session_checkpoint *c = user;
    err e = find_key(c);
    if (!err_is(e)) e = write_file(c, t);
    if (!err_is(e)) e = session_hold_count(c->s, t->seconds - c->counted);
    if (!err_is(e)) c->counted = t->seconds;
    c->last_ms = text_now_ms();
    if (err_is(e))
        session_round_note(c->s, "round %u: no checkpoint: %s", c->task->round, e.text);
    else if (stop_asked)
        session_round_note(c->s, "round %u: stopped after step %" PRIu64 ", which is kept",
                           c->task->round, t->steps);
}

/* ---- a round */

static err read_file(struct session_checkpoint *c)
{
    struct safetensors st = {0};
    char key[DIGEST_TEXT_BYTES];
    TRY(find_key(c));
    digest_text(key, &c->key);
    TRY(safetensors_open(&st, c->path));
    bool found = read_snapshot(&c->resume, &st, key);
    safetensors_close(&st);
    return found ? ERR_NONE : err_make(ERR_INPUT, "%s: is of another training", c->path);
}

void session_checkpoint_open(struct session_checkpoint *c, struct session *s,
                             const Fedlora__V1__TrainTask *task)
{
    *c = (struct session_checkpoint){.s = s, .task = task, .last_ms = text_now_ms()};
    c->keep = (struct train_keep){.due = due, .take = take, .user = c};
    session_privacy_promise(c->promise, s->privacy, task->round);
    path_of(c->path, s, s->hello->run);
    if (!file_exists(c->path)) return;
    if (err_is(read_file(c))) {
        (void)file_disk.unlink(c->path);
        return;
    }
    c->keep.resume = &c->resume;
    c->counted = c->resume.seconds;
    session_round_note(s, "round %u: continues after step %" PRIu64 "%s", task->round,
                       c->resume.steps,
                       s->privacy->on ? "; the noise of the other steps is drawn anew" : "");
}

err session_checkpoint_done(struct session_checkpoint *c, double seconds)
{
    (void)file_disk.unlink(c->path);
    return session_hold_count(c->s, seconds - c->counted);
}

void session_checkpoint_drop(const struct session *s, const char *run)
{
    char path[LIMIT_PATH_BYTES];
    path_of(path, s, run);
    (void)file_disk.unlink(path);
}

void session_checkpoint_close(struct session_checkpoint *c)
{
    free(c->resume.first);
    c->resume = (struct train_snapshot){0};
}
