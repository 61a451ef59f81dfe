/* A run's status for operators. */
#include "base/text.h"
#include "coordinator/run/run_shapes.h"
#include "coordinator/serve/serve.h"
#include "coordinator/work/weights.h"

#include <math.h>
#include <string.h>

enum {
    STATUS_TEXT_BYTES = 2048,
    STATUS_ROUNDS = 1000,
    STATUS_MEMBERS_BYTES = RPC_MESSAGE_BYTES / 2,
    STATUS_CONFIG_BYTES = RPC_MESSAGE_BYTES / 4, /* with its members */
    STATUS_ENTRY_BYTES = 8,                      /* more than the tag and the size of an entry */
};

/* Each member's share of the mean if all that have joined send an update. */
static err fill_shares(Fedlora__V1__RunStatus *out, const struct run *run, struct arena *arena)
{
    double *weight = NULL, sum = 0;
    TRY(arena_take(&weight, arena, out->n_members, sizeof *weight));
    for (size_t i = 0; i < out->n_members; i++)
        if (run->round.member[i].joined && !run->round.member[i].gone)
            weight[i] =
                run_config_weight(run->config, run->round.member[i].id, run->member[i].examples);
    weights_cap(weight, out->n_members, run->config->weight_cap);
    for (size_t i = 0; i < out->n_members; i++)
        sum += weight[i];
    for (size_t i = 0; i < out->n_members; i++)
        out->members[i]->share = sum > 0 ? weight[i] / sum : 0;
    return ERR_NONE;
}

/* Over no rows there is nothing to measure: null in JSON, because 0 would look like a result. */
static double measured(uint64_t rows, double value)
{
    return rows ? value : NAN;
}

/* Stores pointers into the run, because the reply is packed before this thread does anything
 * else. */
static err fill_members(Fedlora__V1__RunStatus *out, struct run *run, struct arena *arena)
{
    Fedlora__V1__MemberStatus *m = NULL;
    size_t count = run->round.members;
    uint64_t now = text_now_ms();
    TRY(arena_take(&m, arena, count, sizeof *m));
    TRY(arena_take(&out->members, arena, count, sizeof *out->members));
    for (size_t i = 0; i < count; i++) {
        const struct round_member *r = &run->round.member[i];
        const struct run_member *is = &run->member[i];
        fedlora__v1__member_status__init(&m[i]);
        m[i].id = (char *)(uintptr_t)r->id;
        m[i].rank = is->rank;
        m[i].examples = is->examples;
        m[i].doing = (char *)(uintptr_t)round_activity(&run->round, i, now);
        if (!strcmp(m[i].doing, "absent") && serve_session_elsewhere(run, i, now))
            m[i].doing = "in another run";
        m[i].last_round = r->counted_in;
        m[i].train_loss = is->train_loss;
        m[i].bytes_up = is->bytes_up;
        m[i].bytes_down = is->bytes_down;
        m[i].seen_ms_ago = r->seen_ms ? now - r->seen_ms : 0;
        m[i].step = r->step;
        m[i].steps = r->steps;
        m[i].eval_round = is->evaluation.round;
        m[i].eval_rows = is->evaluation.rows;
        m[i].eval_loss = measured(is->evaluation.rows, is->evaluation.loss);
        m[i].eval_accuracy = measured(is->evaluation.rows, is->evaluation.accuracy);
        (void)serve_upload(&m[i].sending_bytes, &m[i].sending_size, is);
        m[i].address = (char *)(uintptr_t)is->address;
        out->members[i] = &m[i];
    }
    out->n_members = count;
    return fill_shares(out, run, arena);
}

static ProtobufCBinaryData binary(const struct store_blob *blob)
{
    if (!blob->size) return (ProtobufCBinaryData){0};
    return (ProtobufCBinaryData){.len = DIGEST_BYTES,
                                 .data = (uint8_t *)(uintptr_t)blob->digest.byte};
}

/* Numbers of a report that is not made (yet) are NaN, which prints as null or "-"; 0 would look
 * like a result. */
err serve_rounds(Fedlora__V1__RoundStatus ***out, size_t *out_count, const struct run *run,
                 const struct store_rounds_of *of, struct arena *arena)
{
    struct store_round *row = NULL;
    Fedlora__V1__RoundStatus *r = NULL, **list = NULL;
    size_t count = 0;
    TRY(store_rounds_some(&row, &count, run->shop->store, of, arena));
    TRY(arena_take(&r, arena, count, sizeof *r));
    TRY(arena_take(&list, arena, count, sizeof *list));
    for (size_t i = 0; i < count; i++) {
        fedlora__v1__round_status__init(&r[i]);
        r[i].round = row[i].round;
        r[i].state_digest = binary(&row[i].state);
        r[i].state_size = row[i].state.size;
        r[i].state_gone = row[i].gone;
        r[i].updates = row[i].updates;
        r[i].took_ms = row[i].took_ms;
        r[i].aggregate_ms = row[i].aggregate_ms;
        r[i].train_loss = row[i].train_loss;
        bool reported = row[i].reported && !run->method->keeps;
        r[i].update_norm = reported ? row[i].update_norm : NAN;
        r[i].error = reported ? row[i].error : NAN;
        r[i].dropped = reported ? row[i].dropped : NAN;
        r[i].eval_rows = row[i].evaluation.rows;
        r[i].eval_loss = measured(row[i].evaluation.rows, row[i].evaluation.loss);
        r[i].eval_accuracy = measured(row[i].evaluation.rows, row[i].evaluation.accuracy);
        r[i].report_json = (char *)(uintptr_t)row[i].report_json;
        list[i] = &r[i];
    }
    *out = list;
    *out_count = count;
    return ERR_NONE;
}

static err fill_history(Fedlora__V1__RunStatus *out, const struct run *run, struct arena *arena)
{
    uint32_t published = run->round.published;
    const struct store_rounds_of newest = {
        .run = run->id,
        .after = published > STATUS_ROUNDS ? published - STATUS_ROUNDS : 0,
        .most = STATUS_ROUNDS,
        .reports = true};
    return serve_rounds(&out->history, &out->n_history, run, &newest, arena);
}

/* A page of members, which leaves room for the rest of the status. The configuration has the
 * members too; it goes with the first page, if it is not too large for that. */
static void cut_members(Fedlora__V1__RunStatus *out, uint32_t after)
{
    size_t bytes = 0, n = 0;
    bool whole = fedlora__v1__run_config__get_packed_size(out->config) <= STATUS_CONFIG_BYTES;
    if (after > out->n_members) after = (uint32_t)out->n_members;
    if (after || !whole) out->config->n_members = 0;
    if (after) out->n_history = 0;
    out->members += after;
    out->n_members -= after;
    for (; n < out->n_members; n++) {
        bytes += fedlora__v1__member_status__get_packed_size(out->members[n]) + STATUS_ENTRY_BYTES;
        if (n && bytes > STATUS_MEMBERS_BYTES) break;
    }
    if (n < out->n_members) out->members_next = after + (uint32_t)n;
    out->n_members = n;
}

/* A reply is one message. If it does not fit, reports of the oldest rounds are left out first,
 * then whole rounds. */
static void shorten(Fedlora__V1__RunStatus *out)
{
    for (size_t i = 0; i < out->n_history; i++) {
        if (fedlora__v1__run_status__get_packed_size(out) < RPC_MESSAGE_BYTES) return;
        out->history[i]->report_json = (char *)(uintptr_t)protobuf_c_empty_string;
    }
    while (out->n_history && fedlora__v1__run_status__get_packed_size(out) >= RPC_MESSAGE_BYTES) {
        out->history++;
        out->n_history--;
    }
}

/* Each member has its own ledger; the one that has spent most is named, because it ends the run. */
static err say_local(char *text, struct run *run, struct arena *arena)
{
    const Fedlora__V1__Privacy *p = run->config->privacy;
    const char *member = NULL;
    double epsilon = 0;
    TRY(store_copies_spent(&epsilon, &member, run->shop->store, run->id, arena));
    int n = snprintf(text, STATUS_TEXT_BYTES,
                     "unit example: epsilon %.4g at delta %.3g for each record of a member; ",
                     p->epsilon, p->delta);
    if (member)
        snprintf(text + n, STATUS_TEXT_BYTES - (size_t)n, "spent at most %.4g, by the ledger of %s",
                 epsilon, member);
    else
        snprintf(text + n, STATUS_TEXT_BYTES - (size_t)n, "nothing spent yet");
    return ERR_NONE;
}

/* The texts were made together with the ledger's lines, and are stored as events. */
static err say_privacy(char *text, struct run *run, struct arena *arena)
{
    const Fedlora__V1__Privacy *p = run->config->privacy;
    struct store *store = run->shop->store;
    char spent[STATUS_TEXT_BYTES / 4] = "", plan[STATUS_TEXT_BYTES / 2] = "";
    if (!p) return ERR_NONE;
    if (run_privacy_local(run->config)) return say_local(text, run, arena);
    TRY(store_last_event(spent, sizeof spent, store, run->id, "privacy.spent"));
    TRY(store_last_event(plan, sizeof plan, store, run->id, "privacy.plan"));
    if (!*spent)
        snprintf(spent, sizeof spent, "nothing spent of epsilon %.4g at delta %.3g", p->epsilon,
                 p->delta);
    snprintf(text, STATUS_TEXT_BYTES, "unit client: %s%s%s", spent, *plan ? "; planned: " : "",
             plan);
    return ERR_NONE;
}

/* Shares everything with the run but the shapes of the base, which are long, and in a list of runs
 * the members. */
static err short_config(Fedlora__V1__RunConfig **out, const struct run *run, bool members,
                        struct arena *arena)
{
    Fedlora__V1__RunConfig *config = NULL;
    TRY(arena_take(&config, arena, 1, sizeof *config));
    *config = *run->config;
    config->n_modules = 0;
    config->modules = NULL;
    if (!members) {
        config->n_members = 0;
        config->members = NULL;
    }
    *out = config;
    return ERR_NONE;
}

err serve_troubles(char ***out, size_t *count, struct troubles *t, const char *run,
                   struct arena *arena)
{
    const char *text[TROUBLE_SHOWN], *copy = NULL;
    size_t n = trouble_list(text, TROUBLE_SHOWN, t, run);
    char **list = NULL;
    TRY(arena_take(&list, arena, n, sizeof *list));
    for (size_t i = 0; i < n; i++) {
        TRY(arena_text(&copy, arena, text[i], strlen(text[i])));
        list[i] = (char *)(uintptr_t)copy;
    }
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* The operator who paused or stopped the run, from the event. */
static err say_who(char *text, const struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    char who[TROUBLE_BY_BYTES] = "";
    const char *event = phase == ROUND_PAUSED ? "run.paused" : "run.stopped";
    size_t used = strlen(text);
    /* A run that was paused by itself has a reason. */
    if (phase == ROUND_PAUSED && *run->round.reason) return ERR_NONE;
    if (phase != ROUND_PAUSED && phase != ROUND_STOPPED) return ERR_NONE;
    TRY(store_last_event(who, sizeof who, run->shop->store, run->id, event));
    if (!strncmp(who, "admin/", 6)) /* else it was the privacy budget */
        snprintf(text + used, STATUS_TEXT_BYTES - used, " (%s by %s)", round_phase_name(phase),
                 who);
    return ERR_NONE;
}

static err make_status(Fedlora__V1__RunStatus **out, struct run *run, bool whole,
                       uint32_t members_after, struct arena *arena)
{
    Fedlora__V1__RunStatus *status = NULL;
    char *text = NULL, *privacy = NULL;
    TRY(arena_take(&status, arena, 1, sizeof *status));
    TRY(arena_take(&text, arena, STATUS_TEXT_BYTES, 1));
    TRY(arena_take(&privacy, arena, STATUS_TEXT_BYTES, 1));
    TRY(say_privacy(privacy, run, arena));
    fedlora__v1__run_status__init(status);
    run_waiting_for(text, STATUS_TEXT_BYTES, run);
    TRY(say_who(text, run));
    TRY(short_config(&status->config, run, whole, arena));
    status->member_count = (uint32_t)run->round.members;
    status->phase = (char *)(uintptr_t)run_phase_name(run);
    status->id = (uint32_t)run->id;
    status->ended_ms = run->ended_ms;
    status->archived_ms = run->archived_ms;
    status->round = round_under_way(&run->round);
    status->waiting_for = text;
    status->privacy = privacy;
    status->created_ms = run->created_ms;
    status->state_digest = binary(&run->newest.state);
    status->state_size = run->newest.state.size;
    if (whole) {
        TRY(fill_members(status, run, arena));
        TRY(fill_history(status, run, arena));
        TRY(store_reports_skipped(&status->reports_skipped, run->shop->store, run->id));
        TRY(serve_troubles(&status->troubles, &status->n_troubles, run->shop->troubles,
                           run->config->name, arena));
        cut_members(status, members_after);
        shorten(status);
    }
    *out = status;
    return ERR_NONE;
}

err serve_status(Fedlora__V1__RunStatus **out, struct run *run, bool whole, struct arena *arena)
{
    return make_status(out, run, whole, 0, arena);
}

err serve_status_page(Fedlora__V1__RunStatus **out, struct run *run, uint32_t members_after,
                      struct arena *arena)
{
    return make_status(out, run, true, members_after, arena);
}
