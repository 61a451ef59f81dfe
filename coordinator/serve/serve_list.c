/* Lists for operators, in pages: runs, events and rounds. */
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "coordinator/store/store_retain.h"
#include "proto/message.h"

#include <string.h>
#include <time.h>

enum {
    WATCH_EVENTS_MAX = 256,
    GRAVES_MAX = 1024,
    ROUNDS_MAX = 256,
    LIST_BYTES_MAX = LIMIT_CHUNK_BYTES, /* of a page, so that it fits into one message */
    LIST_ENTRY_BYTES = 8,               /* more than the tag and the size of an entry */
};

/* ---- runs ---- */

static err fill_aside(Fedlora__V1__RunStatus **out, struct run_aside *aside, struct arena *arena)
{
    Fedlora__V1__RunStatus *status = NULL;
    Fedlora__V1__RunConfig *config = NULL;
    TRY(arena_take(&status, arena, 1, sizeof *status));
    TRY(arena_take(&config, arena, 1, sizeof *config));
    fedlora__v1__run_status__init(status);
    fedlora__v1__run_config__init(config);
    config->name = aside->name;
    status->config = config;
    status->phase = "unreadable";
    status->waiting_for = aside->why.text;
    *out = status;
    return ERR_NONE;
}

/* In the shape of a status, so that the command line prints tombstones as it prints runs. */
static err fill_grave(Fedlora__V1__RunStatus **out, const struct store_grave *grave,
                      struct arena *arena)
{
    struct run_aside as = {0};
    Fedlora__V1__RunStatus *status = NULL;
    struct digest *digest = NULL;
    char when[32] = "", text[TROUBLE_BY_BYTES + 64];
    const char *says = NULL, *name = NULL;
    time_t seconds = (time_t)(grave->deleted_ms / 1000);
    struct tm tm;
    if (gmtime_r(&seconds, &tm)) strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm);
    snprintf(text, sizeof text, "nothing: deleted at %s by %s", when, grave->by);
    TRY(arena_text(&says, arena, text, strlen(text)));
    TRY(arena_text(&name, arena, grave->name, strlen(grave->name)));
    TRY(fill_aside(&status, &as, arena));
    TRY(arena_take(&digest, arena, 1, sizeof *digest));
    *digest = grave->state;
    status->config->name = (char *)(uintptr_t)name;
    status->config->rounds = status->round = grave->published;
    status->phase = "deleted";
    status->waiting_for = (char *)(uintptr_t)says;
    status->created_ms = grave->created_ms;
    status->state_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest->byte};
    *out = status;
    return ERR_NONE;
}

/* Tombstones are small and few; operators want those of the last weeks, so older ones are left
 * out instead of paged. */
static err list_graves(Fedlora__V1__ListRunsReply *reply, struct serve *s,
                       const Fedlora__V1__ListRunsRequest *request, struct arena *arena)
{
    struct store_grave *grave = NULL;
    size_t count = 0,
           most = request->limit && request->limit < GRAVES_MAX ? request->limit : GRAVES_MAX;
    TRY(store_graves(&grave, &count, s->shop.store, most, arena));
    TRY(arena_take(&reply->runs, arena, count, sizeof *reply->runs));
    for (; reply->n_runs < count; reply->n_runs++)
        TRY(fill_grave(&reply->runs[reply->n_runs], &grave[reply->n_runs], arena));
    return ERR_NONE;
}

/* Adds a status unless the page is full. */
static bool fits(Fedlora__V1__ListRunsReply *reply, size_t *bytes,
                 const Fedlora__V1__ListRunsRequest *request, Fedlora__V1__RunStatus *status)
{
    *bytes += fedlora__v1__run_status__get_packed_size(status) + LIST_ENTRY_BYTES;
    bool full = request->limit && reply->n_runs >= request->limit;
    if (full || (reply->n_runs && *bytes > LIST_BYTES_MAX)) return false;
    reply->runs[reply->n_runs++] = status;
    return true;
}

/* The first page begins with the runs that cannot be read; the others follow in order of creation,
 * which is that of their ids. So a page continues at the same place after runs were deleted. Short
 * statuses in pages, because a list of many runs could be larger than one message. */
static err list(Fedlora__V1__ListRunsReply *reply, struct rpc_call *call,
                const Fedlora__V1__ListRunsRequest *request, struct arena *arena)
{
    struct serve *s = serve_of(call);
    size_t asides = s->shop.asides, bytes = 0;
    TRY(serve_check_admin(call));
    TRY(serve_troubles(&reply->troubles, &reply->n_troubles, s->shop.troubles, NULL, arena));
    if (request->deleted) return list_graves(reply, s, request, arena);
    TRY(arena_take(&reply->runs, arena, s->run_count + asides, sizeof *reply->runs));
    for (size_t i = 0; i < asides && !request->after; i++) {
        TRY(fill_aside(&reply->runs[reply->n_runs], &s->shop.aside[i], arena));
        bytes += fedlora__v1__run_status__get_packed_size(reply->runs[reply->n_runs++]);
    }
    for (struct run *run = s->runs; run; run = run->next) {
        Fedlora__V1__RunStatus *status = NULL;
        if (run->id <= (int64_t)request->after || (request->open && serve_is_over(run))) continue;
        TRY(serve_status(&status, run, false, arena));
        if (fits(reply, &bytes, request, status)) continue;
        /* The page ended before this run, so the next one begins after the last that fitted. */
        reply->next = reply->n_runs ? reply->runs[reply->n_runs - 1]->id : 0;
        break;
    }
    return ERR_NONE;
}

static void list_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__ListRunsRequest *request = NULL;
    Fedlora__V1__ListRunsReply reply = FEDLORA__V1__LIST_RUNS_REPLY__INIT;
    err e = message_unpack(&request, &fedlora__v1__list_runs_request__descriptor, data, size);
    if (!err_is(e)) e = list(&reply, call, request, &arena);
    serve_end(call, e, &reply.base);
    message_free(request);
    arena_close(&arena);
}

/* ---- events ---- */

/* At most WATCH_EVENTS_MAX events; the caller asks again with the last sequence number. */
static err watch_reply(Fedlora__V1__WatchReply *reply, struct run *run, uint64_t after,
                       struct arena *arena)
{
    struct store_event *row = NULL;
    Fedlora__V1__RunEvent *event = NULL;
    size_t count = 0;
    TRY(store_events(&row, &count, run->shop->store, run->id, after, WATCH_EVENTS_MAX, arena));
    TRY(arena_take(&event, arena, count, sizeof *event));
    TRY(arena_take(&reply->events, arena, count, sizeof *reply->events));
    for (size_t i = 0; i < count; i++) {
        fedlora__v1__run_event__init(&event[i]);
        event[i].sequence = row[i].sequence;
        event[i].wall_ms = row[i].wall_ms;
        event[i].event = (char *)(uintptr_t)row[i].event;
        event[i].text = (char *)(uintptr_t)row[i].text;
        event[i].round = row[i].round;
        event[i].member = (char *)(uintptr_t)row[i].member;
        reply->events[i] = &event[i];
    }
    reply->n_events = count;
    reply->after = count ? row[count - 1].sequence : after;
    reply->phase = (char *)(uintptr_t)run_phase_name(run);
    reply->round = round_under_way(&run->round);
    return ERR_NONE;
}

/* Without events there is nothing to answer until the time is over. */
static bool answer_watch(const struct serve_poll *poll, bool must)
{
    struct arena arena = {0};
    Fedlora__V1__WatchReply reply = FEDLORA__V1__WATCH_REPLY__INIT;
    struct rpc_call *call = poll->call;
    err e = watch_reply(&reply, poll->run, poll->after, &arena);
    bool done = err_is(e) || must || reply.n_events > 0;
    if (err_is(e))
        serve_refuse(call, e);
    else if (done)
        serve_answer(call, &reply.base);
    arena_close(&arena);
    return done;
}

/* The place of the first event for a caller who has seen none. */
static err find_place(uint64_t *after, const struct run *run,
                      const Fedlora__V1__WatchRequest *request)
{
    uint64_t now = text_wall_ms(), since = 0;
    *after = request->after;
    /* A caller with a place continues there, whatever else it asks for. */
    if (request->after || (!request->newest && !request->since_ms)) return ERR_NONE;
    if (request->since_ms) since = request->since_ms < now ? now - request->since_ms : 1;
    return store_event_place(after, run->shop->store, run->id,
                             request->newest ? request->tail : INT32_MAX, since);
}

static void watch_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__WatchRequest *request = NULL;
    struct serve_poll poll = {.call = call, .answer = answer_watch};
    err e = message_unpack(&request, &fedlora__v1__watch_request__descriptor, data, size);
    if (!err_is(e)) e = serve_named(&poll.run, call, request->run);
    if (!err_is(e)) e = find_place(&poll.after, poll.run, request);
    if (err_is(e))
        serve_refuse(call, e);
    else {
        uint64_t wait_ms =
            request->wait_ms < s->config->poll_ms ? request->wait_ms : s->config->poll_ms;
        poll.until_ms = text_now_ms() + wait_ms;
        if (!answer_watch(&poll, wait_ms == 0 || s->draining)) serve_wait(s, &poll);
    }
    message_free(request);
}

/* ---- rounds ---- */

/* A page always has one round, whose report may be as large as a message. */
static err list_rounds(Fedlora__V1__ListRoundsReply *reply, struct rpc_call *call,
                       const Fedlora__V1__ListRoundsRequest *request, struct arena *arena)
{
    struct run *run = NULL;
    Fedlora__V1__RoundStatus **rounds = NULL;
    size_t count = 0, bytes = 0;
    TRY(serve_named(&run, call, request->run));
    struct store_rounds_of of = {
        .run = run->id,
        .after = request->after,
        .most = request->limit && request->limit < ROUNDS_MAX ? request->limit : ROUNDS_MAX,
        .reports = true};
    /* Without a published round this is the page of no rounds, which is what there is. */
    if (request->newest) of.after = run->round.published ? run->round.published - 1 : 0;
    TRY(serve_rounds(&rounds, &count, run, &of, arena));
    reply->rounds = rounds;
    for (; reply->n_rounds < count; reply->n_rounds++) {
        const Fedlora__V1__RoundStatus *round = rounds[reply->n_rounds];
        bytes += fedlora__v1__round_status__get_packed_size(round) + LIST_ENTRY_BYTES;
        if (reply->n_rounds && bytes > LIST_BYTES_MAX) break;
    }
    uint32_t last = reply->n_rounds ? rounds[reply->n_rounds - 1]->round : 0;
    reply->next = last && last < run->round.published ? last : 0;
    return ERR_NONE;
}

/* Answered at once: rounds are read from the store, and waiting for the next one is the work of
 * WatchRun. */
static void rounds_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__ListRoundsRequest *request = NULL;
    Fedlora__V1__ListRoundsReply reply = FEDLORA__V1__LIST_ROUNDS_REPLY__INIT;
    err e = message_unpack(&request, &fedlora__v1__list_rounds_request__descriptor, data, size);
    if (!err_is(e)) e = list_rounds(&reply, call, request, &arena);
    serve_end(call, e, &reply.base);
    message_free(request);
    arena_close(&arena);
}

const struct rpc_method serve_list_method[] = {
    {RPC_PATH_ADMIN(list_runs), RPC_UNARY, RPC_ADMIN, .begin = list_begin},
    {RPC_PATH_ADMIN(list_rounds), RPC_UNARY, RPC_ADMIN, .begin = rounds_begin},
    {RPC_PATH_ADMIN(watch_run), RPC_UNARY, RPC_ADMIN, .begin = watch_begin,
     .over = serve_poll_over},
};
const size_t serve_list_methods = sizeof serve_list_method / sizeof *serve_list_method;
