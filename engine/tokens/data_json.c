/* Jansson parses a row as it is if it can. Only if that fails, the members that are not read and
 * that jansson cannot hold are overwritten in a copy of the text, which keeps the columns of later
 * errors right, and the copy is parsed. */
#include "engine/tokens/data_json.h"

#include "base/limits.h"
#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64 };

static const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;

struct scan {
    char *at, *end;
    const struct data_json_known *known;
};

static void skip_space(struct scan *s)
{
    while (s->at < s->end && strchr(" \t\r\n", *s->at) && *s->at)
        s->at++;
}

static bool skip_char(struct scan *s, char c)
{
    skip_space(s);
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool skip_escape(struct scan *s)
{
    if (s->at == s->end || !*s->at || !strchr("\"\\/bfnrtu", *s->at)) return false;
    if (*s->at++ != 'u') return true;
    for (int i = 0; i < 4; i++, s->at++)
        if (s->at == s->end || !isxdigit((unsigned char)*s->at)) return false;
    return true;
}

static bool skip_string(struct scan *s)
{
    if (!skip_char(s, '"')) return false;
    while (s->at < s->end) {
        unsigned char c = (unsigned char)*s->at++;
        if (c == '"') return true;
        if (c < 0x20) return false;
        if (c == '\\' && !skip_escape(s)) return false;
    }
    return false;
}

static bool skip_digits(struct scan *s)
{
    char *begin = s->at;
    while (s->at < s->end && isdigit((unsigned char)*s->at))
        s->at++;
    return s->at > begin;
}

/* The grammar of JSON and not that of strtod(), which would accept "01", "1." and "0x1". */
static bool skip_number(struct scan *s)
{
    if (*s->at == '-') s->at++;
    char *begin = s->at;
    if (!skip_digits(s) || (*begin == '0' && s->at > begin + 1)) return false;
    if (s->at < s->end && *s->at == '.' && (s->at++, !skip_digits(s))) return false;
    if (s->at == s->end || (*s->at != 'e' && *s->at != 'E')) return true;
    s->at++;
    if (s->at < s->end && (*s->at == '+' || *s->at == '-')) s->at++;
    return skip_digits(s);
}

/* NaN and Infinity are no JSON, but Python writes them and other readers of rows accept them. */
static bool skip_scalar(struct scan *s)
{
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    if (s->at == s->end) return false;
    if (*s->at == '"') return skip_string(s);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(s->end - s->at) < n || memcmp(s->at, words[i], n) != 0) continue;
        s->at += n;
        return true;
    }
    return skip_number(s);
}

static bool skip_name(struct scan *s)
{
    return skip_string(s) && skip_char(s, ':');
}

/* A value of any depth up to LIMIT_JSON_DEPTH, without recursion. `object` remembers the kinds of
 * the open brackets. */
static bool skip_value(struct scan *s)
{
    bool object[LIMIT_JSON_DEPTH];
    size_t depth = 0;
    for (;;) {
        skip_space(s);
        if (s->at < s->end && (*s->at == '{' || *s->at == '[')) {
            if (depth == LIMIT_JSON_DEPTH) return false;
            object[depth] = *s->at++ == '{';
            if (!skip_char(s, object[depth] ? '}' : ']')) {
                if (object[depth] && !skip_name(s)) return false;
                depth++;
                continue;
            }
        } else if (!skip_scalar(s)) {
            return false;
        }
        while (depth > 0 && !skip_char(s, ',')) {
            if (!skip_char(s, object[depth - 1] ? '}' : ']')) return false;
            depth--;
        }
        if (depth == 0) return true;
        if (object[depth - 1] && !skip_name(s)) return false;
    }
}

/* Overwrites what jansson cannot hold: the whole value, which is longer than one byte, becomes null
 * or, where that has no room, an empty string. */
static void blank_value(char *begin, char *end)
{
    json_error_t cause;
    json_t *value = json_loadb(begin, (size_t)(end - begin), flags, &cause);
    if (value) {
        json_decref(value);
        return;
    }
    size_t size = (size_t)(end - begin);
    memset(begin, ' ', size);
    memcpy(begin, size < 4 ? "\"\"" : "null", size < 4 ? 2 : 4);
}

/* Jansson has no names with U+0000. */
static void blank_name(char *begin, char *end)
{
    for (char *hit; (hit = memmem(begin, (size_t)(end - begin), "\\u0000", 6)) != NULL;)
        memset(hit, '_', 6);
}

static bool blank_object(struct scan *s, bool (*is_known)(const char *), bool in_messages);

/* The messages of a list. */
static bool blank_list(struct scan *s)
{
    if (!skip_char(s, '[')) return false;
    if (skip_char(s, ']')) return true;
    do {
        skip_space(s);
        if (s->at < s->end && *s->at == '{') {
            if (!blank_object(s, s->known->message, true)) return false;
        } else if (!skip_value(s)) {
            return false;
        }
    } while (skip_char(s, ','));
    return skip_char(s, ']');
}

/* Lists of a row that is known hold messages, or numbers that are read. */
static bool blank_member(struct scan *s, bool (*is_known)(const char *), bool in_messages)
{
    char name[NAME_BYTES] = "", *begin;
    skip_space(s);
    begin = s->at + 1;
    if (!skip_string(s)) return false;
    char *end = s->at - 1;
    size_t size = (size_t)(end - begin);
    if (size < sizeof name) memcpy(name, begin, size);
    if (!skip_char(s, ':')) return false;
    skip_space(s);
    bool known = is_known(name);
    if (known && !in_messages && s->at < s->end && *s->at == '[') return blank_list(s);
    char *value = s->at;
    if (!skip_value(s)) return false;
    if (known) return true;
    blank_name(begin, end);
    blank_value(value, s->at);
    return true;
}

static bool blank_object(struct scan *s, bool (*is_known)(const char *), bool in_messages)
{
    if (!skip_char(s, '{')) return false;
    if (skip_char(s, '}')) return true;
    do
        if (!blank_member(s, is_known, in_messages)) return false;
    while (skip_char(s, ','));
    return skip_char(s, '}');
}

/* NULL if the text cannot be mended; *cause is then that of the first attempt, or, if the text is
 * no JSON at another place, one of that place. */
static json_t *parse_mended(const char *text, size_t size, const struct data_json_known *known,
                            json_error_t *cause)
{
    if (!text_is_utf8(text, size)) return NULL;
    char *copy = malloc(size + 1);
    if (!copy) return NULL;
    memcpy(copy, text, size);
    copy[size] = 0;
    struct scan s = {.at = copy, .end = copy + size, .known = known};
    json_t *row = NULL;
    bool whole = blank_object(&s, known->row, false);
    skip_space(&s);
    if (whole && s.at == s.end) {
        row = json_loadb(copy, size, flags, cause);
    } else if (json_error_code(cause) != json_error_premature_end_of_input &&
               s.at >= copy + cause->position) {
        *cause = (json_error_t){.column = (int)(s.at - copy) + 1};
        memcpy(cause->text, "invalid syntax", sizeof "invalid syntax");
    }
    free(copy);
    return row;
}

static err refuse(const json_error_t *cause)
{
    const char *hint = "";
    switch (json_error_code(cause)) {
    case json_error_numeric_overflow:
        return err_make(ERR_INPUT, "a number is out of range: %s", cause->text);
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return err_make(ERR_INPUT, "a text that is read holds the character U+0000");
    case json_error_premature_end_of_input:
        hint = "; a row of JSON Lines is one line";
        break;
    default:
        break;
    }
    if (strstr(cause->text, "'NaN") || strstr(cause->text, "Infinity"))
        hint = "; Python writes NaN and Infinity, which are not JSON: write null";
    return err_make(ERR_INPUT, "not JSON: %s%s", cause->text, hint);
}

err data_json_parse(json_t **out, const char *text, size_t size,
                    const struct data_json_known *known)
{
    json_error_t cause;
    json_t *row = json_loadb(text, size, flags, &cause);
    if (!row) row = parse_mended(text, size, known, &cause);
    if (!row) {
        err e = refuse(&cause);
        return cause.column > 0 ? err_in(e, "column %d", cause.column) : e;
    }
    *out = row;
    return ERR_NONE;
}
