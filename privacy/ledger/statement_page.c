/* The statement as a page of text and as JSON. */
#include "privacy/ledger/statement.h"

#include <string.h>

enum { ROWS_HEAD = 6, ROWS_TAIL = 6, PLANS_TAIL = 4 };

static const char *const assumed_client[] = {
    "The coordinator is trusted: it sees each member's clipped change, and adds the noise.",
    "Each member counts once a round, with a weight that is public and fixed beforehand.",
    "Sampling: members are drawn independently at the stated rate from a secret seed; the figures "
    "for",
    "  a rate below 1 hold against an attacker who sees the published states, but not the draws.",
    "The operating system's randomness is unpredictable.",
    NULL};
static const char *const assumed_example[] = {
    "Each party runs the stated DP-SGD on its own records; the coordinator cannot check this.",
    "No party is trusted with another's records, because the noise is added before an update "
    "leaves.",
    "Records are drawn independently at the stated rate; the risk of a person grows with the "
    "number",
    "  of that person's records.",
    "The operating system's randomness is unpredictable.",
    NULL};
static const char *const uncovered[] = {
    "Results computed from the data outside this ledger: tuning runs, evaluations, logs, and the",
    "  counts of examples that members report.",
    "The training data of the base model, and facts about the whole population.",
    "Poisoned updates: clipping limits them, but does not detect them.", NULL};

static err lines(struct bytes *out, const char *title, const char *const *line)
{
    TRY(bytes_printf(out, "\n%s\n", title));
    for (; *line; line++)
        TRY(bytes_printf(out, "  %s%s\n", **line == ' ' ? "" : "- ", *line));
    return ERR_NONE;
}

struct cursor { /* goes over the releases, with the number of the plan in force */
    const struct ledger *ledger;
    size_t next, plan, number; /* number of the release, from 1 */
};

static const struct ledger_release *next_release(struct cursor *c)
{
    while (c->next < c->ledger->count) {
        const struct ledger_entry *entry = &c->ledger->entry[c->next++];
        c->plan += !strcmp(entry->kind, "plan");
        if (strcmp(entry->kind, "release") != 0) continue;
        c->number++;
        return &entry->release;
    }
    return NULL;
}

static err rows(struct bytes *out, const struct statement *s)
{
    struct cursor c = {.ledger = s->ledger, .plan = 1};
    const struct ledger_release *r;
    bool long_one = s->releases > ROWS_HEAD + ROWS_TAIL + 1;
    TRY(bytes_printf(out, "\n  %4s %6s %6s %9s %9s %10s %10s %10s  %s\n", "plan", "round", "steps",
                     "rate", "noise", "clip norm", "epsilon", "RDP", "released"));
    while ((r = next_release(&c))) {
        char digest[DIGEST_TEXT_BYTES];
        double drawn = 0;
        if (long_one && c.number == ROWS_HEAD + 1)
            TRY(bytes_printf(out, "  %4s %6s (%zu more; --json has them all)\n", "", "...",
                             s->releases - ROWS_HEAD - ROWS_TAIL));
        if (long_one && c.number > ROWS_HEAD && c.number <= s->releases - ROWS_TAIL) continue;
        TRY(statement_drawn(&drawn, r));
        digest_text(digest, &r->released);
        TRY(bytes_printf(out, "  %4zu %6u %6llu %9.5g %9.5g %10.5g %10.6g %10.6g  %.16s\n", c.plan,
                         r->round, (unsigned long long)r->charged.count, r->charged.sampling, drawn,
                         r->clip, r->epsilon, r->rdp, digest));
    }
    return ERR_NONE;
}

/* The public file that training starts from, or that has the basis; the ledger does not cover
 * it. */
static err given_line(struct bytes *out, const struct ledger_terms *t)
{
    static const struct digest none;
    char text[DIGEST_TEXT_BYTES];
    if (digest_equal(&t->given, &none)) return ERR_NONE;
    digest_text(text, &t->given);
    return bytes_printf(out,
                        "                   starts from %.16s..., which counts as public; its own "
                        "privacy loss is not included\n",
                        text);
}

static err plan_lines(struct bytes *out, size_t number, const struct ledger_terms *t)
{
    const char *units = t->unit == LEDGER_CLIENT ? "members" : "records";
    TRY(bytes_printf(out,
                     "\n  plan %-11zu run %s, %s: method %s, weights %s, bases %s;\n"
                     "                   %u rounds of %u noisy step%s; at most epsilon %.6g at "
                     "delta %.3g\n",
                     number, t->job,
                     strcmp(t->purpose, "basis") ? t->purpose : "two passes that find a basis",
                     t->method, t->weights, t->bases, t->rounds, t->steps, t->steps == 1 ? "" : "s",
                     t->epsilon, t->delta));
    TRY(bytes_printf(out,
                     "                   %llu %s at rate %.6g%s, fixed denominator %.6g;\n"
                     "                   clip norm %.6g%s; %llu coordinates\n",
                     (unsigned long long)t->units, units, t->sampling,
                     t->sampling == 1 ? " (all)" : " (Poisson)", t->denominator, t->clip,
                     t->adaptive.on ? " at first, then adaptive" : "", (unsigned long long)t->dim));
    return given_line(out, t);
}

/* Iterates over the plans that have releases, and the last plan, in order: returns the terms and
 * the number, or NULL at the end. `*next` is an index of the ledger's entries and starts at 0. */
static const struct ledger_terms *next_plan(const struct ledger *l, size_t *next, size_t *number)
{
    while (*next <= l->count) {
        size_t i = (*next)++; /* entry i - 1 starts a plan; entry -1 is the ledger's first line */
        if (i > 0 && strcmp(l->entry[i - 1].kind, "plan") != 0) continue;
        ++*number;
        if (i < l->count && !strcmp(l->entry[i].kind, "plan")) continue;
        return i > 0 ? l->entry[i - 1].terms : &l->terms;
    }
    return NULL;
}

/* The first plan and the newest ones. */
static err plans(struct bytes *out, const struct statement *s)
{
    size_t shown = 0, all = 0, next = 0, number = 0;
    const struct ledger_terms *t;
    while (next_plan(s->ledger, &next, &number))
        all++;
    for (next = number = 0; (t = next_plan(s->ledger, &next, &number)); shown++) {
        if (shown == 1 && all > PLANS_TAIL + 1)
            TRY(bytes_printf(out, "\n  ... %zu more plans; --json has them all\n",
                             all - PLANS_TAIL - 1));
        if (shown == 0 || shown + PLANS_TAIL >= all) TRY(plan_lines(out, number, t));
    }
    return ERR_NONE;
}

static err promised(struct bytes *out, const struct statement *s)
{
    const struct ledger_terms *t = &s->ledger->terms;
    bool client = t->unit == LEDGER_CLIENT;
    TRY(bytes_printf(out, "%s: %s%s, ledger of %s\n\n",
                     t->simulated ? "SIMULATED privacy statement" : "Privacy statement",
                     client || s->plans == 1 ? "run " : "all runs since ", t->job, t->party));
    if (t->simulated)
        TRY(bytes_printf(out, "  simulated        by fedlora simulate, which also made the key: no "
                              "real member or record is\n                   protected by what "
                              "follows\n"));
    TRY(bytes_printf(out, "  unit             %s\n",
                     client ? "one member's whole data (client level)"
                            : "one record of one party (example level)"));
    TRY(bytes_printf(out, "  neighbours       the unit's part is present, or zero; the number of "
                          "units is public\n"));
    TRY(bytes_printf(out, "  budget           epsilon %.6g at delta %.3g\n", t->epsilon, t->delta));
    TRY(bytes_printf(
        out,
        "  spent            epsilon %.6g (PLD); %.6g by RDP; as fedlora " FEDLORA_VERSION
        " computes it\n",
        s->spent.epsilon, s->spent.rdp));
    if (s->seen > s->spent.epsilon)
        TRY(bytes_printf(out, "                   %.6g if an attacker sees which %s\n", s->seen,
                         client ? "members take part (the coordinator does)"
                                : "records take part (only the party does)"));
    TRY(bytes_printf(out, "  releases         %zu, of %llu noisy steps in all%s%s\n", s->releases,
                     (unsigned long long)s->steps, s->stopped ? "; stopped: " : "",
                     s->stopped ? s->stopped : ""));
    TRY(bytes_printf(out, "  covers           %s\n",
                     client
                         ? "every published state, and the last one"
                         : "every update sent, every adapter written, and all derived from them"));
    TRY(bytes_printf(out,
                     "  noise            Gaussian rounded to an integer lattice, drawn exactly "
                     "(ChaCha20, not seedable),\n                   multiplier %.6g at least\n",
                     s->noise_least));
    return plans(out, s);
}

err statement_text(struct bytes *out, const struct statement *s)
{
    char head[DIGEST_TEXT_BYTES], key[65];
    digest_text(head, &s->ledger->head.hash);
    sodium_bin2hex(key, sizeof key, s->ledger->public, sizeof s->ledger->public);
    TRY(promised(out, s));
    TRY(rows(out, s));
    TRY(lines(out, "Assumed",
              s->ledger->terms.unit == LEDGER_CLIENT ? assumed_client : assumed_example));
    TRY(lines(out, "Not protected", uncovered));
    TRY(bytes_printf(
        out,
        "\nLedger\n  - %llu lines, each with the hash of the line before it and a signature;\n"
        "    replayed from zero, and all figures agree.\n",
        (unsigned long long)s->ledger->head.count));
    TRY(bytes_printf(out, "  - key  %s %s\n", key,
                     s->key_known ? "(the one given)" : "(not compared; give --key)"));
    return bytes_printf(out, "  - head %s %s\n", head,
                        s->head_known
                            ? "(the one given)"
                            : "(not compared; give --head to notice lines cut off at the end)");
}

static json_t *release_json(const struct ledger_release *r, size_t plan)
{
    char released[DIGEST_TEXT_BYTES];
    double drawn = 0;
    err e = statement_drawn(&drawn, r);
    if (err_is(e)) return NULL;
    digest_text(released, &r->released);
    return json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "plan", (json_int_t)plan,
                     "round", (json_int_t)r->round, "steps", (json_int_t)r->charged.count,
                     "sampling", r->charged.sampling, "noise", drawn, "noise_charged",
                     r->charged.noise, "clip", r->clip, "epsilon", r->epsilon, "epsilon_rdp",
                     r->rdp, "released", released);
}

static json_t *texts(const char *const *line)
{
    json_t *list = json_array();
    for (; list && *line; line++) {
        if (**line != ' ') {
            json_array_append_new(list, json_string(*line));
            continue;
        }
        json_t *last = json_array_get(list, json_array_size(list) - 1);
        json_t *whole = json_sprintf("%s%s", json_string_value(last), *line + 1);
        json_array_set_new(list, json_array_size(list) - 1, whole);
    }
    return list;
}

static json_t *plan_json(const struct ledger_terms *t)
{
    char given[DIGEST_TEXT_BYTES], cohorts[DIGEST_TEXT_BYTES];
    digest_text(given, &t->given);
    digest_text(cohorts, &t->cohorts);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:b, s:f, s:I, s:I, s:I, "
                     "s:I, s:s, s:s}",
                     "run", t->job, "purpose", t->purpose, "method", t->method, "weights",
                     t->weights, "bases", t->bases, "epsilon", t->epsilon, "delta", t->delta,
                     "noise", t->noise, "sampling", t->sampling, "clip", t->clip, "clip_adaptive",
                     t->adaptive.on, "denominator", t->denominator, "units", (json_int_t)t->units,
                     "coordinates", (json_int_t)t->dim, "rounds", (json_int_t)t->rounds, "steps",
                     (json_int_t)t->steps, "given", given, "cohorts", cohorts);
}

static json_t *all_plans(const struct statement *s)
{
    json_t *list = json_array();
    json_array_append_new(list, plan_json(&s->ledger->terms));
    for (size_t i = 0; list && i < s->ledger->count; i++)
        if (!strcmp(s->ledger->entry[i].kind, "plan"))
            json_array_append_new(list, plan_json(s->ledger->entry[i].terms));
    return list;
}

static json_t *all_releases(const struct statement *s)
{
    struct cursor c = {.ledger = s->ledger, .plan = 1};
    const struct ledger_release *r;
    json_t *list = json_array();
    while (list && (r = next_release(&c)))
        json_array_append_new(list, release_json(r, c.plan));
    return list;
}

err statement_json(json_t **out, const struct statement *s)
{
    const struct ledger_terms *t = &s->ledger->terms;
    bool client = t->unit == LEDGER_CLIENT;
    char head[DIGEST_TEXT_BYTES], key[65];
    digest_text(head, &s->ledger->head.hash);
    sodium_bin2hex(key, sizeof key, s->ledger->public, sizeof s->ledger->public);
    json_t *value = json_pack(
        "{s:s, s:s, s:s, s:I, s:{s:f, s:f}, s:{s:f, s:f, s:f}, s:I, s:I, s:f, s:o, s:o, s:o, s:o, "
        "s:s?, s:I, s:s, s:b, s:s, s:b, s:f, s:s, s:b}",
        "run", t->job, "party", t->party, "unit", client ? "client" : "example", "units",
        (json_int_t)t->units, "budget", "epsilon", t->epsilon, "delta", t->delta, "spent",
        "epsilon", s->spent.epsilon, "epsilon_rdp", s->spent.rdp, "rdp_order", s->spent.rdp_order,
        "releases", (json_int_t)s->releases, "steps", (json_int_t)s->steps, "noise", s->noise_least,
        "plans", all_plans(s), "rounds_table", all_releases(s), "assumed",
        texts(client ? assumed_client : assumed_example), "not_protected", texts(uncovered),
        "stopped", s->stopped, "lines", (json_int_t)s->ledger->head.count, "key", key, "key_known",
        s->key_known, "head", head, "head_known", s->head_known, "spent_without_amplification",
        s->seen, "software", "fedlora " FEDLORA_VERSION, "simulated", t->simulated);
    if (!value) return err_make(ERR_MACHINE, "no memory for the privacy statement");
    *out = value;
    return ERR_NONE;
}
