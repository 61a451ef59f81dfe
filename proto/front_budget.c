#include "proto/front_budget.h"

/* The numbers allow what libraries of HTTP/2 do when they behave, with a wide margin, and bound
 * what the rest can cost. `fedlora join` makes about one call a second and resets at most three
 * when it stops. */
const struct front_rule front_rule[FRONT_COSTS] = {
    /* Calls are limited again by their identity (limits.calls_per_second), but each refusal costs a
     * turn of the loop. 500 take it about 5 % of its time. */
    [FRONT_COST_STREAM] = {"calls", 2000, 500, .waits = true},
    /* A reset costs gRPC a whole call (CVE-2023-44487). Honest resets are calls past the client's
     * deadline and transfers that were given up, 16 at a time. */
    [FRONT_COST_RESET] = {"RST_STREAM frames", 200, 10, .waits = false},
    /* gRPC clients measure the bandwidth with about ten pings a second while they download. */
    [FRONT_COST_PING] = {"PING frames", 200, 20, .waits = false},
    /* One SETTINGS, its acknowledgement, and a few changes of a window. GOAWAY counts here too. */
    [FRONT_COST_SETTINGS] = {"SETTINGS frames", 100, 2, .waits = false},
    /* Empty DATA frames that do not end a stream serve no purpose. */
    [FRONT_COST_EMPTY] = {"empty DATA frames", 50, 1, .waits = false},
    /* gRPC clients send none; a browser's stack sends a few at its start. */
    [FRONT_COST_PRIORITY] = {"PRIORITY frames", 100, 1, .waits = false},
    [FRONT_COST_OTHER] = {"frames of unknown types", 100, 1, .waits = false},
    /* Two are earned with each DATA frame to the client: one for its stream, one for the
     * connection. */
    [FRONT_COST_WINDOW] = {"WINDOW_UPDATE frames", 1000, 50, .waits = true},
    /* Below FRONT_FRAME_SMALL bytes. Small messages need one each, and a window that is nearly used
     * up cuts a large message into some. */
    [FRONT_COST_SMALL] = {"small DATA frames", 2000, 500, .waits = true},
    /* Bytes for a stream that is over. After a refusal at most the stream's window of 256 KiB is
     * still on the way, for each of 16 streams. */
    [FRONT_COST_STRAY] = {"bytes for calls that are over", 64 << 20, 1 << 20, .waits = false},
    /* TLS 1.3 needs a new key after 16 million records. */
    [FRONT_COST_KEYS] = {"TLS key updates", 32, 1, .waits = false},
    /* Several institutions may share an address, and a member whose certificate has expired tries
     * again every few seconds. Those that break off are not counted, because networks do that. */
    [FRONT_COST_HANDSHAKE] = {"refused handshakes", 200, 5, .waits = false},
};

void front_budget_fill(struct front_budget *budget, uint64_t now_ms)
{
    for (int i = 0; i < FRONT_COSTS; i++)
        budget->left[i] = front_rule[i].burst;
    budget->at_ms = now_ms;
}

void front_budget_gain(struct front_budget *budget, uint64_t now_ms)
{
    if (now_ms <= budget->at_ms) return;
    double seconds = (double)(now_ms - budget->at_ms) / 1000;
    budget->at_ms = now_ms;
    for (int i = 0; i < FRONT_COSTS; i++)
        front_budget_earn(budget, (enum front_cost)i, seconds * front_rule[i].per_second);
}

bool front_budget_take(struct front_budget *budget, enum front_cost cost, double amount)
{
    if (budget->left[cost] < amount && !front_rule[cost].waits) return false;
    budget->left[cost] -= amount;
    return true;
}

void front_budget_earn(struct front_budget *budget, enum front_cost cost, double amount)
{
    budget->left[cost] += amount;
    if (budget->left[cost] > front_rule[cost].burst) budget->left[cost] = front_rule[cost].burst;
}

uint64_t front_budget_wait_ms(const struct front_budget *budget)
{
    double longest = 0;
    for (int i = 0; i < FRONT_COSTS; i++) {
        double wait = -budget->left[i] / front_rule[i].per_second * 1000;
        if (wait > longest) longest = wait;
    }
    return (uint64_t)(longest + 0.999);
}
