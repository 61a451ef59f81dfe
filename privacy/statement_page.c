/* One page for people, one document for machines. */
#include "privacy/statement.h"

#include <string.h>

enum { ROWS_HEAD = 6, ROWS_TAIL = 6 };

static const char *const assumed_client[] = {
    "The coordinator is trusted: it sees each member's clipped change, and adds the noise.",
    "Each member counts once a round, with a weight that is public and fixed beforehand.",
    "Sampling: members are drawn independently at the stated rate from a secret seed; the figures "
    "for",
    "  a rate below 1 hold against who sees the published states, not against who sees who took "
    "part.",
    "The operating system's randomness is unpredictable.",
    NULL};
static const char *const assumed_example[] = {
    "Each party runs the stated DP-SGD on its own records; the coordinator cannot check that it "
    "did.",
    "No party is trusted with another's records: the noise is in an update before it leaves.",
    "Records are drawn independently at the stated rate; a person with several records has several",
    "  units' risk.",
    "The operating system's randomness is unpredictable.",
    NULL};
static const char *const uncovered[] = {
    "Anything computed from the data outside this ledger: tuning runs, evaluations, logs, counts "
    "of",
    "  examples that members state.",
    "What the base model learned before, and facts about the whole population.",
    "Poisoned updates: clipping bounds them, it does not detect them.", NULL};

static err lines(struct bytes *out, const char *title, const char *const *line)
{
    TRY(bytes_printf(out, "\n%s\n", title));
    for (; *line; line++)
        TRY(bytes_printf(out, "  %s%s\n", **line == ' ' ? "" : "- ", *line));
    return ERR_NONE;
}

static err rows(struct bytes *out, const struct statement *s)
{
    size_t at = 0;
    TRY(bytes_printf(out, "\n  %8s %7s %10s %9s %10s %10s %10s  %s\n", "round", "steps", "rate",
                     "noise", "clip norm", "epsilon", "RDP", "released"));
    for (size_t i = 0; i < s->ledger->count; i++) {
        const struct ledger_entry *entry = &s->ledger->entry[i];
        const struct ledger_release *r = &entry->release;
        char digest[DIGEST_TEXT_BYTES];
        double drawn = 0;
        if (strcmp(entry->kind, "release")) continue;
        at++;
        if (s->releases > ROWS_HEAD + ROWS_TAIL + 1 && at > ROWS_HEAD &&
            at <= s->releases - ROWS_TAIL) {
            if (at == ROWS_HEAD + 1)
                TRY(bytes_printf(out, "  %8s (%zu more; --json has them all)\n", "...",
                                 s->releases - ROWS_HEAD - ROWS_TAIL));
            continue;
        }
        TRY(statement_drawn(&drawn, r));
        digest_text(digest, &r->released);
        TRY(bytes_printf(out, "  %8u %7llu %10.6g %9.5g %10.5g %10.6g %10.6g  %.16s\n", r->round,
                         (unsigned long long)r->charged.count, r->charged.sampling, drawn, r->clip,
                         r->epsilon, r->rdp, digest));
    }
    return ERR_NONE;
}

static err promised(struct bytes *out, const struct statement *s)
{
    const struct ledger_terms *t = &s->ledger->terms;
    bool client = t->unit == LEDGER_CLIENT;
    TRY(bytes_printf(out, "Privacy statement: run %s, ledger of %s\n\n", t->job, t->party));
    TRY(bytes_printf(out, "  unit             %s\n",
                     client ? "one member's whole data (client level)"
                            : "one record of one party (example level)"));
    TRY(bytes_printf(out, "  neighbours       the unit is there or is not\n"));
    TRY(bytes_printf(out, "  units            %llu %s\n", (unsigned long long)t->units,
                     client ? "members" : "records"));
    TRY(bytes_printf(out, "  budget           epsilon %.6g at delta %.3g\n", t->epsilon, t->delta));
    TRY(bytes_printf(out, "  spent            epsilon %.6g (PLD); %.6g by RDP\n", s->spent.epsilon,
                     s->spent.rdp));
    TRY(bytes_printf(out, "  releases         %zu of %u rounds planned, %llu noisy steps%s%s\n",
                     s->releases, t->rounds, (unsigned long long)s->steps,
                     s->stopped ? "; stopped: " : "", s->stopped ? s->stopped : ""));
    TRY(bytes_printf(out, "  covers           every published state, and the last one\n"));
    TRY(bytes_printf(
        out,
        "  mechanism        %s, weights %s, bases %s; clip norm %.6g%s; Gaussian noise "
        "rounded to an\n                   integer lattice, drawn exactly (ChaCha20, not "
        "seedable), multiplier %.6g at least\n",
        t->method, t->weights, t->bases, t->clip, t->adaptive.on ? " at first, then adaptive" : "",
        s->noise_least));
    TRY(bytes_printf(out, "  sampling         rate %.6g%s, denominator %.6g whoever takes part\n",
                     t->sampling, t->sampling == 1 ? " (everyone)" : " (Poisson)", t->denominator));
    return bytes_printf(out, "  coordinates      %llu\n", (unsigned long long)t->dim);
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
    TRY(bytes_printf(out,
                     "\nLedger\n  - %llu lines, each hashed to the one before it and signed; "
                     "replayed from zero, all figures agree.\n",
                     (unsigned long long)s->ledger->head.count));
    TRY(bytes_printf(out, "  - key  %s %s\n", key,
                     s->key_known ? "(the one given)" : "(compared with none: --key)"));
    return bytes_printf(out, "  - head %s %s\n", head,
                        s->head_known ? "(the one given)"
                                      : "(lines cut off at the end only show in it: --head)");
}

static json_t *release_json(const struct ledger_release *r)
{
    char released[DIGEST_TEXT_BYTES];
    double drawn = 0;
    err e = statement_drawn(&drawn, r);
    if (err_is(e)) return NULL;
    digest_text(released, &r->released);
    return json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "round", (json_int_t)r->round,
                     "steps", (json_int_t)r->charged.count, "sampling", r->charged.sampling,
                     "noise", drawn, "noise_charged", r->charged.noise, "clip", r->clip, "epsilon",
                     r->epsilon, "epsilon_rdp", r->rdp, "released", released);
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

err statement_json(json_t **out, const struct statement *s)
{
    const struct ledger_terms *t = &s->ledger->terms;
    bool client = t->unit == LEDGER_CLIENT;
    char head[DIGEST_TEXT_BYTES], key[65];
    json_t *list = json_array();
    digest_text(head, &s->ledger->head.hash);
    sodium_bin2hex(key, sizeof key, s->ledger->public, sizeof s->ledger->public);
    for (size_t i = 0; list && i < s->ledger->count; i++)
        if (!strcmp(s->ledger->entry[i].kind, "release"))
            json_array_append_new(list, release_json(&s->ledger->entry[i].release));
    json_t *value = json_pack(
        "{s:s, s:s, s:s, s:I, s:{s:f, s:f}, s:{s:f, s:f, s:f}, s:I, s:I, s:I, s:s, s:s, s:s, s:f, "
        "s:f, s:f, s:b, s:f, s:I, s:o, s:o, s:o, s:s?, s:I, s:s, s:b, s:s, s:b}",
        "run", t->job, "party", t->party, "unit", client ? "client" : "example", "units",
        (json_int_t)t->units, "budget", "epsilon", t->epsilon, "delta", t->delta, "spent",
        "epsilon", s->spent.epsilon, "epsilon_rdp", s->spent.rdp, "rdp_order", s->spent.rdp_order,
        "releases", (json_int_t)s->releases, "rounds", (json_int_t)t->rounds, "steps",
        (json_int_t)s->steps, "method", t->method, "weights", t->weights, "bases", t->bases,
        "noise", s->noise_least, "sampling", t->sampling, "clip", t->clip, "clip_adaptive",
        t->adaptive.on, "denominator", t->denominator, "coordinates", (json_int_t)t->dim,
        "rounds_table", list, "assumed", texts(client ? assumed_client : assumed_example),
        "not_protected", texts(uncovered), "stopped", s->stopped, "lines",
        (json_int_t)s->ledger->head.count, "key", key, "key_known", s->key_known, "head", head,
        "head_known", s->head_known);
    if (!value) return err_make(ERR_MACHINE, "no memory for the privacy statement");
    *out = value;
    return ERR_NONE;
}
