/* Splits a template into tokens by the rules of jinja2's lexer, with its rules for white space:
 * trim_blocks removes the line feed behind a block, lstrip_blocks removes spaces between the start
 * of a line and a block, and the signs - and + override both. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"
#include "engine/tokens/piece.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    const char *s;
    size_t size, at;
    uint32_t line;
    bool line_starting; /* the last tag took a line feed with it */
    struct arena *tokens, *texts;
    struct jinja_token *first, *last;
};

static err fail(const struct lexer *l, const char *what)
{
    return err_make(ERR_INPUT, "line %u: %s", l->line, what);
}

static err emit(struct lexer *l, enum jinja_token_kind kind, struct jinja_value value)
{
    struct jinja_token *token;
    TRY(arena_take(&token, l->tokens, 1, sizeof *token));
    *token = (struct jinja_token){.kind = kind, .line = l->line, .value = value};
    if (l->last)
        l->last->next = token;
    else
        l->first = token;
    l->last = token;
    return ERR_NONE;
}

/* Counts the line feeds on the way. Code that sets l->at itself has read a token without any. */
static void move_to(struct lexer *l, size_t at)
{
    for (; l->at < at; l->at++)
        l->line += l->s[l->at] == '\n';
}

static bool looking_at(const struct lexer *l, size_t at, const char *text)
{
    size_t n = strlen(text);
    return at + n <= l->size && memcmp(l->s + at, text, n) == 0;
}

/* The first byte that is not white space, at or after `at`. */
static size_t skip_space(const struct lexer *l, size_t at)
{
    uint32_t n;
    while (at < l->size && jinja_space(piece_char(l->s + at, &n)))
        at += n;
    return at;
}

/* ---- text between tags ---- */

/* Goes back over whole characters, since white space may be a character of several bytes. */
static size_t strip_right(const char *s, size_t size)
{
    while (size > 0) {
        size_t last = size - 1;
        uint32_t n;
        while (last > 0 && ((uint8_t)s[last] & 0xC0) == 0x80)
            last--;
        if (!jinja_space(piece_char(s + last, &n))) break;
        size = last;
    }
    return size;
}

/* Emits the text before a tag at `end`. `sign` is the sign of the tag; `block`: lstrip_blocks
 * applies. */
static err emit_text(struct lexer *l, size_t end, char sign, bool block)
{
    const char *s = l->s + l->at;
    size_t size = end - l->at;
    if (sign == '-') {
        size = strip_right(s, size);
    } else if (sign != '+' && block) {
        size_t line = size;
        while (line > 0 && s[line - 1] != '\n')
            line--;
        if ((line > 0 || l->line_starting) && strip_right(s + line, size - line) == 0) size = line;
    }
    if (size > 0) TRY(emit(l, TOKEN_DATA, jinja_text(s, size)));
    move_to(l, end);
    return ERR_NONE;
}

/* The end of a tag: "-%}" takes all white space behind it, "%}" one line feed, "+%}" nothing.
 * Returns the byte behind it, or 0 if there is no such end at `at`. */
static size_t tag_end(const struct lexer *l, size_t at, const char *close, bool trim)
{
    size_t n = strlen(close);
    if (looking_at(l, at, close)) return at + n + (trim && looking_at(l, at + n, "\n"));
    if (at + 1 + n > l->size || !looking_at(l, at + 1, close)) return 0;
    if (l->s[at] == '-') return skip_space(l, at + 1 + n);
    return l->s[at] == '+' && trim ? at + 1 + n : 0;
}

/* lstrip_blocks has to know whether the text behind a tag starts a line. */
static void close_tag(struct lexer *l, size_t end)
{
    move_to(l, end);
    l->line_starting = end > 0 && l->s[end - 1] == '\n';
}

/* A comment ends at the first "#}", whatever stands in it. */
static err skip_comment(struct lexer *l)
{
    for (size_t at = l->at; at + 1 < l->size; at++) {
        size_t end = tag_end(l, at, "#}", true);
        if (end == 0) continue;
        close_tag(l, end);
        return ERR_NONE;
    }
    return fail(l, "a comment has no end: expected #}");
}

/* ---- inside of tags ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}
static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static size_t skip_digits(const struct lexer *l, size_t at)
{
    while (at < l->size &&
           (is_digit(l->s[at]) || (l->s[at] == '_' && at + 1 < l->size && is_digit(l->s[at + 1]))))
        at++;
    return at;
}

/* The end of a fraction and an exponent behind the digits that end at `at`; `at` if there is
 * neither. */
static size_t skip_fraction(const struct lexer *l, size_t at)
{
    size_t end = at;
    if (end + 1 < l->size && l->s[end] == '.' && is_digit(l->s[end + 1]))
        end = skip_digits(l, end + 1);
    if (end < l->size && (l->s[end] == 'e' || l->s[end] == 'E')) {
        size_t power = end + 1;
        if (power < l->size && (l->s[power] == '+' || l->s[power] == '-')) power++;
        if (power < l->size && is_digit(l->s[power])) end = skip_digits(l, power);
    }
    return end;
}

/* A digit behind a dot is an index ("x.0.1"), so no fraction is read there. Underscores between
 * digits have no meaning. */
static err lex_number(struct lexer *l)
{
    char text[64], *stop;
    size_t begin = l->at, end = skip_digits(l, begin), used = 0;
    bool real = false;
    if (begin == 0 || l->s[begin - 1] != '.') {
        size_t fraction = skip_fraction(l, end);
        real = fraction > end;
        end = fraction;
    }
    for (size_t i = begin; i < end && used < sizeof text - 1; i++)
        if (l->s[i] != '_') text[used++] = l->s[i];
    text[used] = 0;
    if (used == sizeof text - 1) return fail(l, "a number is too long");
    if (end < l->size && is_letter(l->s[end]))
        return fail(l, "a number with letters (0x, 0b, 0o) is not supported");
    move_to(l, end);
    if (real) return emit(l, TOKEN_FLOAT, jinja_float(strtod(text, NULL)));
    if (used > 1 && text[0] == '0') return fail(l, "a number starts with 0");
    errno = 0;
    int64_t whole = strtoll(text, &stop, 10);
    if (errno) return fail(l, "a whole number needs more than 64 bits");
    return emit(l, TOKEN_INT, jinja_int(whole));
}

/* Writes UTF-8 and returns its length. */
static size_t put_char(char *out, uint32_t c)
{
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 0x3F)), 2;
    size_t n = c < 0x10000 ? 3 : 4;
    out[0] = (char)(n == 3 ? 0xE0 | c >> 12 : 0xF0 | c >> 18);
    for (size_t i = 1; i < n; i++)
        out[i] = (char)(0x80 | (c >> 6 * (n - 1 - i) & 0x3F));
    return n;
}

/* Reads up to `most` digits of a number in an escape; returns how many there were. */
static size_t escape_digits(uint32_t *out, const char *s, size_t size, size_t most, unsigned base)
{
    uint32_t c = 0;
    size_t n = 0;
    for (; n < most && n < size; n++) {
        char d = s[n];
        unsigned digit = is_digit(d)                          ? (unsigned)(d - '0')
                         : base == 16 && d >= 'a' && d <= 'f' ? (unsigned)(d - 'a') + 10
                         : base == 16 && d >= 'A' && d <= 'F' ? (unsigned)(d - 'A') + 10
                                                              : 99;
        if (digit >= base) break;
        c = c * base + digit;
    }
    *out = c;
    return n;
}

/* One escape behind a backslash at s[0]. Adds to out[*used] and returns the bytes read, or 0 for an
 * escape that Python refuses. */
static size_t unescape(char *out, size_t *used, const char *s, size_t size)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *simple = *s ? strchr(from, *s) : NULL;
    uint32_t c = 0;
    if (simple) return out[(*used)++] = to[simple - from], 1;
    if (*s == '\n') return 1;
    if (*s >= '0' && *s <= '7') {
        size_t n = escape_digits(&c, s, size, 3, 8);
        *used += put_char(out + *used, c);
        return n;
    }
    size_t want = *s == 'x' ? 2 : *s == 'u' ? 4 : *s == 'U' ? 8 : 0;
    if (want > 0) {
        if (escape_digits(&c, s + 1, size - 1, want, 16) != want || c > 0x10FFFF ||
            (c >= 0xD800 && c <= 0xDFFF))
            return 0;
        *used += put_char(out + *used, c);
        return want + 1;
    }
    if (*s == 'N') return 0;
    out[(*used)++] = '\\'; /* Python keeps an unknown escape as it is */
    out[(*used)++] = *s;
    return 1;
}

/* A decoded text is never longer than its source. */
static err lex_text(struct lexer *l)
{
    char quote = l->s[l->at];
    size_t begin = l->at + 1, end = begin, used = 0;
    bool plain = true;
    for (; end < l->size && l->s[end] != quote; end++)
        if (l->s[end] == '\\') plain = false, end++;
    if (end >= l->size) return fail(l, "a string has no end");
    struct jinja_value value = jinja_text(l->s + begin, end - begin);
    if (!plain) {
        char *text;
        TRY(arena_take(&text, l->texts, end - begin + 1, 1));
        for (size_t i = begin; i < end;) {
            if (l->s[i] != '\\') {
                text[used++] = l->s[i++];
                continue;
            }
            size_t n = unescape(text, &used, l->s + i + 1, end - i - 1);
            if (n == 0) return fail(l, "a string has an escape that is not supported");
            i += 1 + n;
        }
        value = jinja_text(text, used);
    }
    TRY(emit(l, TOKEN_TEXT, value));
    move_to(l, end + 1);
    return ERR_NONE;
}

/* Names are ASCII here. Python also allows letters of other scripts, which are refused as an
 * unexpected character. */
static err lex_name(struct lexer *l)
{
    size_t end = l->at;
    while (end < l->size && (is_letter(l->s[end]) || is_digit(l->s[end])))
        end++;
    TRY(emit(l, TOKEN_NAME, jinja_text(l->s + l->at, end - l->at)));
    l->at = end;
    return ERR_NONE;
}

/* Brackets that are open, because a tag cannot end inside them: "}}" may close two dicts. */
struct brackets {
    char open[LIMIT_TEMPLATE_DEPTH];
    size_t count;
};

static err lex_op(struct lexer *l, struct brackets *b)
{
    static const char *const two[] = {"//", "**", "==", "!=", "<=", ">="};
    static const char one[] = "+-/*%~[](){}<>=.:|,;";
    size_t n = 0;
    for (size_t i = 0; i < sizeof two / sizeof *two && n == 0; i++)
        if (looking_at(l, l->at, two[i])) n = 2;
    char c = l->s[l->at];
    if (n == 0 && c && strchr(one, c)) n = 1;
    if (n == 0) return fail(l, "an unexpected character inside of a tag");
    if (n == 1 && strchr("([{", c)) {
        if (b->count == LIMIT_TEMPLATE_DEPTH) return fail(l, "brackets are nested too deep");
        b->open[b->count++] = c;
    }
    if (n == 1 && strchr(")]}", c)) {
        char open = c == ')' ? '(' : c == ']' ? '[' : '{';
        if (b->count == 0 || b->open[b->count - 1] != open)
            return fail(l, "a closing bracket does not match");
        b->count--;
    }
    TRY(emit(l, TOKEN_OP, jinja_text(l->s + l->at, n)));
    l->at += n;
    return ERR_NONE;
}

/* The tokens of one tag, with its end. */
static err lex_tag(struct lexer *l, bool block)
{
    struct brackets brackets = {.count = 0};
    TRY(emit(l, block ? TOKEN_BLOCK_BEGIN : TOKEN_PRINT_BEGIN, (struct jinja_value){0}));
    for (;;) {
        move_to(l, skip_space(l, l->at));
        if (l->at >= l->size) return fail(l, "a tag has no end");
        size_t end = brackets.count ? 0 : tag_end(l, l->at, block ? "%}" : "}}", /*trim*/ block);
        if (end) {
            TRY(emit(l, block ? TOKEN_BLOCK_END : TOKEN_PRINT_END, (struct jinja_value){0}));
            close_tag(l, end);
            return ERR_NONE;
        }
        char c = l->s[l->at];
        if (is_digit(c))
            TRY(lex_number(l));
        else if (is_letter(c))
            TRY(lex_name(l));
        else if (c == '"' || c == '\'')
            TRY(lex_text(l));
        else
            TRY(lex_op(l, &brackets));
    }
}

/* The end of "{%- NAME %}" whose "{%" is at `at`, or 0. */
static size_t word_tag(const struct lexer *l, size_t at, const char *name, bool trim)
{
    at += 2;
    if (at < l->size && (l->s[at] == '-' || l->s[at] == '+')) at++;
    at = skip_space(l, at);
    if (!looking_at(l, at, name)) return 0;
    return tag_end(l, skip_space(l, at + strlen(name)), "%}", trim);
}

/* {% raw %}: everything up to {% endraw %} is text. */
static err lex_raw(struct lexer *l, size_t begin)
{
    move_to(l, begin);
    l->line_starting = begin > 0 && l->s[begin - 1] == '\n';
    for (size_t at = l->at; at + 1 < l->size; at++) {
        if (!looking_at(l, at, "{%")) continue;
        size_t end = word_tag(l, at, "endraw", true);
        if (end == 0) continue;
        TRY(emit_text(l, at, l->s[at + 2], true));
        close_tag(l, end);
        return ERR_NONE;
    }
    return fail(l, "{% raw %} has no end: expected {% endraw %}");
}

static err lex_all(struct lexer *l)
{
    while (l->at < l->size) {
        size_t at = l->at;
        while (at + 1 < l->size && !(l->s[at] == '{' && memchr("{%#", l->s[at + 1], 3)))
            at++;
        if (at + 1 >= l->size) return emit_text(l, l->size, '+', false);
        char kind = l->s[at + 1], sign = at + 2 < l->size ? l->s[at + 2] : 0;
        size_t raw = kind == '%' ? word_tag(l, at, "raw", false) : 0;
        TRY(emit_text(l, at, sign, kind != '{'));
        if (raw) {
            TRY(lex_raw(l, raw));
            continue;
        }
        l->at += 2 + (sign == '-' || sign == '+');
        l->line_starting = false;
        TRY(kind == '#' ? skip_comment(l) : lex_tag(l, kind == '%'));
    }
    return ERR_NONE;
}

/* Line ends become line feeds, and one at the end of the template is removed. */
static err normalise(const char **out, size_t *used, struct arena *texts, const char *source,
                     size_t size)
{
    char *text;
    size_t n = 0;
    TRY(arena_take(&text, texts, size + 1, 1));
    for (size_t i = 0; i < size; i++) {
        if (source[i] == '\r') {
            text[n++] = '\n';
            i += i + 1 < size && source[i + 1] == '\n';
        } else {
            text[n++] = source[i];
        }
    }
    *out = text;
    *used = n > 0 && text[n - 1] == '\n' ? n - 1 : n;
    return ERR_NONE;
}

err jinja_lex(struct jinja_token **out, struct arena *tokens, struct arena *texts,
              const char *source, size_t size)
{
    struct lexer l = {.line = 1, .line_starting = true, .tokens = tokens, .texts = texts};
    TRY(normalise(&l.s, &l.size, texts, source, size));
    TRY(lex_all(&l));
    TRY(emit(&l, TOKEN_END, (struct jinja_value){0}));
    *out = l.first;
    return ERR_NONE;
}
