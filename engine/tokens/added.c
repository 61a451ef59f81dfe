/* Finds added tokens. The tokens are sorted by text, so all tokens that match at a place are found
 * by narrowing one range of the list byte by byte. */
#include "engine/tokens/added.h"

#include "base/list.h"
#include "engine/tokens/piece.h"
#include "engine/tokens/sorted.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

SORTED_ITEM(struct added_token);

err added_put(struct added *a, const struct added_token *token)
{
    REQUIRE(token->size > 0);
    TRY(list_grow(&a->token, &a->capacity, a->count + 1, sizeof *a->token));
    a->token[a->count++] = *token;
    return ERR_NONE;
}

/* By text, then by id: of two tokens with the same text the lower id is found. */
static int compare_text(const void *left, const void *right)
{
    const struct added_token *a = left, *b = right;
    int order = sorted_compare(left, right);
    return order ? order : (a->id > b->id) - (a->id < b->id);
}

void added_seal(struct added *a)
{
    if (a->count > 1) qsort(a->token, a->count, sizeof *a->token, compare_text);
    for (size_t i = 0; i < a->count; i++)
        a->first[(uint8_t)a->token[i].text[0]] = true;
}

void added_close(struct added *a)
{
    free(a->token);
    *a = (struct added){0};
}

void added_matches_close(struct added_matches *m)
{
    free(m->match);
    *m = (struct added_matches){0};
}

/* `index` is an index in a->token until accept() replaces it by the id of the token. */
static err put_match(struct added_matches *m, uint32_t begin, uint32_t end, int32_t index)
{
    TRY(list_grow(&m->match, &m->capacity, m->count + 1, sizeof *m->match));
    m->match[m->count++] = (struct added_match){.begin = begin, .end = end, .id = index};
    return ERR_NONE;
}

/* Appends the tokens that start at `at`: only the longest with ADDED_LEFTMOST, all of them with
 * ADDED_LONGEST. Matches come in order of length. */
static err match_at(struct added_matches *out, const struct added *a, const char *text,
                    uint32_t size, uint32_t at)
{
    size_t lo = 0, hi = a->count;
    bool found = false;
    for (uint32_t depth = 0; at + depth < size && lo < hi; depth++) {
        sorted_narrow(a->token, sizeof *a->token, &lo, &hi, depth, (uint8_t)text[at + depth]);
        if (lo == hi || a->token[lo].size != depth + 1) continue;
        if (found && a->order == ADDED_LEFTMOST) out->count--;
        found = true;
        TRY(put_match(out, at, at + depth + 1, (int32_t)lo));
    }
    return ERR_NONE;
}

/* As \w of Rust's regular expressions, which Hugging Face uses: alphabetic characters, marks,
 * decimal digits, connectors and the two joiners. All alphabetic characters are letters, letter
 * numbers or marks, except for the circled and squared Latin letters, whose category is So. */
static bool is_word(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    if (k == UTF8PROC_CATEGORY_SO)
        return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
               (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_ND) || k == UTF8PROC_CATEGORY_NL ||
           k == UTF8PROC_CATEGORY_PC || c == 0x200C || c == 0x200D;
}

/* The character that ends at `at`, and its size. The text is valid UTF-8. */
static uint32_t char_before(const char *text, uint32_t at, uint32_t *size)
{
    uint32_t begin = at - 1;
    while (begin > 0 && ((uint8_t)text[begin] & 0xC0) == 0x80)
        begin--;
    uint32_t c = piece_char(text + begin, size);
    *size = at - begin;
    return c;
}

/* Whether no word character is directly next to the match. */
static bool stands_alone(const char *text, uint32_t size, const struct added_match *m)
{
    uint32_t n;
    if (m->begin > 0 && is_word(char_before(text, m->begin, &n))) return false;
    return m->end == size || !is_word(piece_char(text + m->end, &n));
}

/* Whether the token may match here. Widens the match over the white space that the token takes, but
 * not beyond `bound`, the ends of the neighbouring matches. */
static bool accept(struct added_match *m, const struct added *a, const char *text, uint32_t size,
                   const uint32_t bound[2])
{
    const struct added_token *t = &a->token[m->id];
    uint32_t n;
    if (t->single_word && !stands_alone(text, size, m)) return false;
    while (t->lstrip && m->begin > bound[0] && piece_space(char_before(text, m->begin, &n)))
        m->begin -= n;
    while (t->rstrip && m->end < bound[1] && piece_space(piece_char(text + m->end, &n))) {
        if (n > 1 && a->order == ADDED_LONGEST) break; /* llama.cpp uses isspace(): only ASCII */
        m->end += n;
    }
    m->id = t->id;
    return true;
}

/* From left to right, as Hugging Face. A refused match (a special token that is not wanted, or a
 * word that does not stand alone) is skipped as a whole: the search continues behind it, as in the
 * reference. */
static err find_leftmost(struct added_matches *out, const struct added *a, const char *text,
                         uint32_t size, bool special)
{
    uint32_t taken = 0;
    for (uint32_t at = 0; at < size;) {
        size_t before = out->count;
        if (a->first[(uint8_t)text[at]]) TRY(match_at(out, a, text, size, at));
        if (out->count == before) {
            at++;
            continue;
        }
        struct added_match *m = &out->match[before];
        at = m->end;
        bool wanted = m->begin >= taken && (special || !a->token[m->id].special);
        if (!wanted || !accept(m, a, text, size, (uint32_t[2]){taken, size})) {
            out->count--;
            continue;
        }
        taken = m->end;
        if (at < taken) at = taken;
    }
    return ERR_NONE;
}

/* Longest first; of equally long tokens the lower id, and within a token by place. llama.cpp gets
 * this order from a stable sort by length. */
static int compare_longest(const void *left, const void *right, void *table)
{
    const struct added_match *a = left, *b = right;
    const struct added_token *token = table;
    uint32_t la = a->end - a->begin, lb = b->end - b->begin;
    if (la != lb) return la > lb ? -1 : 1;
    if (a->id != b->id) return token[a->id].id < token[b->id].id ? -1 : 1;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* By place in the text. */
static int compare_place(const void *left, const void *right)
{
    const struct added_match *a = left, *b = right;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* Whether a match lies between the accepted ones, kept[0 .. count - 1], which are sorted by place
 * and do not overlap. Sets *slot to its place among them and narrows `bound` to the ends of its
 * neighbours. */
static bool fits(const struct added_match *kept, size_t count, const struct added_match *m,
                 size_t *slot, uint32_t bound[2])
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (kept[middle].begin < m->begin)
            low = middle + 1;
        else
            high = middle;
    }
    *slot = low;
    if (low > 0) bound[0] = kept[low - 1].end;
    if (low < count) bound[1] = kept[low].begin;
    return bound[0] <= m->begin && m->end <= bound[1];
}

/* llama.cpp replaces one token after another, from the longest to the shortest, in all remaining
 * text. Here all occurrences are found first and then accepted in that order. The accepted ones are
 * sorted by place again after each run of one token; within a run the matches come in order of
 * place already. */
static err find_longest(struct added_matches *out, const struct added *a, const char *text,
                        uint32_t size, bool special)
{
    for (uint32_t at = 0; at < size; at++)
        if (a->first[(uint8_t)text[at]]) TRY(match_at(out, a, text, size, at));
    if (out->count == 0) return ERR_NONE;
    size_t wanted = 0;
    for (size_t i = 0; i < out->count; i++)
        if (special || !a->token[out->match[i].id].special) out->match[wanted++] = out->match[i];
    out->count = wanted;
    qsort_r(out->match, out->count, sizeof *out->match, compare_longest, a->token);
    /* The accepted matches are at the front of the list: first the sorted ones of earlier runs,
     * then those of this run. */
    size_t kept = 0;
    for (size_t i = 0; i < out->count;) {
        size_t sorted = kept, run = i;
        uint32_t length = out->match[i].end - out->match[i].begin;
        int32_t token = out->match[i].id;
        uint32_t last_end = 0;
        for (; i < out->count && out->match[i].id == token; i++) {
            struct added_match m = out->match[i];
            if (m.end - m.begin != length) break;
            uint32_t bound[2] = {0, size};
            size_t slot;
            if (!fits(out->match, sorted, &m, &slot, bound) || m.begin < last_end) continue;
            if (bound[0] < last_end) bound[0] = last_end;
            if (!accept(&m, a, text, size, bound)) continue;
            last_end = m.end;
            out->match[kept++] = m;
        }
        REQUIRE(i > run);
        if (kept > sorted) qsort(out->match, kept, sizeof *out->match, compare_place);
    }
    out->count = kept;
    return ERR_NONE;
}

err added_find(struct added_matches *out, const struct added *a, const char *text, uint32_t size,
               bool special)
{
    out->count = 0;
    if (a->count == 0) return ERR_NONE;
    if (a->order == ADDED_LEFTMOST) return find_leftmost(out, a, text, size, special);
    return find_longest(out, a, text, size, special);
}
