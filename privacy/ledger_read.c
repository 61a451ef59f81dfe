/* Reading: a line must be byte for byte what a writer would have written of its content, follow the
 * line before it, and bear the signature of the key that the first line names. */
#include "privacy/ledger_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINES_MAX = 1 << 20 };

struct reading {
    struct ledger *out;
    const char *name;
    size_t line;    /* from 1 */
    json_t *object; /* of this line */
};

static err wrong(const struct reading *r, const char *what)
{
    return err_make(ERR_INPUT, "%s:%zu: %s", r->name, r->line, what);
}

static err get_text(const char **out, const struct reading *r, const char *key)
{
    const char *text = NULL;
    TRY(json_get_str(&text, r->object, key, ""));
    return arena_text(out, &r->out->arena, text, strlen(text));
}

static err get_int(uint64_t *out, const struct reading *r, const char *key)
{
    int64_t value = 0;
    TRY(json_get_int(&value, r->object, key, 0, INT64_MAX, ""));
    *out = (uint64_t)value;
    return ERR_NONE;
}

static err get_u32(uint32_t *out, const struct reading *r, const char *key)
{
    int64_t value = 0;
    TRY(json_get_int(&value, r->object, key, 0, UINT32_MAX, ""));
    *out = (uint32_t)value;
    return ERR_NONE;
}

/* Only the text that a writer makes of the number. */
static err get_num(double *out, const struct reading *r, const char *key)
{
    const char *text = NULL;
    char again[64], *end = NULL;
    TRY(json_get_str(&text, r->object, key, ""));
    double value = strtod(text, &end);
    snprintf(again, sizeof again, "%a", value);
    if (end == text || *end || !isfinite(value) || strcmp(text, again) != 0)
        return err_make(ERR_INPUT, "%s: expected a hexadecimal number such as 0x1p-1", key);
    *out = value;
    return ERR_NONE;
}

/* Lower case only, as it is written: hash and signature are not part of what is hashed. */
static err get_hex(uint8_t *out, size_t size, const struct reading *r, const char *key)
{
    const char *text = NULL;
    char again[2 * crypto_sign_BYTES + 1];
    size_t got = 0;
    REQUIRE(size <= crypto_sign_BYTES);
    TRY(json_get_str(&text, r->object, key, ""));
    bool good = strlen(text) == 2 * size &&
                sodium_hex2bin(out, size, text, 2 * size, NULL, &got, NULL) == 0 && got == size;
    if (good) sodium_bin2hex(again, sizeof again, out, size);
    if (!good || strcmp(text, again) != 0)
        return err_make(ERR_INPUT, "%s: expected %zu hexadecimal digits", key, 2 * size);
    return ERR_NONE;
}

static err read_start(struct reading *r)
{
    struct ledger_terms *t = &r->out->terms;
    const char *unit = "";
    uint64_t version = 0;
    TRY(get_int(&version, r, "version"));
    if (version != LEDGER_VERSION)
        return err_make(ERR_INPUT, "version %llu: this program reads %d",
                        (unsigned long long)version, LEDGER_VERSION);
    TRY(get_text(&t->job, r, "job"));
    TRY(get_text(&t->party, r, "party"));
    TRY(get_text(&unit, r, "unit"));
    if (strcmp(unit, "client") && strcmp(unit, "example"))
        return err_make(ERR_INPUT, "unit: expected client or example");
    t->unit = strcmp(unit, "client") ? LEDGER_EXAMPLE : LEDGER_CLIENT;
    TRY(get_text(&t->method, r, "method"));
    TRY(get_text(&t->weights, r, "weights"));
    TRY(get_text(&t->bases, r, "bases"));
    TRY(get_num(&t->epsilon, r, "epsilon"));
    TRY(get_num(&t->delta, r, "delta"));
    TRY(get_num(&t->noise, r, "noise"));
    TRY(get_num(&t->sampling, r, "sampling"));
    TRY(get_num(&t->clip, r, "clip"));
    TRY(get_num(&t->adaptive.quantile, r, "clip_quantile"));
    TRY(get_num(&t->adaptive.rate, r, "clip_rate"));
    TRY(get_num(&t->adaptive.sigma_b, r, "clip_sigma"));
    t->adaptive.on = t->adaptive.sigma_b > 0;
    TRY(get_num(&t->denominator, r, "denominator"));
    TRY(get_int(&t->units, r, "units"));
    TRY(get_int(&t->dim, r, "dim"));
    TRY(get_u32(&t->rounds, r, "rounds"));
    TRY(get_u32(&t->steps, r, "steps"));
    return get_hex(r->out->public, 32, r, "key");
}

static err read_release(struct ledger_release *out, struct reading *r)
{
    const char *mechanism = "";
    TRY(get_text(&mechanism, r, "mechanism"));
    if (strcmp(mechanism, "poisson_gaussian") && strcmp(mechanism, "fixed_size_gaussian"))
        return err_make(ERR_INPUT,
                        "mechanism %.40s: not one of poisson_gaussian, "
                        "fixed_size_gaussian",
                        mechanism);
    out->charged.mechanism = mechanism[0] == 'p' ? ACCOUNT_GAUSSIAN : ACCOUNT_FIXED_SIZE;
    TRY(get_u32(&out->round, r, "round"));
    TRY(get_num(&out->charged.noise, r, "noise"));
    TRY(get_num(&out->charged.sampling, r, "sampling"));
    TRY(get_int(&out->charged.count, r, "count"));
    TRY(get_num(&out->clip, r, "clip"));
    TRY(get_int(&out->sigma, r, "sigma"));
    TRY(get_int(&out->sigma_bits, r, "sigma_bits"));
    TRY(get_num(&out->denominator, r, "denominator"));
    TRY(get_int(&out->dim, r, "dim"));
    TRY(get_hex(out->released.byte, DIGEST_BYTES, r, "released"));
    TRY(get_hex(out->commitment.byte, DIGEST_BYTES, r, "commitment"));
    TRY(get_num(&out->epsilon, r, "epsilon"));
    TRY(get_num(&out->rdp, r, "rdp"));
    return get_num(&out->order, r, "order");
}

static err read_content(struct reading *r)
{
    struct ledger_entry entry = {0};
    TRY(get_text(&entry.kind, r, "kind"));
    bool start = !strcmp(entry.kind, "start");
    if (start != (r->line == 1))
        return err_make(ERR_INPUT,
                        start ? "a second start" : "expected the first line to be a start");
    if (start) return read_start(r);
    if (!strcmp(entry.kind, "release"))
        TRY(read_release(&entry.release, r));
    else
        TRY(get_text(&entry.text, r, "text"));
    r->out->entry[r->out->count++] = entry;
    return ERR_NONE;
}

/* The line as a writer would have it, without and with its hash and signature. */
static err check_bytes(struct digest *hash, struct reading *r, const char *text, size_t size)
{
    struct bytes again = {.max = LEDGER_LINE_BYTES};
    struct digest written;
    err e = ERR_NONE;
    TRY(get_hex(written.byte, DIGEST_BYTES, r, "hash"));
    TRY_OUT(e, json_write(&again, r->object));
    bool same = again.size == size && memcmp(again.data, text, size) == 0;
    json_object_del(r->object, "hash");
    json_object_del(r->object, "signature");
    bytes_clear(&again);
    TRY_OUT(e, json_write(&again, r->object));
    *hash = ledger_hash(again.data, again.size);
    if (!same)
        e = err_make(ERR_INPUT, "not as a ledger is written (keys in order, no spaces)");
    else if (!digest_equal(hash, &written))
        e = err_make(ERR_INPUT, "the line was changed: its hash is not that of its content");
out:
    bytes_close(&again);
    return e;
}

static err read_line(struct reading *r, const char *text, size_t size)
{
    struct ledger_head *head = &r->out->head;
    uint8_t signature[crypto_sign_BYTES], message[LEDGER_SIGNED_BYTES];
    struct digest previous, hash;
    uint64_t number = 0;
    TRY(get_hex(signature, sizeof signature, r, "signature"));
    TRY(check_bytes(&hash, r, text, size));
    TRY(get_int(&number, r, "line"));
    TRY(get_hex(previous.byte, DIGEST_BYTES, r, "previous"));
    if (number != r->line || !digest_equal(&previous, &head->hash))
        return err_make(ERR_INPUT,
                        "does not follow the line before it: lines are missing or moved");
    TRY(read_content(r));
    ledger_signed(message, &hash);
    if (crypto_sign_verify_detached(signature, message, sizeof message, r->out->public) != 0)
        return err_make(ERR_INPUT, "the signature is not of the key that the first line names");
    *head = (struct ledger_head){r->line, hash};
    return ERR_NONE;
}

static err read_lines(struct reading *r, const char *text, size_t size)
{
    const char *end = text + size;
    for (r->line = 1; text < end; r->line++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        if (!stop) return wrong(r, "no newline at the end: the line was cut off");
        size_t length = (size_t)(stop - text);
        if (length > LEDGER_LINE_BYTES || r->line > LINES_MAX) return wrong(r, "too long");
        r->object = NULL;
        err e = json_parse(&r->object, text, length, r->name);
        if (err_is(e)) return wrong(r, "not a JSON object");
        e = json_is_object(r->object) ? read_line(r, text, length)
                                      : err_make(ERR_INPUT, "not a JSON object");
        json_decref(r->object);
        if (err_is(e)) return err_in(e, "%s:%zu", r->name, r->line);
        text = stop + 1;
    }
    return r->out->head.count ? ERR_NONE : wrong(r, "the ledger is empty");
}

err ledger_read(struct ledger *out, const char *text, size_t size, const char *name)
{
    struct ledger ledger = {0};
    struct reading r = {.out = &ledger, .name = name, .line = 1};
    size_t lines = 1;
    REQUIRE(sodium_init() >= 0);
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    err e = arena_take(&ledger.entry, &ledger.arena, lines, sizeof *ledger.entry);
    if (!err_is(e)) e = read_lines(&r, text, size);
    if (err_is(e))
        ledger_close(&ledger);
    else
        *out = ledger;
    return e;
}

void ledger_close(struct ledger *ledger)
{
    arena_close(&ledger->arena);
    *ledger = (struct ledger){0};
}
