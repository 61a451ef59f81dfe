/* Writing a ledger; ledger_read.c reads it. */
#include "privacy/ledger/ledger.h"

#include "privacy/ledger/ledger_parts.h"

#include <stdio.h>
#include <string.h>

const char ledger_domain[17] = "fedlora ledger 1";

struct digest ledger_hash(const void *text, size_t size)
{
    return digest_of_in(ledger_domain, sizeof ledger_domain, text, size);
}

void ledger_signed(uint8_t out[LEDGER_SIGNED_BYTES], const struct digest *hash)
{
    memcpy(out, ledger_domain, sizeof ledger_domain);
    memcpy(out + sizeof ledger_domain, hash->byte, DIGEST_BYTES);
}

static int set_hex(json_t *object, const char *name, const uint8_t *byte, size_t size)
{
    char text[2 * crypto_sign_BYTES + 1];
    REQUIRE(2 * size + 1 <= sizeof text);
    sodium_bin2hex(text, sizeof text, byte, size);
    return json_object_set_new(object, name, json_string(text));
}

static int set_num(json_t *object, const char *name, double value)
{
    char text[64];
    snprintf(text, sizeof text, "%a", value);
    return json_object_set_new(object, name, json_string(text));
}

static int set_int(json_t *object, const char *name, uint64_t value)
{
    REQUIRE(value <= INT64_MAX);
    return json_object_set_new(object, name, json_integer((json_int_t)value));
}

static int set_text(json_t *object, const char *name, const char *value)
{
    for (const char *c = value; c && *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) return -1; /* readers refuse control characters */
    return json_object_set_new(object, name, json_string(value ? value : ""));
}

/* Owns `object` from here on. */
static err seal(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                json_t *object)
{
    struct bytes text = {.max = LEDGER_LINE_BYTES};
    uint8_t message[LEDGER_SIGNED_BYTES], signature[crypto_sign_BYTES];
    struct digest hash = {0};
    err e = ERR_NONE;
    int failed = set_int(object, "line", head->count + 1);
    failed |= set_hex(object, "previous", head->hash.byte, DIGEST_BYTES);
    if (!failed) TRY_OUT(e, json_write(&text, object));
    hash = ledger_hash(text.data, text.size);
    ledger_signed(message, &hash);
    REQUIRE(crypto_sign_detached(signature, NULL, message, sizeof message, key->secret) == 0);
    failed |= set_hex(object, "hash", hash.byte, DIGEST_BYTES);
    failed |= set_hex(object, "signature", signature, sizeof signature);
    if (failed) {
        e = err_make(ERR_MACHINE, "a line of the privacy ledger cannot be made, because a text is "
                                  "not UTF-8 or there is no memory");
        goto out;
    }
    bytes_clear(&text);
    TRY_OUT(e, json_write(&text, object));
    TRY_OUT(e, bytes_append(&text, "\n", 1));
    TRY_OUT(e, bytes_append(line, text.data, text.size));
    head->count++;
    head->hash = hash;
out:
    json_decref(object);
    bytes_close(&text);
    return e;
}

/* The fields that a first line and a plan share. */
static int set_plan(json_t *o, const struct ledger_terms *t)
{
    const struct adaptive *a = &t->adaptive;
    int failed = set_text(o, "job", t->job) || set_text(o, "purpose", t->purpose);
    failed = failed || set_text(o, "method", t->method) || set_text(o, "weights", t->weights);
    failed = failed || set_text(o, "bases", t->bases) || set_num(o, "epsilon", t->epsilon);
    failed = failed || set_num(o, "delta", t->delta) || set_num(o, "noise", t->noise);
    failed = failed || set_num(o, "sampling", t->sampling) || set_num(o, "clip", t->clip);
    failed = failed || set_num(o, "clip_quantile", a->on ? a->quantile : 0);
    failed = failed || set_num(o, "clip_rate", a->on ? a->rate : 0);
    failed = failed || set_num(o, "clip_sigma", a->on ? a->sigma_b : 0);
    failed = failed || set_num(o, "denominator", t->denominator) || set_int(o, "units", t->units);
    failed = failed || set_hex(o, "cohorts", t->cohorts.byte, DIGEST_BYTES);
    failed = failed || set_hex(o, "given", t->given.byte, DIGEST_BYTES);
    failed = failed || set_int(o, "dim", t->dim) || set_int(o, "rounds", t->rounds);
    return failed || set_int(o, "steps", t->steps);
}

err ledger_start(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                 const struct ledger_terms *t)
{
    json_t *o = json_object();
    REQUIRE(head->count == 0);
    int failed = !o || set_text(o, "kind", "start") || set_int(o, "version", LEDGER_VERSION);
    failed = failed || set_text(o, "party", t->party) || set_plan(o, t);
    failed = failed || set_text(o, "unit", t->unit == LEDGER_CLIENT ? "client" : "example");
    failed = failed || set_hex(o, "key", key->public, sizeof key->public);
    if (t->simulated) failed = failed || json_object_set_new(o, "simulated", json_true());
    if (!failed) return seal(line, head, key, o);
    json_decref(o);
    return err_make(
        ERR_MACHINE,
        "the privacy ledger's first line: a text is not UTF-8, or has a control character");
}

err ledger_plan(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const struct ledger_terms *t)
{
    json_t *o = json_object();
    REQUIRE(head->count > 0);
    if (o && !set_text(o, "kind", "plan") && !set_plan(o, t)) return seal(line, head, key, o);
    json_decref(o);
    return err_make(
        ERR_MACHINE,
        "a plan in the privacy ledger: a text is not UTF-8, or has a control character");
}

bool ledger_same_plan(const struct ledger_terms *was, const struct ledger_terms *is)
{
    const struct adaptive *a = &was->adaptive, *b = &is->adaptive;
    return !strcmp(was->job, is->job) && !strcmp(was->purpose, is->purpose) &&
           !strcmp(was->method, is->method) && !strcmp(was->weights, is->weights) &&
           !strcmp(was->bases, is->bases) && was->epsilon == is->epsilon &&
           was->delta == is->delta && was->noise == is->noise && was->sampling == is->sampling &&
           was->clip == is->clip && a->on == b->on &&
           (!a->on ||
            (a->quantile == b->quantile && a->rate == b->rate && a->sigma_b == b->sigma_b)) &&
           was->denominator == is->denominator && digest_equal(&was->cohorts, &is->cohorts) &&
           digest_equal(&was->given, &is->given) && was->units == is->units &&
           was->dim >= is->dim && was->rounds == is->rounds && was->steps == is->steps;
}

err ledger_add(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
               const struct ledger_release *r)
{
    json_t *o = json_object();
    REQUIRE(head->count > 0 && r->charged.count > 0);
    int failed = !o || set_text(o, "kind", "release") || set_int(o, "round", r->round);
    failed = failed || set_text(o, "mechanism",
                                r->charged.mechanism == ACCOUNT_GAUSSIAN ? "poisson_gaussian"
                                                                         : "fixed_size_gaussian");
    failed = failed || set_num(o, "noise", r->charged.noise);
    failed = failed || set_num(o, "sampling", r->charged.sampling);
    failed = failed || set_int(o, "count", r->charged.count) || set_num(o, "clip", r->clip);
    failed = failed || set_int(o, "sigma", r->sigma) || set_int(o, "sigma_bits", r->sigma_bits);
    failed = failed || set_num(o, "denominator", r->denominator) || set_int(o, "dim", r->dim);
    failed = failed || set_hex(o, "released", r->released.byte, DIGEST_BYTES);
    failed = failed || set_num(o, "epsilon", r->epsilon) || set_num(o, "rdp", r->rdp);
    failed = failed || set_num(o, "order", r->order);
    if (!failed) return seal(line, head, key, o);
    json_decref(o);
    return err_make(ERR_MACHINE, "no memory for a line of the privacy ledger");
}

err ledger_note(struct bytes *line, struct ledger_head *head, const struct ledger_key *key,
                const char *kind, const char *text)
{
    json_t *o = json_object();
    REQUIRE(head->count > 0 && strcmp(kind, "start") != 0 && strcmp(kind, "release") != 0 &&
            strcmp(kind, "plan") != 0);
    if (o && !set_text(o, "kind", kind) && !set_text(o, "text", text))
        return seal(line, head, key, o);
    json_decref(o);
    return err_make(ERR_MACHINE, "a note in the privacy ledger: the text is not UTF-8");
}

err ledger_check_simulated(const struct ledger *ledger, bool simulated, const char *name)
{
    if (ledger->terms.simulated == simulated) return ERR_NONE;
    return err_make(ERR_INPUT,
                    simulated ? "%s: is a real ledger, which a simulation must not touch"
                              : "%s: is the ledger of a simulation, which protects no "
                                "records; create a new one",
                    name);
}
