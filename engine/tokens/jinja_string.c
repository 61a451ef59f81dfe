#include "engine/tokens/jinja_string.h"

#include "engine/tokens/piece.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- stripping ---- */

/* A set is a text of single characters. UTF-8 cannot match in the middle of another character, so
 * searching bytes is enough. */
static bool in_set(uint32_t c, const char *at, uint32_t n, const struct jinja_value *set)
{
    return set ? memmem(set->text.data, set->text.size, at, n) != NULL : jinja_space(c);
}

struct jinja_value jinja_string_strip(const struct jinja_value *v, const struct jinja_value *set,
                                      int sides)
{
    const char *at = v->text.data;
    size_t size = v->text.size;
    uint32_t n;
    while (sides & JINJA_LEFT && size > 0) {
        uint32_t c = piece_char(at, &n);
        if (!in_set(c, at, n, set)) break;
        at += n, size -= n;
    }
    while (sides & JINJA_RIGHT && size > 0) {
        size_t last = size - 1;
        while (last > 0 && ((uint8_t)at[last] & 0xC0) == 0x80)
            last--;
        uint32_t c = piece_char(at + last, &n);
        if (!in_set(c, at + last, n, set)) break;
        size = last;
    }
    return jinja_text(at, size);
}

/* ---- cases ---- */

/* Letters whose other case has several letters (SpecialCasing.txt), and pairs with a title case of
 * their own. They are refused, except the capitals of the German sharp s. */
static bool is_special(uint32_t c, bool upper)
{
    if (!upper) return c == 0x130;
    return c == 0xDF || c == 0x149 || (c >= 0x1C4 && c <= 0x1CC) || (c >= 0x1F1 && c <= 0x1F3) ||
           c == 0x1F0 || c == 0x390 || c == 0x3B0 || c == 0x587 || (c >= 0x1E96 && c <= 0x1E9A) ||
           (c >= 0x1F50 && c <= 0x1F56) || (c >= 0x1F80 && c <= 0x1FFC) ||
           (c >= 0xFB00 && c <= 0xFB17);
}

static bool is_cased(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

static bool is_letter(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return is_cased(c) || k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_LO;
}

/* A sigma at the end of a word has a form of its own: Final_Sigma of SpecialCasing.txt, without its
 * characters that are ignored between letters. */
static bool is_final(const char *data, size_t size, size_t at, uint32_t n)
{
    uint32_t m;
    size_t last = at;
    if (at == 0) return false;
    do
        last--;
    while (last > 0 && ((uint8_t)data[last] & 0xC0) == 0x80);
    if (!is_cased(piece_char(data + last, &m))) return false;
    return at + n >= size || !is_cased(piece_char(data + at + n, &m));
}

/* Only pairs of one letter each are known here, because utf8proc maps one code point to one.
 * is_special() lists the others. */
static err put_case(struct jinja_run *r, uint32_t c, bool upper, enum jinja_case how)
{
    utf8proc_uint8_t out[4];
    if (c == 0xDF && how == JINJA_UPPER) return jinja_say(r, "SS", 2);
    if (is_special(c, upper))
        return jinja_fail(r, "changing the case of U+%04X is not supported", (unsigned)c);
    utf8proc_int32_t to =
        upper ? utf8proc_toupper((utf8proc_int32_t)c) : utf8proc_tolower((utf8proc_int32_t)c);
    return jinja_say(r, (const char *)out, (size_t)utf8proc_encode_char(to, out));
}

err jinja_string_case(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                      enum jinja_case how)
{
    const char *data = v->text.data;
    size_t size = v->text.size, mark = jinja_capture(r);
    bool inside = false; /* of a word */
    TRY(jinja_step(r, size / 16));
    for (size_t i = 0; i < size;) {
        uint32_t n, c = piece_char(data + i, &n);
        bool first = how == JINJA_TITLE ? !inside : i == 0;
        bool upper = how == JINJA_UPPER || (how != JINJA_LOWER && first);
        if (c == 0x3A3 && !upper)
            TRY(put_case(r, is_final(data, size, i, n) ? 0x3C2 : 0x3C3, false, how));
        else
            TRY(put_case(r, c, upper, how));
        inside = is_cased(c);
        i += n;
    }
    return jinja_captured(out, r, mark);
}

static bool is_kind(uint32_t c, const char *what)
{
    if (*what == 's') return jinja_space(c);
    bool digit = utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND;
    if (*what == 'd') return digit;
    return is_letter(c) || (strcmp(what, "alnum") == 0 && digit);
}

/* An empty text is none of these, but it is ASCII. */
err jinja_string_is(bool *out, struct jinja_run *r, const struct jinja_value *v, const char *what)
{
    bool all = v->text.size > 0, cased = false, ascii = true, upper = *what == 'u';
    bool by_case = upper || strcmp(what, "lower") == 0;
    TRY(jinja_step(r, v->text.size / 16));
    for (size_t i = 0; i < v->text.size;) {
        uint32_t n, c = piece_char(v->text.data + i, &n);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        ascii = ascii && c < 0x80;
        if (by_case) {
            cased = cased || k == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
            all = all && k != UTF8PROC_CATEGORY_LT &&
                  k != (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU);
        } else {
            /* Superscripts and numerals count for some of Python's functions only. */
            if (k == UTF8PROC_CATEGORY_NO || k == UTF8PROC_CATEGORY_NL)
                if (*what == 'd' || strcmp(what, "alnum") == 0)
                    return jinja_fail(r, "is%s() of U+%04X is not supported", what, (unsigned)c);
            all = all && is_kind(c, what);
        }
        i += n;
    }
    *out = by_case ? all && cased : strcmp(what, "ascii") == 0 ? ascii : all;
    return ERR_NONE;
}

err jinja_string_escape(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v)
{
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    size_t mark = jinja_capture(r);
    for (size_t i = 0; i < v->text.size; i++) {
        char c = v->text.data[i];
        const char *found = c && !v->safe ? strchr(from, c) : NULL;
        TRY(found ? jinja_say(r, to[found - from], strlen(to[found - from])) : jinja_say(r, &c, 1));
    }
    TRY(jinja_captured(out, r, mark));
    out->safe = true;
    return ERR_NONE;
}

/* Runs of \w, as the regular expressions of Python have it. */
size_t jinja_string_words(const struct jinja_value *v)
{
    size_t words = 0;
    bool inside = false;
    for (size_t i = 0; i < v->text.size;) {
        uint32_t n, c = piece_char(v->text.data + i, &n);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        bool word = c == '_' || is_letter(c) || k == UTF8PROC_CATEGORY_ND ||
                    k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
        words += word && !inside;
        inside = word;
        i += n;
    }
    return words;
}

/* ---- searching and splitting ---- */

/* From the left memmem() takes linear time. From the right each place may take the whole length of
 * the part, so this work counts as steps. */
err jinja_string_find(const char **out, struct jinja_run *r, const struct jinja_value *v,
                      const struct jinja_value *part, bool right)
{
    const char *data = v->text.data;
    size_t size = v->text.size, n = part->text.size, i = size >= n ? size - n + 1 : 0;
    *out = NULL;
    if (!right) *out = memmem(data, size, part->text.data, n);
    while (right && !*out && i-- > 0) {
        TRY(jinja_step(r, n / 64 + (i % 64 == 0)));
        if (memcmp(data + i, part->text.data, n) == 0) *out = data + i;
    }
    return ERR_NONE;
}

static err push_part(struct jinja_run *r, const struct jinja_value *list, const char *at,
                     const char *end)
{
    struct jinja_value one = jinja_text(at, (size_t)(end - at));
    TRY(jinja_step(r, 1));
    return jinja_push(r, list, &one);
}

/* Parts found from the right are collected in reverse. */
static void reverse(const struct jinja_list *list)
{
    for (size_t i = 0; i < list->count / 2; i++) {
        struct jinja_value other = list->item[list->count - 1 - i];
        list->item[list->count - 1 - i] = list->item[i];
        list->item[i] = other;
    }
}

static err split_space(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       const struct jinja_split *how)
{
    struct jinja_value rest = jinja_string_strip(v, NULL, how->right ? JINJA_RIGHT : JINJA_LEFT);
    while (rest.text.size > 0) {
        const char *begin = rest.text.data, *end = begin + rest.text.size, *cut;
        uint32_t n;
        if (how->most >= 0 && (int64_t)out->list->count >= how->most) {
            /* The last part keeps the white space at its far end. */
            return push_part(r, out, begin, end);
        }
        if (how->right) {
            for (cut = end; cut > begin;) {
                const char *one = cut - 1;
                while (one > begin && ((uint8_t)*one & 0xC0) == 0x80)
                    one--;
                if (jinja_space(piece_char(one, &n))) break;
                cut = one;
            }
            TRY(push_part(r, out, cut, end));
            rest = jinja_text(begin, (size_t)(cut - begin));
        } else {
            for (cut = begin; cut < end && !jinja_space(piece_char(cut, &n)); cut += n)
                ;
            TRY(push_part(r, out, begin, cut));
            rest = jinja_text(cut, (size_t)(end - cut));
        }
        rest = jinja_string_strip(&rest, NULL, how->right ? JINJA_RIGHT : JINJA_LEFT);
    }
    return ERR_NONE;
}

static err split_text(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                      const struct jinja_value *by, const struct jinja_split *how)
{
    const char *begin = v->text.data, *end = begin + v->text.size, *at;
    for (int64_t cuts = 0; how->most < 0 || cuts < how->most; cuts++) {
        struct jinja_value rest = jinja_text(begin, (size_t)(end - begin));
        TRY(jinja_step(r, how->right ? 1 : rest.text.size / 1024));
        TRY(jinja_string_find(&at, r, &rest, by, how->right));
        if (!at) break;
        if (how->right) {
            TRY(push_part(r, out, at + by->text.size, end));
            end = at;
        } else {
            TRY(push_part(r, out, begin, at));
            begin = at + by->text.size;
        }
    }
    return push_part(r, out, begin, end);
}

err jinja_string_split(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       const struct jinja_value *by, const struct jinja_split *how)
{
    TRY(jinja_step(r, v->text.size / 64));
    TRY(jinja_list(out, r, JINJA_LIST, 4));
    TRY(by ? split_text(out, r, v, by, how) : split_space(out, r, v, how));
    if (how->right) reverse(out->list);
    return ERR_NONE;
}

static bool is_line_end(uint32_t c)
{
    return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

err jinja_string_lines(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       bool keep_ends)
{
    const char *begin = v->text.data, *end = begin + v->text.size;
    TRY(jinja_list(out, r, JINJA_LIST, 4));
    TRY(jinja_step(r, v->text.size / 16));
    for (const char *at = begin; at < end;) {
        uint32_t n, c = piece_char(at, &n);
        const char *next = at + n;
        if (c == '\r' && next < end && *next == '\n') next++;
        if (is_line_end(c)) {
            TRY(push_part(r, out, begin, keep_ends ? next : at));
            begin = next;
        }
        at = next;
    }
    return begin < end ? push_part(r, out, begin, end) : ERR_NONE;
}

/* An empty `from` stands between all code points. */
static err replace_between(struct jinja_run *r, const struct jinja_value *v,
                           const struct jinja_value *to, int64_t most)
{
    for (size_t i = 0; i <= v->text.size;) {
        if (most < 0 || most-- > 0) TRY(jinja_print(r, to));
        if (i == v->text.size) break;
        size_t n = jinja_offset(v->text.data + i, v->text.size - i, 1);
        TRY(jinja_say(r, v->text.data + i, n));
        i += n;
    }
    return ERR_NONE;
}

err jinja_string_replace(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                         const struct jinja_value *from, const struct jinja_value *to, int64_t most)
{
    const char *begin = v->text.data, *end = begin + v->text.size;
    size_t mark = jinja_capture(r);
    TRY(jinja_step(r, v->text.size / 64));
    if (from->text.size == 0) {
        TRY(replace_between(r, v, to, most));
        return jinja_captured(out, r, mark);
    }
    for (const char *at; most < 0 || most > 0; begin = at + from->text.size, most -= most > 0) {
        at = memmem(begin, (size_t)(end - begin), from->text.data, from->text.size);
        if (!at) break;
        TRY(jinja_step(r, 1));
        TRY(jinja_say(r, begin, (size_t)(at - begin)));
        TRY(jinja_print(r, to));
    }
    TRY(jinja_say(r, begin, (size_t)(end - begin)));
    return jinja_captured(out, r, mark);
}
