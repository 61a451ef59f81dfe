#include "privacy/ledger/release.h"

#include <stdio.h>
#include <stdlib.h>

struct release {
    struct digest state;
    bool is_private;
    uint64_t number; /* of the line */
    struct bytes line;
    char says[160];
};

static err make(struct release **out, const struct digest *state)
{
    struct release *r = calloc(1, sizeof *r);
    if (!r) return err_make(ERR_MACHINE, "no memory for a release");
    r->state = *state;
    r->line.max = LEDGER_LINE_BYTES;
    *out = r;
    return ERR_NONE;
}

err release_plain(struct release **out, const struct digest *state)
{
    struct release *r = NULL;
    TRY(make(&r, state));
    snprintf(r->says, sizeof r->says,
             "no privacy: the state is exact, and what it reveals is not bounded");
    *out = r;
    return ERR_NONE;
}

err release_noisy(struct release **out, struct spend *budget, struct ledger_head *head,
                  const struct ledger_key *key, const struct central *round,
                  const struct digest *state, const struct release_charge *charge)
{
    struct release *r = NULL;
    struct ledger_head next = *head;
    struct spend_total spent;
    struct ledger_release line = {
        .round = charge->round,
        .charged = {.noise = round->spec.noise, .sampling = charge->sampling, .count = 1},
        .clip = round->spec.clip,
        .sigma = round->sigma,
        .sigma_bits = round->sigma_bits,
        .denominator = round->spec.denominator,
        .dim = round->spec.dim,
        .released = *state};
    err e = ERR_NONE;
    REQUIRE(round->finished && round->noise >= round->spec.noise * (1 - ADAPTIVE_ROUNDING));
    TRY(spend_allows(&spent, budget, &line.charged));
    line.epsilon = spent.epsilon;
    line.rdp = spent.rdp;
    line.order = spent.rdp_order;
    TRY(make(&r, state));
    TRY_OUT(e, ledger_add(&r->line, &next, key, &line));
    TRY_OUT(e, spend_charge(budget, &line.charged));
    r->is_private = true;
    r->number = next.count;
    snprintf(r->says, sizeof r->says, "epsilon %.4g of %.4g at delta %.3g", spent.epsilon,
             budget->epsilon, budget->delta);
    *head = next;
    *out = r;
    return ERR_NONE;
out:
    release_close(r);
    return e;
}

void release_close(struct release *r)
{
    if (r) bytes_close(&r->line);
    free(r);
}

const struct digest *release_state(const struct release *r)
{
    return &r->state;
}

bool release_private(const struct release *r)
{
    return r->is_private;
}

const char *release_line(const struct release *r)
{
    return r->line.size ? (const char *)r->line.data : "";
}

uint64_t release_line_number(const struct release *r)
{
    return r->number;
}

const char *release_says(const struct release *r)
{
    return r->says;
}
