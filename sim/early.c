#include "sim/early.h"

#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static err not_a_rule(const char *text)
{
    return err_make(ERR_INPUT,
                    "\"%.80s\": expected a rule such as \"loss < 0.5\", \"accuracy > 60%%\" or "
                    "\"loss not better for 5 rounds\"",
                    text);
}

static const char *skip_spaces(const char *at)
{
    return at + strspn(at, " ");
}

err early_parse(struct early *out, const char *text)
{
    struct early e = {.any = true};
    unsigned rounds = 0;
    int end = 0;
    if (!text || !*text) {
        *out = (struct early){0};
        return ERR_NONE;
    }
    const char *at = skip_spaces(text);
    e.accuracy = !strncmp(at, "accuracy", 8);
    if (!e.accuracy && strncmp(at, "loss", 4) != 0) return not_a_rule(text);
    at = skip_spaces(at + (e.accuracy ? 8 : 4));
    if (*at == '<' || *at == '>') {
        e.above = *at == '>';
        if (err_is(text_parse_part(&e.limit, skip_spaces(at + 1), -1e9, 1e9)))
            return not_a_rule(text);
    } else {
        if (sscanf(at, "not better for %9u round%n", &rounds, &end) != 1 || !end || !rounds ||
            (strcmp(at + end, "s") != 0 && at[end]))
            return not_a_rule(text);
        e.patience = rounds;
    }
    *out = e;
    return ERR_NONE;
}

bool early_ends(struct early *e, uint32_t round, double loss, double accuracy,
                char why[EARLY_TEXT_BYTES])
{
    double value = e->accuracy ? accuracy : loss;
    const char *name = e->accuracy ? "accuracy" : "loss";
    if (!e->any || !isfinite(value) || (e->accuracy && value < 0)) return false;
    if (!e->patience) {
        if (e->above ? value <= e->limit : value >= e->limit) return false;
        snprintf(why, EARLY_TEXT_BYTES, "%s %.4g %s %.4g after round %u", name, value,
                 e->above ? ">" : "<", e->limit, round);
        return true;
    }
    if (!e->best_round || (e->accuracy ? value > e->best : value < e->best)) {
        e->best = value;
        e->best_round = round;
    }
    if (round - e->best_round < e->patience) return false;
    snprintf(why, EARLY_TEXT_BYTES, "%s not better than %.4g of round %u for %u rounds", name,
             e->best, e->best_round, round - e->best_round);
    return true;
}
