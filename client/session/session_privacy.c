/* The privacy plan of a member, and the copy of its ledger that the coordinator keeps:
 * client/session/session_privacy.h. */
#include "client/session/session_privacy.h"

#include "agg/round/method.h"
#include "base/file.h"
#include "client/session/session_task.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- the promise */

/* The member's own limits. They are compared before anything about the data is sent, and a run
 * without example-level privacy fails them: a user who gives a ledger expects it to be used. */
err session_privacy_accepts(const Fedlora__V1__Privacy *p, const struct session_options *o,
                            const char *run)
{
    bool example = p && strcmp(p->unit, "example") == 0;
    if (o->epsilon == 0 && o->delta == 0 && !o->ledger) return ERR_NONE;
    if (!example)
        return err_make(
            ERR_INPUT,
            "run %s does not give example-level privacy (its unit is %s), but %s requires it", run,
            p ? p->unit : "none", o->ledger ? "--ledger" : "--epsilon");
    if (o->epsilon > 0 && p->epsilon > o->epsilon)
        return err_make(ERR_INPUT, "run %s spends epsilon %g, but --epsilon allows at most %g", run,
                        p->epsilon, o->epsilon);
    if (o->delta > 0 && p->delta > o->delta)
        return err_make(ERR_INPUT, "run %s has delta %g, but --delta allows at most %g", run,
                        p->delta, o->delta);
    return ERR_NONE;
}

/* Names for the ledger. They include the federation, because two federations may both have a run
 * "r1", and one ledger covers all of them. A method name that does not fit the buffer is not
 * known to this program. */
static err name_it(struct session_privacy *p, const Fedlora__V1__HelloReply *hello,
                   const struct rpc_peer *self)
{
    snprintf(p->job, sizeof p->job, "%s/%s", self->federation, hello->run);
    snprintf(p->party, sizeof p->party, "%s/%s", self->federation, self->id);
    snprintf(p->method, sizeof p->method, "%s", hello->method);
    if (strcmp(p->method, hello->method) == 0) return ERR_NONE;
    return err_make(ERR_INPUT, "unknown method \"%.60s\": the coordinator may be a newer version",
                    hello->method);
}

/* The first rounds of a run with a basis from gradients are passes that take one gradient each,
 * with noise of their own; the remaining rounds train. Both are parts of one plan. */
err session_privacy_plan(struct session_privacy *out, const struct session_options *o,
                         const Fedlora__V1__HelloReply *hello, const struct rpc_peer *self,
                         uint64_t records)
{
    const Fedlora__V1__Privacy *asked = hello->privacy;
    const struct member_round round = {.run = hello->run, .member = hello->member};
    struct training_options training;
    *out = (struct session_privacy){0};
    TRY(session_privacy_accepts(asked, o, hello->run));
    if (!asked || strcmp(asked->unit, "example") != 0) return ERR_NONE;
    TRY(name_it(out, hello, self));
    TRY(session_task_training(&training, hello->training));
    TRY(member_options_train(&out->train, &training, &round));
    out->train.checkpoint = o->checkpoint;
    uint32_t passes = asked->basis_clip > 0 ? METHOD_SETUP_ROUNDS : 0;
    if (hello->rounds <= passes)
        return err_make(ERR_INPUT, "run %s has %u rounds, expected more than %u", hello->run,
                        hello->rounds, passes);
    const struct train_ledger_options options = {.train = &out->train,
                                                 .epsilon = asked->epsilon,
                                                 .delta = asked->delta,
                                                 .noise = asked->noise,
                                                 .clip = asked->clip,
                                                 .sampling = asked->sampling,
                                                 .rounds = hello->rounds - passes,
                                                 .basis_passes = passes,
                                                 .basis_noise = asked->basis_noise,
                                                 .basis_clip = asked->basis_clip,
                                                 .cap_epsilon = o->epsilon,
                                                 .cap_delta = o->delta,
                                                 .ledger = o->ledger,
                                                 .key = o->ledger_key,
                                                 .job = out->job,
                                                 .party = out->party,
                                                 .method = out->method,
                                                 .bases = "given",
                                                 .simulated = o->simulated};
    TRY(train_ledger_plan(&out->ledger, &options, records));
    out->on = true;
    return ERR_NONE;
}

err session_privacy_open(struct session_privacy *out, const struct session_options *o,
                         const Fedlora__V1__HelloReply *hello, const struct rpc_peer *self,
                         uint64_t records)
{
    TRY(session_privacy_plan(out, o, hello, self, records));
    if (!out->on) return ERR_NONE;
    out->on = false;
    TRY(train_ledger_ask(&out->ledger));
    out->on = true;
    return ERR_NONE;
}

/* Compares the packed messages, so that a field added later is compared too. */
err session_privacy_same(const Fedlora__V1__HelloReply *was, const Fedlora__V1__HelloReply *is)
{
    struct bytes a = {.max = 1 << 16}, b = {.max = 1 << 16};
    err e = was->privacy ? message_pack(&a, &was->privacy->base) : ERR_NONE;
    if (!err_is(e) && is->privacy) e = message_pack(&b, &is->privacy->base);
    bool same = !was->privacy == !is->privacy && a.size == b.size &&
                (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
    bytes_close(&a);
    bytes_close(&b);
    if (err_is(e) || same) return e;
    return err_make(ERR_INPUT, "run %s: its privacy settings changed since this member joined",
                    is->run);
}

/* ---------------------------------------------------------------- a round */

/* Rounds count from 1, and passes for a basis come first. */
static bool is_pass(const struct session_privacy *p, uint32_t round)
{
    return round <= p->ledger.plan.basis_passes;
}

/* %a prints doubles exactly. The ledger's path is part of the text, because an update that was
 * charged in one ledger must not be sent under another. */
void session_privacy_promise(char out[SESSION_WORK_PROMISE], const struct session_privacy *p,
                             uint32_t round)
{
    const struct plan *plan = &p->ledger.plan;
    const struct plan_summary *s = &p->ledger.summary;
    char whose[DIGEST_TEXT_BYTES]; /* hash of the ledger's path */
    out[0] = 0;
    if (!p->on) return;
    struct digest ledger = digest_of(p->ledger.o.ledger, strlen(p->ledger.o.ledger));
    digest_text(whose, &ledger);
    if (is_pass(p, round))
        snprintf(out, SESSION_WORK_PROMISE, "%s pass noise=%a clip=%a records=%" PRIu64 " in %.16s",
                 p->job, s->basis_noise, plan->basis_clip, plan->units, whose);
    else
        snprintf(out, SESSION_WORK_PROMISE,
                 "%s noise=%a sampling=%a clip=%a steps=%u records=%" PRIu64 " in %.16s", p->job,
                 s->noise, plan->sampling, plan->clip, plan->steps, plan->units, whose);
}

/* In a run that computes its basis itself, the frozen factors come from earlier rounds of this
 * ledger and are not recorded as given from outside. */
err session_privacy_charge(const struct session_privacy *p, uint32_t round,
                           const struct session_update *update, const struct digest *given)
{
    struct train_ledger_made made = {.round = round,
                                     .basis = is_pass(p, round),
                                     .dim = update->values,
                                     .digest = update->digest};
    if (!p->ledger.plan.basis_passes) made.given = *given;
    return train_ledger_charge(&p->ledger, &made);
}

/* ---------------------------------------------------------------- the copy */

/* A range of whole lines of the ledger. */
struct part {
    const char *text;      /* into the ledger, which is in memory as a whole */
    size_t size;           /* bytes, at most LEDGER_PART_BYTES */
    uint64_t first, lines; /* number of the first line, from 1; number of lines */
};

/* The lines after the first `after`, as many as fit into one message. Lines are never split,
 * because the coordinator checks the signature of each. */
static struct part part_after(const char *text, size_t size, uint64_t after)
{
    struct part part = {.text = text, .first = after + 1};
    const char *at = text, *end = text + size, *stop;
    for (uint64_t line = 1; (stop = memchr(at, '\n', (size_t)(end - at))); line++, at = stop + 1) {
        if (line == part.first) part.text = at;
        if (line < part.first) continue;
        if ((size_t)(stop + 1 - part.text) > LEDGER_PART_BYTES) break;
        part.size = (size_t)(stop + 1 - part.text);
        part.lines++;
    }
    return part;
}

/* The number of lines that the coordinator has, and the hash of the last one. */
struct held {
    uint64_t lines;
    struct digest head;
};

/* An empty part asks only how much the coordinator has. */
static err send_part(struct held *held, const struct session_privacy_send *to,
                     const struct part *part)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(ledger),
                                                &fedlora__v1__ledger_reply__descriptor};
    Fedlora__V1__LedgerPart request = FEDLORA__V1__LEDGER_PART__INIT;
    Fedlora__V1__LedgerReply *reply = NULL;
    request.run = (char *)(uintptr_t)to->run;
    request.from = part->first;
    request.lines = (ProtobufCBinaryData){part->size, (uint8_t *)(uintptr_t)part->text};
    const struct session_sent_call call = {.kind = "ledger", .run = to->run, .round = to->round};
    if (part->size) TRY(session_sent_message(to->sent, &call, &request.base));
    TRY(remote_call(&reply, to->client, &method, &request.base, 0));
    *held = (struct held){.lines = reply->lines};
    if (reply->head.len == DIGEST_BYTES) memcpy(held->head.byte, reply->head.data, DIGEST_BYTES);
    message_free(reply);
    return ERR_NONE;
}

/* The coordinator's copy must be a prefix of the local ledger. If it is not, an old backup of the
 * ledger was restored: it has forgotten charges, and continuing with it would exceed the budget. */
static err check_held(const struct held *held, const char *text, size_t size, const char *path)
{
    const char *at = text, *stop = NULL, *end = text + size;
    struct digest hash = {0};
    if (!held->lines) return ERR_NONE;
    for (uint64_t line = 1; (stop = memchr(at, '\n', (size_t)(end - at))); line++, at = stop + 1)
        if (line == held->lines) break;
    if (stop) TRY(ledger_line_hash(&hash, at, (size_t)(stop - at), path));
    if (stop && digest_equal(&hash, &held->head)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s is not a continuation of the %" PRIu64
                    " lines the coordinator has. It may be an old backup: restore the newest copy "
                    "(the operator can fetch it with `fedlora run audit`)",
                    path, held->lines);
}

/* A coordinator that accepts a part without storing a line would keep this loop busy forever. */
static err send_all(const struct session_privacy_send *to, uint64_t sent, const char *text,
                    size_t size)
{
    for (;;) {
        struct part part = part_after(text, size, sent);
        struct held held;
        if (part.lines == 0) return ERR_NONE;
        TRY(send_part(&held, to, &part));
        if (held.lines <= sent)
            return err_make(ERR_INPUT,
                            "the coordinator stored no line of the ledger from line %" PRIu64 " on",
                            part.first);
        sent = held.lines;
    }
}

/* The whole file is read again each time: it is small, and it must be what is on disk. */
err session_privacy_send_ledger(const struct session_privacy *p,
                                const struct session_privacy_send *to)
{
    const struct part none = {.text = ""};
    struct held held;
    char *text = NULL;
    size_t size = 0;
    TRY(send_part(&held, to, &none));
    TRY(file_read_all(&text, &size, p->ledger.o.ledger, LEDGER_FILE_BYTES_MAX));
    err e = check_held(&held, text, size, p->ledger.o.ledger);
    if (!err_is(e)) e = send_all(to, held.lines, text, size);
    free(text);
    return e;
}
