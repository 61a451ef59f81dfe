#include "lineage/manifest.h"

#include "base/file.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char domain[19] = "fedlora manifest 1"; /* with its zero */
enum {
    SIGNED_BYTES = sizeof domain + DIGEST_BYTES,
    PART_BYTES_MAX = 16 << 20, /* one round, one update, or all descriptions of software */
    MANIFEST_BYTES_MAX = 1 << 30,
};

static err no_memory(void)
{
    return err_make(ERR_MACHINE, "no memory for a manifest");
}

/* ---- writing ---- */

/* Everything between the outermost braces is hashed while it is written, so that the whole is never
 * in memory. */
static err add_text(struct bytes *out, struct manifest_writer *w, const char *text)
{
    digest_add(&w->hash, text, strlen(text));
    return bytes_append(out, text, strlen(text));
}

/* Owns `value`. With `open` the last character, a bracket, is left out: more follows inside. */
static err add_value(struct bytes *out, struct manifest_writer *w, json_t *value, size_t open)
{
    struct bytes text = {.max = PART_BYTES_MAX};
    err e = value ? json_write(&text, value) : no_memory();
    json_decref(value);
    if (!err_is(e)) {
        REQUIRE(text.size > open);
        digest_add(&w->hash, text.data, text.size - open);
        e = bytes_append(out, text.data, text.size - open);
    }
    bytes_close(&text);
    return e;
}

/* The keys of the document are in the order of canonical JSON: about, rounds, software. */
err manifest_begin(struct bytes *out, struct manifest_writer *w, json_t *about)
{
    *w = (struct manifest_writer){.software = json_object()};
    digest_begin(&w->hash);
    digest_add(&w->hash, domain, sizeof domain);
    err e = about && w->software ? bytes_append(out, "{\"manifest\":", 12) : no_memory();
    if (err_is(e)) {
        json_decref(about);
        return e;
    }
    e = add_text(out, w, "{\"about\":");
    TRY(add_value(out, w, about, 0));
    TRY(e);
    return add_text(out, w, ",\"rounds\":[");
}

/* "" for a text that is not known, else its digest. */
static err note_software(char name[DIGEST_TEXT_BYTES], struct manifest_writer *w, const char *text)
{
    *name = 0;
    if (!text || !*text) return ERR_NONE;
    struct digest digest = digest_of(text, strlen(text));
    digest_text(name, &digest);
    if (json_object_get(w->software, name)) return ERR_NONE;
    return json_object_set_new(w->software, name, json_string(text)) == 0 ? ERR_NONE : no_memory();
}

static err end_round(struct bytes *out, struct manifest_writer *w)
{
    return w->any_round ? add_text(out, w, "]}") : ERR_NONE;
}

/* "updates" is the last key of a round, so its list can stay open. */
err manifest_round(struct bytes *out, struct manifest_writer *w, const struct manifest_round *r)
{
    char state[DIGEST_TEXT_BYTES], config[DIGEST_TEXT_BYTES] = "", software[DIGEST_TEXT_BYTES];
    TRY(end_round(out, w));
    if (w->any_round) TRY(add_text(out, w, ","));
    digest_text(state, &r->state);
    if (r->config) digest_text(config, r->config);
    TRY(note_software(software, w, r->software));
    w->any_round = true;
    w->any_update = false;
    return add_value(out, w,
                     json_pack("{s:s, s:I, s:I, s:s, s:s, s:I, s:[]}", "config", config, "counted",
                               (json_int_t)r->updates, "round", (json_int_t)r->round, "software",
                               software, "state", state, "state_bytes", (json_int_t)r->state_bytes,
                               "updates"),
                     /*open*/ 2);
}

/* Weights are written with 17 digits, which give the same number back. */
err manifest_update(struct bytes *out, struct manifest_writer *w, const struct manifest_update *u)
{
    char digest[DIGEST_TEXT_BYTES], software[DIGEST_TEXT_BYTES];
    REQUIRE(w->any_round);
    digest_text(digest, &u->digest);
    TRY(note_software(software, w, u->software));
    if (w->any_update) TRY(add_text(out, w, ","));
    w->any_update = true;
    return add_value(out, w,
                     json_pack("{s:I, s:s, s:I, s:s, s:s, s:I, s:f}", "bytes", (json_int_t)u->bytes,
                               "digest", digest, "examples", (json_int_t)u->examples, "member",
                               u->member, "software", software, "trained_round",
                               (json_int_t)u->trained_round, "weight",
                               isfinite(u->weight) ? u->weight : 0.0),
                     /*open*/ 0);
}

static void make_signed(uint8_t out[SIGNED_BYTES], const struct digest *hash)
{
    memcpy(out, domain, sizeof domain);
    memcpy(out + sizeof domain, hash->byte, DIGEST_BYTES);
}

/* The descriptions come last, because only now all of them are known. */
err manifest_end(struct bytes *out, struct manifest_writer *w, const struct ledger_key *key)
{
    uint8_t message[SIGNED_BYTES], signature[crypto_sign_BYTES];
    char hash_text[DIGEST_TEXT_BYTES], public[2 * 32 + 1], value[2 * crypto_sign_BYTES + 1];
    json_t *software = w->software;
    w->software = NULL;
    err e = end_round(out, w);
    if (!err_is(e)) e = add_text(out, w, "],\"software\":");
    if (err_is(e)) {
        json_decref(software);
        return e;
    }
    TRY(add_value(out, w, software, 0));
    TRY(add_text(out, w, "}"));
    struct digest hash = digest_end(&w->hash);
    make_signed(message, &hash);
    REQUIRE(crypto_sign_detached(signature, NULL, message, sizeof message, key->secret) == 0);
    digest_text(hash_text, &hash);
    sodium_bin2hex(public, sizeof public, key->public, sizeof key->public);
    sodium_bin2hex(value, sizeof value, signature, sizeof signature);
    return bytes_printf(out, ",\"signature\":{\"hash\":\"%s\",\"key\":\"%s\",\"value\":\"%s\"}}\n",
                        hash_text, public, value);
}

void manifest_close(struct manifest_writer *w)
{
    json_decref(w->software);
    *w = (struct manifest_writer){0};
}

/* ---- reading ---- */

static err get_hex(uint8_t *out, size_t size, const json_t *object, const char *key,
                   const char *path)
{
    const char *text = NULL;
    size_t got = 0;
    TRY(json_get_str(&text, object, key, path));
    if (strlen(text) != 2 * size ||
        sodium_hex2bin(out, size, text, 2 * size, NULL, &got, NULL) != 0 || got != size)
        return err_make(ERR_INPUT, "%s: signature.%s: expected %zu hexadecimal digits", path, key,
                        2 * size);
    return ERR_NONE;
}

/* The key first: with a wrong key nothing else that this file says matters. */
static err check_signature(const json_t *document, const char *path, const uint8_t key[32])
{
    uint8_t stated[DIGEST_BYTES], value[crypto_sign_BYTES], public[32], message[SIGNED_BYTES];
    const json_t *manifest = json_object_get(document, "manifest");
    const json_t *signature = json_object_get(document, "signature");
    struct bytes text = {.max = MANIFEST_BYTES_MAX};
    if (!json_is_object(manifest) || !json_is_object(signature))
        return err_make(ERR_INPUT, "%s: is not a manifest of fedlora run export", path);
    TRY(get_hex(stated, sizeof stated, signature, "hash", path));
    TRY(get_hex(public, sizeof public, signature, "key", path));
    TRY(get_hex(value, sizeof value, signature, "value", path));
    if (memcmp(public, key, sizeof public) != 0)
        return err_make(ERR_INPUT, "%s: is signed by another key than the one given", path);
    err e = json_write(&text, manifest);
    if (err_is(e)) return err_in(e, "%s", path);
    struct digest hash = digest_of_in(domain, sizeof domain, text.data, text.size);
    bytes_close(&text);
    if (memcmp(hash.byte, stated, DIGEST_BYTES) != 0)
        return err_make(ERR_INPUT, "%s: was changed: its content has another hash than was signed",
                        path);
    make_signed(message, &hash);
    if (crypto_sign_verify_detached(value, message, sizeof message, key) != 0)
        return err_make(ERR_INPUT, "%s: the signature is wrong", path);
    return ERR_NONE;
}

/* Another text of the same values (0.1 for 0.10000000000000001) is not from a coordinator. */
static err check_form(const json_t *document, const struct file_map *map, const char *path)
{
    struct bytes text = {.max = MANIFEST_BYTES_MAX};
    err e = json_write(&text, document);
    if (!err_is(e)) e = bytes_append(&text, "\n", 1);
    if (!err_is(e) && (text.size != map->size || memcmp(text.data, map->data, map->size) != 0))
        e = err_make(ERR_INPUT, "%s: was changed: it is not in the form of a manifest", path);
    bytes_close(&text);
    return e;
}

err manifest_read(json_t **out, const char *path, const uint8_t key[32])
{
    json_t *document = NULL;
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    err e =
        map.size > MANIFEST_BYTES_MAX
            ? err_make(ERR_INPUT, "%s: %zu bytes, at most %d", path, map.size, MANIFEST_BYTES_MAX)
            : json_parse(&document, (const char *)map.data, map.size, path);
    if (!err_is(e)) e = check_signature(document, path, key);
    if (!err_is(e)) e = check_form(document, &map, path);
    if (!err_is(e)) *out = json_incref(json_object_get(document, "manifest"));
    json_decref(document);
    file_map_close(&map);
    return e;
}

/* ---- comparing ---- */

struct comparing {
    void (*differs)(void *context, const char *text);
    void *context;
    size_t count;
};

__attribute__((format(printf, 2, 3))) static void differ(struct comparing *c, const char *format,
                                                         ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    c->count++;
    c->differs(c->context, text);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* A state that says nothing of a field does not contradict the manifest. */
static void compare_text(struct comparing *c, const json_t *about, const char *key, const char *is)
{
    const char *stated = text_of(about, key);
    if (is && strcmp(is, stated) != 0)
        differ(c, "%s: the state has \"%.128s\", the manifest \"%.128s\"", key, is, stated);
}

/* An older or newer state of the run is said to be one. */
static void compare_digest(struct comparing *c, const json_t *manifest, const struct digest *digest)
{
    const json_t *about = json_object_get(manifest, "about"), *round;
    char is[DIGEST_TEXT_BYTES];
    size_t i;
    digest_text(is, digest);
    if (!strcmp(is, text_of(about, "state"))) return;
    json_array_foreach(json_object_get(manifest, "rounds"), i, round)
    {
        if (strcmp(text_of(round, "state"), is) != 0) continue;
        differ(c,
               "digest: this is the state of round %" JSON_INTEGER_FORMAT
               ", the manifest is about round %" JSON_INTEGER_FORMAT,
               json_integer_value(json_object_get(round, "round")),
               json_integer_value(json_object_get(about, "published")));
        return;
    }
    differ(c, "digest: the state has %s, the manifest %s", is, text_of(about, "state"));
}

/* The signature covers these lists, so a contradiction is a fault of the coordinator, for example a
 * store that has lost rows. */
static void check_rounds(struct comparing *c, const json_t *manifest)
{
    const json_t *about = json_object_get(manifest, "about"), *round, *last = NULL;
    const json_t *rounds = json_object_get(manifest, "rounds");
    bool withheld = *text_of(about, "withheld");
    json_int_t first = json_integer_value(json_object_get(json_array_get(rounds, 0), "round"));
    size_t i;
    json_array_foreach(rounds, i, round)
    {
        json_int_t number = json_integer_value(json_object_get(round, "round"));
        json_int_t counted = json_integer_value(json_object_get(round, "counted"));
        size_t listed = json_array_size(json_object_get(round, "updates"));
        if (number != first + (json_int_t)i)
            differ(c, "rounds: round %" JSON_INTEGER_FORMAT " is missing", first + (json_int_t)i);
        bool recorded = *text_of(round, "software") && !withheld;
        if (recorded && (json_int_t)listed != counted)
            differ(c,
                   "round %" JSON_INTEGER_FORMAT ": %zu updates are listed, %" JSON_INTEGER_FORMAT
                   " were counted",
                   number, listed, counted);
        last = round;
    }
    if (!last || strcmp(text_of(last, "state"), text_of(about, "state")) != 0)
        differ(c, "rounds: the last one has another state than the manifest is about");
}

size_t manifest_compare(const json_t *manifest, const struct manifest_state *state,
                        void (*differs)(void *context, const char *text), void *context)
{
    struct comparing c = {.differs = differs, .context = context};
    const json_t *about = json_object_get(manifest, "about");
    compare_digest(&c, manifest, &state->digest);
    compare_text(&c, about, "run", state->run);
    compare_text(&c, about, "method", state->method);
    compare_text(&c, about, "base", state->base);
    compare_text(&c, about, "frozen", state->frozen);
    check_rounds(&c, manifest);
    return c.count;
}
