#include "lineage/audit_line.h"

#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char domain[16] = "fedlora audit 1"; /* with its zero */
enum { SIGNED_BYTES = sizeof domain + DIGEST_BYTES };

static void make_signed(uint8_t out[SIGNED_BYTES], const struct digest *hash)
{
    memcpy(out, domain, sizeof domain);
    memcpy(out + sizeof domain, hash->byte, DIGEST_BYTES);
}

/* The domain keeps a hash or signature of another kind of file from being passed off as one of
 * these. */
static struct digest hash_of(const void *text, size_t size)
{
    return digest_of_in(domain, sizeof domain, text, size);
}

/* ---- times and files ---- */

/* Of fixed width and in UTC, so that texts sort like times and no zone has to be known. */
void audit_line_time(char out[AUDIT_LINE_TIME_BYTES], uint64_t time_ms)
{
    char text[64] = "";
    struct tm tm = {0};
    time_t seconds = (time_t)(time_ms / 1000);
    gmtime_r(&seconds, &tm);
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + n, sizeof text - n, ".%03uZ", (unsigned)(time_ms % 1000));
    snprintf(out, AUDIT_LINE_TIME_BYTES, "%.*s", AUDIT_LINE_TIME_BYTES - 1, text);
}

void audit_line_file(char out[AUDIT_LINE_FILE_BYTES], uint64_t time_ms)
{
    char time[AUDIT_LINE_TIME_BYTES];
    audit_line_time(time, time_ms);
    snprintf(out, AUDIT_LINE_FILE_BYTES, "%.7s.jsonl", time);
}

/* Only these names are read, so that keys and editors' copies in the folder do no harm. */
bool audit_line_is_file(const char *name)
{
    static const char form[] = "dddd-dd.jsonl";
    if (strlen(name) != strlen(form)) return false;
    for (size_t i = 0; form[i]; i++)
        if (form[i] == 'd' ? name[i] < '0' || name[i] > '9' : name[i] != form[i]) return false;
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

enum { FILES_MAX = 12 * 200 };
err audit_line_files(char (**out)[AUDIT_LINE_FILE_BYTES], size_t *count, const char *dir,
                     struct arena *arena)
{
    char(*file)[AUDIT_LINE_FILE_BYTES] = NULL;
    size_t n = 0;
    TRY(arena_take(&file, arena, FILES_MAX, sizeof *file));
    DIR *d = opendir(dir);
    if (!d && errno != ENOENT) return err_sys(errno, "%s", dir);
    for (const struct dirent *entry; d && (entry = readdir(d)) && n < FILES_MAX;)
        if (audit_line_is_file(entry->d_name))
            snprintf(file[n++], sizeof *file, "%.*s", (int)sizeof *file - 1, entry->d_name);
    if (d) closedir(d);
    qsort(file, n, sizeof *file, by_name);
    *out = file;
    *count = n;
    return ERR_NONE;
}

/* ---- writing ---- */

/* Texts come from peers as well: a line must stay one line of UTF-8, whatever they send. */
static int set_text(json_t *object, const char *key, const char *value)
{
    char text[AUDIT_LINE_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", value ? value : "");
    size_t size = strlen(text);
    bool cut = value && value[size];
    while (cut && size && ((unsigned char)text[size - 1] & 0x80)) /* no half of a character */
        size--;
    text[size] = 0;
    text_tame(text);
    return json_object_set_new(object, key, json_string(text));
}

/* JSON has no infinity, and a number that is not finite must not cost the line. */
static int set_field(json_t *object, const struct log_field *f)
{
    if (f->kind == LOG_FIELD_INT)
        return json_object_set_new(object, f->key, json_integer(f->integer));
    if (f->kind == LOG_FIELD_NUM && isfinite(f->num))
        return json_object_set_new(object, f->key, json_real(f->num));
    return set_text(object, f->key, f->kind == LOG_FIELD_STR ? f->str : "not a finite number");
}

static int set_hex(json_t *object, const char *key, const uint8_t *byte, size_t size)
{
    char text[2 * crypto_sign_BYTES + 1];
    REQUIRE(2 * size < sizeof text);
    sodium_bin2hex(text, sizeof text, byte, size);
    return json_object_set_new(object, key, json_string(text));
}

/* All fields are there in every line, also if they are empty, so that a reader needs no rules. */
static int fill(json_t *o, json_t *detail, const struct audit_line *l,
                const struct audit_line_head *head)
{
    char time[AUDIT_LINE_TIME_BYTES];
    json_t *actor = json_object();
    int failed = !actor || set_text(actor, "role", l->role) || set_text(actor, "id", l->id);
    failed = failed || set_text(actor, "serial", l->serial);
    failed = failed || set_text(actor, "address", l->address);
    failed |= json_object_set_new(o, "actor", actor);
    for (size_t i = 0; i < l->details && !failed; i++)
        failed = set_field(detail, &l->detail[i]);
    audit_line_time(time, l->time_ms);
    failed = failed || set_text(o, "action", l->action) || set_text(o, "object", l->object);
    failed = failed || set_text(o, "outcome", l->outcome) || set_text(o, "time", time);
    failed = failed || json_object_set_new(o, "seq", json_integer((json_int_t)head->seq + 1));
    return failed || set_hex(o, "prev", head->hash.byte, DIGEST_BYTES);
}

/* The hash does not cover itself, and a signature is added after it, so both are left out of it. */
static int seal(json_t *o, const struct digest *hash, const struct ledger_key *key)
{
    uint8_t message[SIGNED_BYTES], signature[crypto_sign_BYTES];
    if (set_hex(o, "hash", hash->byte, DIGEST_BYTES)) return -1;
    if (!key) return 0;
    make_signed(message, hash);
    REQUIRE(crypto_sign_detached(signature, NULL, message, sizeof message, key->secret) == 0);
    return set_hex(o, "signature", signature, sizeof signature);
}

/* Written twice: the text without the hash is hashed, and then the one with it is kept. */
err audit_line_make(struct bytes *out, struct audit_line_head *head, const struct audit_line *line,
                    const struct ledger_key *key)
{
    struct bytes text = {.max = AUDIT_LINE_BYTES};
    struct audit_line l = *line;
    struct digest hash = {0};
    json_t *o = json_object(), *detail = json_object();
    err e = ERR_NONE;
    REQUIRE(line->details <= AUDIT_LINE_DETAILS && (key != NULL) == !line->action);
    if (key) l.action = AUDIT_LINE_HEAD;
    int failed = !o || !detail || fill(o, detail, &l, head);
    if (!failed && key) failed = set_hex(detail, "key", key->public, sizeof key->public);
    if (!failed) failed = json_object_set(o, "detail", detail);
    if (!failed) TRY_OUT(e, json_write(&text, o));
    hash = hash_of(text.data, text.size);
    if (failed || seal(o, &hash, key)) {
        e = err_make(ERR_MACHINE, "no memory for a line of the audit log");
        goto out;
    }
    bytes_clear(&text);
    TRY_OUT(e, json_write(&text, o));
    TRY_OUT(e, bytes_append(&text, "\n", 1));
    TRY_OUT(e, bytes_append(out, text.data, text.size));
    *head = (struct audit_line_head){head->seq + 1, hash};
out:
    json_decref(detail);
    json_decref(o);
    bytes_close(&text);
    return e;
}

/* ---- reading ---- */

/* Lower case only: the hash of a line does not cover its fields `hash` and `signature`. */
static err get_hex(uint8_t *out, size_t size, const json_t *object, const char *key)
{
    const char *text = NULL;
    char again[2 * crypto_sign_BYTES + 1] = "";
    size_t got = 0;
    TRY(json_get_str(&text, object, key, "line"));
    if (strlen(text) == 2 * size &&
        sodium_hex2bin(out, size, text, 2 * size, NULL, &got, NULL) == 0 && got == size)
        sodium_bin2hex(again, sizeof again, out, size);
    if (strcmp(text, again) != 0)
        return err_make(ERR_INPUT, "%s: expected %zu hexadecimal digits", key, 2 * size);
    return ERR_NONE;
}

/* The signature of a head by the key that the line names; whether that is the log's key is for the
 * caller to say. */
static err read_signature(struct audit_line_read *out, const json_t *o)
{
    uint8_t message[SIGNED_BYTES], signature[crypto_sign_BYTES];
    const char *action = NULL;
    TRY(json_get_str(&action, o, "action", "line"));
    out->signs = !strcmp(action, AUDIT_LINE_HEAD);
    if (!out->signs && json_object_get(o, "signature"))
        return err_make(ERR_INPUT, "signature: only a head has one");
    if (!out->signs) return ERR_NONE;
    TRY(get_hex(out->key, sizeof out->key, json_object_get(o, "detail"), "key"));
    TRY(get_hex(signature, sizeof signature, o, "signature"));
    make_signed(message, &out->hash);
    out->signature = crypto_sign_verify_detached(signature, message, sizeof message, out->key) == 0;
    return ERR_NONE;
}

/* A line in another form than that of a writer (blanks, other order, a key twice) could be read
 * differently by another program, so it is refused although its content may be the same. */
static err read_object(struct audit_line_read *out, json_t *o, const char *text, size_t size)
{
    struct bytes again = {.max = AUDIT_LINE_BYTES};
    const char *time = NULL;
    int64_t seq = 0;
    TRY(json_get_int(&seq, o, "seq", 1, INT64_MAX, "line"));
    out->seq = (uint64_t)seq;
    TRY(json_get_str(&time, o, "time", "line"));
    snprintf(out->time, sizeof out->time, "%.*s", AUDIT_LINE_TIME_BYTES - 1, time);
    TRY(get_hex(out->prev.byte, DIGEST_BYTES, o, "prev"));
    TRY(get_hex(out->hash.byte, DIGEST_BYTES, o, "hash"));
    TRY(read_signature(out, o));
    err e = json_write(&again, o);
    bool same = !err_is(e) && again.size == size && !memcmp(again.data, text, size);
    json_object_del(o, "hash");
    json_object_del(o, "signature");
    bytes_clear(&again);
    if (!err_is(e)) e = json_write(&again, o);
    if (!err_is(e)) {
        struct digest hash = hash_of(again.data, again.size);
        out->whole = same && digest_equal(&hash, &out->hash);
    }
    bytes_close(&again);
    return e;
}

/* A line that can be read is not yet whole: `out->whole` says whether its hash is right. */
err audit_line_parse(struct audit_line_read *out, const char *text, size_t size)
{
    struct audit_line_read line = {0};
    json_t *o = NULL;
    if (size >= AUDIT_LINE_BYTES) return err_make(ERR_INPUT, "a line of %zu bytes", size);
    TRY(json_parse(&o, text, size, "line"));
    err e = read_object(&line, o, text, size);
    json_decref(o);
    if (!err_is(e)) *out = line;
    return e;
}
