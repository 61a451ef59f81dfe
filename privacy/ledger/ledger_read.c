/* Reading a ledger. A line must have exactly the bytes that a writer makes of its content, follow
 * the line before it, and have a signature of the key in the first line. */
#include "privacy/ledger/ledger_parts.h"

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
    for (const char *c = text; *c; c++) /* it will be printed */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return err_make(ERR_INPUT, "%s: has a control character", key);
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

/* Accepts only the text that a writer makes of the number. */
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

/* Lower case only. The byte-for-byte comparison does not cover hash and signature, so this does. */
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

static err read_plan(struct ledger_terms *t, const struct reading *r)
{
    TRY(get_text(&t->job, r, "job"));
    TRY(get_text(&t->purpose, r, "purpose"));
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
    TRY(get_hex(t->cohorts.byte, DIGEST_BYTES, r, "cohorts"));
    TRY(get_hex(t->given.byte, DIGEST_BYTES, r, "given"));
    TRY(get_int(&t->units, r, "units"));
    TRY(get_int(&t->dim, r, "dim"));
    TRY(get_u32(&t->rounds, r, "rounds"));
    return get_u32(&t->steps, r, "steps");
}

static err put_in_force(struct reading *r, const struct ledger_terms *terms)
{
    struct ledger_terms *copy = NULL;
    TRY(arena_take(&copy, &r->out->arena, 1, sizeof *copy));
    *copy = *terms;
    r->out->in_force = copy;
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
    TRY(get_text(&t->party, r, "party"));
    TRY(get_text(&unit, r, "unit"));
    if (strcmp(unit, "client") && strcmp(unit, "example"))
        return err_make(ERR_INPUT, "unit: expected client or example");
    t->unit = strcmp(unit, "client") ? LEDGER_EXAMPLE : LEDGER_CLIENT;
    const json_t *simulated = json_object_get(r->object, "simulated");
    if (simulated && !json_is_true(simulated))
        return err_make(ERR_INPUT, "simulated: expected true, or no such field");
    t->simulated = simulated != NULL;
    TRY(read_plan(t, r));
    TRY(put_in_force(r, t));
    return get_hex(r->out->public, 32, r, "key");
}

static err read_next_plan(struct reading *r)
{
    struct ledger_terms t = {.party = r->out->terms.party,
                             .unit = r->out->terms.unit,
                             .simulated = r->out->terms.simulated};
    TRY(read_plan(&t, r));
    return put_in_force(r, &t);
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
    else if (!strcmp(entry.kind, "plan"))
        TRY(read_next_plan(r));
    else
        TRY(get_text(&entry.text, r, "text"));
    entry.terms = r->out->in_force;
    r->out->entry[r->out->count++] = entry;
    return ERR_NONE;
}

/* Makes the line as a writer would, without and with hash and signature, and compares. */
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
        e = err_make(ERR_INPUT, "not in the form of a ledger (keys in order, no spaces)");
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
    const char *end = size ? text + size : text; /* an empty text may be NULL */
    for (r->line = r->out->head.count + 1; text < end; r->line++) {
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

static err make_room(struct ledger *ledger, const char *text, size_t size)
{
    struct ledger_entry *entry = NULL;
    size_t lines = 1;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    TRY(arena_take(&entry, &ledger->arena, ledger->count + lines, sizeof *entry));
    if (ledger->count) memcpy(entry, ledger->entry, ledger->count * sizeof *entry);
    ledger->entry = entry;
    return ERR_NONE;
}

err ledger_read_more(struct ledger *ledger, const char *text, size_t size, const char *name)
{
    struct reading r = {.out = ledger, .name = name, .line = ledger->head.count + 1};
    struct ledger was;
    REQUIRE(sodium_init() >= 0);
    err e = make_room(ledger, text, size);
    was = *ledger;
    if (!err_is(e)) e = read_lines(&r, text, size);
    if (!err_is(e)) return e;
    was.arena = ledger->arena; /* the array may have moved */
    *ledger = was;
    return e;
}

err ledger_read(struct ledger *out, const char *text, size_t size, const char *name)
{
    struct ledger ledger = {0};
    err e = ledger_read_more(&ledger, text, size, name);
    if (err_is(e))
        ledger_close(&ledger);
    else
        *out = ledger;
    return e;
}

static err copy_text(const char **text, struct arena *arena)
{
    return arena_text(text, arena, *text, strlen(*text));
}

static err copy_terms(struct ledger_terms *t, struct arena *arena)
{
    const char **text[] = {&t->job, &t->party, &t->purpose, &t->method, &t->weights, &t->bases};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        TRY(copy_text(text[i], arena));
    return ERR_NONE;
}

err ledger_forget(struct ledger *ledger)
{
    struct ledger kept = *ledger;
    struct ledger_terms *in_force = NULL;
    kept.arena = (struct arena){0};
    kept.entry = NULL;
    kept.count = 0;
    err e = arena_take(&in_force, &kept.arena, 1, sizeof *in_force);
    if (!err_is(e)) {
        *in_force = *ledger->in_force;
        e = copy_terms(in_force, &kept.arena);
    }
    if (!err_is(e)) e = copy_terms(&kept.terms, &kept.arena);
    kept.in_force = in_force;
    if (err_is(e)) {
        arena_close(&kept.arena);
        return e;
    }
    arena_close(&ledger->arena);
    *ledger = kept;
    return ERR_NONE;
}

void ledger_close(struct ledger *ledger)
{
    arena_close(&ledger->arena);
    *ledger = (struct ledger){0};
}

err ledger_line_hash(struct digest *out, const char *line, size_t size, const char *name)
{
    json_t *object = NULL;
    const char *hash = NULL;
    TRY(json_parse(&object, line, size, name));
    err e = json_get_str(&hash, object, "hash", name);
    if (!err_is(e)) e = digest_parse(out, hash);
    json_decref(object);
    return e;
}
