/* Members of the seeded simulator (tests/fault/seeds.c). A member has one call open at a time, and
 * repeats it when no answer comes. Include it in one file of a program. */
#ifndef TESTS_SUPPORT_SEEDED_MEMBERS_H
#define TESTS_SUPPORT_SEEDED_MEMBERS_H

#include "tests/support/seeded_world.h"

static void call(size_t m, const struct message *call)
{
    struct message out = *call;
    out.member = m;
    out.number = w.member[m].number = ++w.numbers;
    w.member[m].until = w.now + PATIENCE_MS;
    post(&out);
}

static void send_part(size_t m, struct member *x)
{
    size_t size = updates[w.kind][m][x->training].bytes.size, left = size - x->sent;
    struct message out = {.call = UPLOAD, .round = x->training, .offset = x->sent, .size = left};
    if (chance(0.3)) out.size = rng_below(&w.rng, left + 1);
    out.damaged = out.size && chance(w.flips);
    totals.wrong_bytes += out.damaged;
    x->damaged |= out.damaged;
    x->asked = false; /* after any error it asks again */
    call(m, &out);
}

static void member_turn(size_t m)
{
    struct member *x = &w.member[m];
    if (x->number && w.now < x->until) return; /* it waits for an answer */
    if (x->number) x->asked = false;
    if (!x->greeted)
        call(m, &(struct message){.call = HELLO});
    else if (x->evaluates)
        call(m, &(struct message){.call = EVALUATION, .round = x->evaluates});
    else if (!x->training)
        call(m, &(struct message){.call = TASK});
    else if (!x->asked)
        call(m, &(struct message){.call = OFFSET, .round = x->training});
    else
        send_part(m, x);
    x->wakes = x->until;
}

static void task_given(size_t m, const struct message *reply)
{
    struct member *x = &w.member[m];
    x->wakes = w.now + 1 + rng_below(&w.rng, 3000);
    if (reply->task == ROUND_TASK_TRAIN) {
        x->training = reply->round;
        x->asked = x->damaged = false;
        x->wakes = w.now + 1 + rng_below(&w.rng, chance(w.slow) ? 90000 : 5000);
    } else if (reply->task == ROUND_TASK_EVALUATE)
        x->evaluates = reply->round;
    else
        x->done = reply->task == ROUND_TASK_FINISHED;
}

/* A refusal: the member joins again, and drops an update whose moment has passed. */
static void refused_call(struct member *x, const struct message *reply)
{
    x->greeted = x->asked = false;
    if (reply->refused == ERR_STATE && reply->call != HELLO) x->training = x->evaluates = 0;
    if (reply->refused == ERR_INPUT && reply->call == UPLOAD) x->training = 0;
    x->wakes = w.now + 1 + rng_below(&w.rng, 300);
}

static void hear(const struct message *reply)
{
    struct member *x = &w.member[reply->member];
    if (reply->number != x->number) return; /* of a call that it has given up */
    x->number = 0;
    x->wakes = w.now + 1;
    if (reply->refused != ERR_OK)
        refused_call(x, reply);
    else if (reply->call == HELLO)
        x->greeted = true;
    else if (reply->call == TASK)
        task_given(reply->member, reply);
    else if (reply->call == EVALUATION)
        x->evaluates = 0;
    else if (reply->durable)
        x->training = 0;
    else {
        x->sent = reply->offset;
        x->asked = reply->call == OFFSET;
    }
}

#endif
