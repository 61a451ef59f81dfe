/* The best path is found from left to right in time proportional to the word. Tokens are sorted by
 * text, so the tokens that start at a place are found by narrowing one range byte by byte. */
#include "engine/tokens/unigram.h"

#include "base/list.h"
#include "engine/tokens/bpe_table.h"
#include "engine/tokens/piece.h"
#include "engine/tokens/sorted.h"

#include <stdlib.h>
#include <string.h>

SORTED_ITEM(struct unigram_token);

enum { UNKNOWN = -1 }; /* the token of a place that unknown text ends at */
#define UNKNOWN_PENALTY 10.0

struct unigram_place {
    double score;   /* sum over the path that ends here */
    uint32_t start; /* where the last token of the path starts; UINT32_MAX: no path ends here */
    int32_t token;  /* its index in u->token, or UNKNOWN */
};

/* The length bounds the work at each place of a text. */
err unigram_add(struct unigram *u, const struct unigram_token *token)
{
    REQUIRE(token->size > 0);
    if (token->size > BPE_TABLE_TOKEN_BYTES)
        return err_make(ERR_INPUT, "token %d has %u bytes, at most %d are supported", token->id,
                        token->size, BPE_TABLE_TOKEN_BYTES);
    TRY(list_grow(&u->token, &u->capacity, u->count + 1, sizeof *u->token));
    u->token[u->count++] = *token;
    return ERR_NONE;
}

/* By text, then the later token first, which is the one that counts. */
static int compare_text(const void *left, const void *right)
{
    const struct unigram_token *a = left, *b = right;
    int order = sorted_compare(left, right);
    return order ? order : (a->id < b->id) - (a->id > b->id);
}

/* The id of the token with exactly this text, or -1. */
static int32_t find(const struct unigram *u, const char *text, uint32_t size)
{
    size_t lo = u->first[(uint8_t)text[0]], hi = u->first[(uint8_t)text[0] + 1];
    for (uint32_t depth = 1; depth < size && lo < hi; depth++)
        sorted_narrow(u->token, sizeof *u->token, &lo, &hi, depth, (uint8_t)text[depth]);
    return lo < hi && u->token[lo].size == size ? u->token[lo].id : -1;
}

/* The lowest score is taken before tokens of the same text are dropped, as in the reference. */
void unigram_seal(struct unigram *u)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t kept = 0;
    double lowest = 0;
    for (size_t i = 0; i < u->count; i++)
        if (i == 0 || u->token[i].score < lowest) lowest = u->token[i].score;
    u->unknown_score = lowest - UNKNOWN_PENALTY;
    if (u->count > 1) qsort(u->token, u->count, sizeof *u->token, compare_text);
    for (size_t i = 0; i < u->count; i++)
        if (kept == 0 || sorted_compare(&u->token[kept - 1], &u->token[i]) != 0)
            u->token[kept++] = u->token[i];
    u->count = kept;
    for (size_t c = 0, i = 0; c <= 256; c++) {
        while (i < u->count && (uint8_t)u->token[i].text[0] < c)
            i++;
        u->first[c] = (uint32_t)i;
    }
    for (int c = 0; c < 256; c++) {
        const char name[6] = {'<', '0', 'x', digits[c >> 4], digits[c & 15], '>'};
        u->byte[c] = find(u, name, sizeof name);
    }
}

void unigram_close(struct unigram *u)
{
    free(u->token);
    *u = (struct unigram){0};
}

void unigram_scratch_close(struct unigram_scratch *s)
{
    free(s->place);
    free(s->id);
    free(s->start);
    *s = (struct unigram_scratch){0};
}

/* Keeps a path to `end` if there is none yet or its sum is higher. */
static void offer(struct unigram_place *place, uint32_t start, uint32_t end, int32_t token,
                  double score)
{
    double sum = place[start].score + score;
    if (place[end].start != UINT32_MAX && sum <= place[end].score) return;
    place[end] = (struct unigram_place){.score = sum, .start = start, .token = token};
}

/* All tokens that start at `at`, the short ones first. */
static void extend(struct unigram_place *place, const struct unigram *u, const char *word,
                   uint32_t size, uint32_t at)
{
    uint32_t one = piece_valid(word + at, size - at);
    size_t lo = u->first[(uint8_t)word[at]], hi = u->first[(uint8_t)word[at] + 1];
    bool single = false;
    REQUIRE(one > 0);
    for (uint32_t depth = 1; lo < hi; depth++) {
        if (u->token[lo].size == depth) {
            offer(place, at, at + depth, (int32_t)lo, u->token[lo].score);
            single = single || depth == one;
        }
        if (at + depth == size) break;
        sorted_narrow(u->token, sizeof *u->token, &lo, &hi, depth, (uint8_t)word[at + depth]);
    }
    if (!single) offer(place, at, at + one, UNKNOWN, u->unknown_score);
}

static err emit(struct unigram_scratch *s, int32_t id, uint32_t start)
{
    if (s->count == s->capacity) {
        size_t capacity = s->capacity;
        TRY(list_grow(&s->id, &capacity, s->count + 1, sizeof *s->id));
        TRY(list_grow(&s->start, &s->capacity, s->count + 1, sizeof *s->start));
    }
    s->id[s->count] = id;
    s->start[s->count++] = start;
    return ERR_NONE;
}

/* Unknown text may be a token that lost against its unknown characters. Else it becomes its bytes,
 * or one unknown token. */
static err emit_unknown(struct unigram_scratch *s, const struct unigram *u, const char *word,
                        uint32_t begin, uint32_t end)
{
    bool bytes = u->byte_fallback;
    int32_t whole = find(u, word + begin, end - begin);
    if (whole >= 0) return emit(s, whole, begin);
    for (uint32_t i = begin; i < end && bytes; i++)
        bytes = u->byte[(uint8_t)word[i]] >= 0;
    if (!bytes && u->unknown < 0)
        return err_make(ERR_INPUT, "text that the vocabulary does not cover: it has no unknown"
                                   " token");
    if (!bytes) return emit(s, u->unknown, begin);
    for (uint32_t i = begin; i < end; i++)
        TRY(emit(s, u->byte[(uint8_t)word[i]], i));
    return ERR_NONE;
}

/* Turns the path around: place[start].start becomes the end of the token that starts there. */
static void turn_path(struct unigram_place *place, uint32_t size)
{
    uint32_t end = size, next = UINT32_MAX;
    int32_t token = UNKNOWN;
    for (;;) {
        struct unigram_place p = place[end];
        place[end].start = next;
        place[end].token = token;
        if (end == 0) return;
        next = end;
        token = p.token;
        end = p.start;
    }
}

/* The unknown token itself, written out in the text, counts as unknown text too. */
static bool is_unknown(const struct unigram *u, int32_t token)
{
    return token == UNKNOWN || u->token[token].id == u->unknown;
}

/* Neighbouring unknown characters are one unknown text. */
err unigram_encode(struct unigram_scratch *s, const struct unigram *u, const char *word,
                   uint32_t size)
{
    s->count = 0;
    if (size == 0) return ERR_NONE;
    TRY(list_grow(&s->place, &s->places, (size_t)size + 1, sizeof *s->place));
    for (uint32_t i = 0; i <= size; i++)
        s->place[i].start = UINT32_MAX;
    s->place[0].score = 0;
    for (uint32_t at = 0, n; at < size; at += n) {
        extend(s->place, u, word, size, at);
        n = piece_valid(word + at, size - at);
    }
    turn_path(s->place, size);
    for (uint32_t at = 0; at < size;) {
        uint32_t end = s->place[at].start;
        int32_t token = s->place[at].token;
        bool unknown = is_unknown(u, token);
        while (unknown && end < size && is_unknown(u, s->place[end].token))
            end = s->place[end].start;
        if (unknown)
            TRY(emit_unknown(s, u, word, at, end));
        else
            TRY(emit(s, u->token[token].id, at));
        at = end;
    }
    return ERR_NONE;
}
