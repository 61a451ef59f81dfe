/* Byte pair encoding with a heap of possible joins and a linked list of symbols, so a word of n
 * symbols takes O(n log n). Words of a text repeat, and a direct-mapped cache keeps the results of
 * short ones. */
#include "engine/tokens/bpe.h"

#include "base/list.h"
#include "engine/tokens/bpe_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A cache entry has 56 bytes. 24 bytes hold nearly all words of a natural language. */
enum { CACHE_SLOTS = 1 << 14, CACHE_WORD_BYTES = 24, CACHE_TOKENS = 6 };

struct bpe_node { /* one symbol of the word, in a doubly linked list */
    uint32_t symbol, start, next, previous;
};
struct bpe_job { /* join node `at` with the next one, if they are still `left` and `right` */
    uint32_t rank, at, left, right, joined;
};
struct bpe_word { /* the result for a short word; size 0: free */
    uint8_t size, count;
    uint8_t start[CACHE_TOKENS];
    char text[CACHE_WORD_BYTES];
    int32_t id[CACHE_TOKENS];
};

/* 0xFF bytes make every entry BPE_NONE. */
void bpe_init(struct bpe *b)
{
    *b = (struct bpe){.unknown = BPE_NONE};
    memset(b->byte, 0xFF, sizeof b->byte);
    memset(b->ascii, 0xFF, sizeof b->ascii);
}

void bpe_close(struct bpe *b)
{
    free(b->text);
    free(b->symbol);
    free(b->slot);
    free(b->pair);
    *b = (struct bpe){0};
}

uint32_t bpe_find(const struct bpe *b, const char *text, size_t size)
{
    return bpe_table_find(b, text, size);
}

/* A symbol keeps its first token: later tokens with the same text (in GGUF files) can be decoded
 * but are never produced. */
err bpe_add_token(struct bpe *b, const char *text, size_t size, int32_t token)
{
    uint32_t symbol = BPE_NONE;
    TRY(bpe_table_symbol(&symbol, b, text, size));
    if (b->symbol[symbol].token < 0) b->symbol[symbol].token = token;
    return ERR_NONE;
}

/* The joined text may be no token; then it is a step towards a longer one.
 * bpe_table_symbol() bounds the sizes, so `joined` is large enough. */
err bpe_add_merge(struct bpe *b, const struct bpe_merge *m)
{
    char joined[2 * BPE_TABLE_TOKEN_BYTES];
    struct bpe_pair pair = {.rank = m->rank};
    TRY(bpe_table_symbol(&pair.left, b, m->left, m->left_size));
    TRY(bpe_table_symbol(&pair.right, b, m->right, m->right_size));
    memcpy(joined, m->left, m->left_size);
    memcpy(joined + m->left_size, m->right, m->right_size);
    TRY(bpe_table_symbol(&pair.joined, b, joined, m->left_size + m->right_size));
    return bpe_table_put(b, &pair, m->replace);
}

/* Bytes of the character that starts with this byte. Stray continuation bytes count as one byte, as
 * in llama.cpp. */
static uint32_t char_size(uint8_t first)
{
    return first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

/* All ways in which two parts give this token. SentencePiece joins any two neighbours whose joined
 * text is a token, so both parts only have to be reachable: a symbol, or a single character, which
 * is added here if the vocabulary lacks it. */
static err add_splits(struct bpe *b, uint32_t symbol, uint32_t rank)
{
    char text[BPE_TABLE_TOKEN_BYTES];
    uint32_t size = b->symbol[symbol].size;
    memcpy(text, b->text + b->symbol[symbol].at, size);
    for (uint32_t cut = 0; cut < size;) {
        cut += char_size((uint8_t)text[cut]);
        if (cut >= size) break;
        struct bpe_pair pair = {.rank = rank, .joined = symbol};
        bool left_char = char_size((uint8_t)text[0]) == cut;
        bool right_char = char_size((uint8_t)text[cut]) == size - cut;
        pair.left = bpe_find(b, text, cut);
        pair.right = bpe_find(b, text + cut, size - cut);
        if (pair.left == BPE_NONE && left_char) TRY(bpe_table_symbol(&pair.left, b, text, cut));
        if (pair.right == BPE_NONE && right_char)
            TRY(bpe_table_symbol(&pair.right, b, text + cut, size - cut));
        if (pair.left == BPE_NONE || pair.right == BPE_NONE) continue;
        TRY(bpe_table_put(b, &pair, true));
    }
    return ERR_NONE;
}

/* Descending. */
static int compare_scores(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return a > b ? -1 : a < b;
}

/* SentencePiece joins the pair with the highest score first. Ranks are positions in the sorted
 * scores, so that both kinds of tokenizer share one algorithm; equal scores get the same rank,
 * because then the leftmost pair has to win. */
err bpe_merge_by_score(struct bpe *b, const float *score, size_t tokens)
{
    float *sorted = malloc((tokens + 1) * sizeof *sorted);
    if (!sorted) return err_sys(ENOMEM, "scores");
    memcpy(sorted, score, tokens * sizeof *sorted);
    qsort(sorted, tokens, sizeof *sorted, compare_scores);
    err e = ERR_NONE;
    size_t count = b->count; /* add_splits() adds single characters, which have no parts */
    for (size_t i = 0; i < count && !err_is(e); i++) {
        int32_t token = b->symbol[i].token;
        REQUIRE(token >= 0 && (size_t)token < tokens);
        size_t low = 0, high = tokens; /* the first place of this score */
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (sorted[middle] > score[token])
                low = middle + 1;
            else
                high = middle;
        }
        e = add_splits(b, (uint32_t)i, (uint32_t)low);
    }
    free(sorted);
    return e;
}

/* Single bytes and ASCII characters are looked up directly. Cutting before marks is exact only if
 * no symbol crosses a mark, if words are not looked up whole, and if unknown text cannot fuse
 * across the cut: hence the conditions on byte_fallback and fuse_unknown. */
void bpe_seal(struct bpe *b)
{
    static const char mark[] = "\xE2\x96\x81", digits[] = "0123456789ABCDEF";
    for (int i = 0; i < 256; i++) {
        char name[6] = {'<', '0', 'x', digits[i >> 4], digits[i & 15], '>'}, one = (char)i;
        if (i < 128) b->ascii[i] = bpe_find(b, &one, 1);
        if (b->bytes) b->byte[i] = bpe_find(b, &one, 1);
        if (!b->bytes && b->byte_fallback) b->byte[i] = bpe_find(b, name, sizeof name);
    }
    b->words_by_mark = !b->bytes && !b->whole && (b->byte_fallback || !b->fuse_unknown);
    for (int i = 0; i < 256 && b->byte_fallback; i++)
        if (b->byte[i] == BPE_NONE) b->words_by_mark = false;
    for (size_t i = 0; i < b->count && b->words_by_mark; i++) {
        const char *text = b->text + b->symbol[i].at, *end = text + b->symbol[i].size;
        while (end - text >= 3 && memcmp(text, mark, 3) == 0)
            text += 3;
        if (memmem(text, (size_t)(end - text), mark, 3)) b->words_by_mark = false;
    }
}

void bpe_scratch_close(struct bpe_scratch *s)
{
    free(s->node);
    free(s->heap);
    free(s->cache);
    free(s->id);
    free(s->start);
    *s = (struct bpe_scratch){0};
}

/* Both lists grow together: a failed second allocation leaves `capacity` unchanged and the first
 * list larger than needed. */
static err emit(struct bpe_scratch *s, int32_t token, uint32_t start)
{
    if (s->count == s->capacity) {
        size_t capacity = s->capacity;
        TRY(list_grow(&s->id, &capacity, s->count + 1, sizeof *s->id));
        TRY(list_grow(&s->start, &s->capacity, s->count + 1, sizeof *s->start));
    }
    s->id[s->count] = token;
    s->start[s->count++] = start;
    return ERR_NONE;
}

/* Lowest rank first, and the leftmost of equal ranks. */
static bool job_before(const struct bpe_job *a, const struct bpe_job *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Adds the join of a node with its neighbour to the heap, if the table has the pair. */
static err push_job(struct bpe_scratch *s, const struct bpe *b, uint32_t at)
{
    uint32_t next = s->node[at].next;
    if (next == BPE_NONE || b->pairs == 0) return ERR_NONE;
    uint32_t left = s->node[at].symbol, right = s->node[next].symbol;
    if (left == BPE_NONE || right == BPE_NONE) return ERR_NONE;
    const struct bpe_pair *pair = bpe_table_pair(b, left, right);
    if (pair->left == BPE_NONE) return ERR_NONE;
    TRY(list_grow(&s->heap, &s->heap_capacity, s->heap_count + 1, sizeof *s->heap));
    struct bpe_job job = {pair->rank, at, left, right, pair->joined};
    size_t i = s->heap_count++;
    for (size_t up; i > 0 && job_before(&job, &s->heap[up = (i - 1) / 2]); i = up)
        s->heap[i] = s->heap[up];
    s->heap[i] = job;
    return ERR_NONE;
}

/* Removes the first job of the binary heap. */
static struct bpe_job pop_job(struct bpe_scratch *s)
{
    struct bpe_job top = s->heap[0], last = s->heap[--s->heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->heap_count; i = child) {
        if (child + 1 < s->heap_count && job_before(&s->heap[child + 1], &s->heap[child])) child++;
        if (!job_before(&s->heap[child], &last)) break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = last;
    return top;
}

struct starting { /* a word that is being divided into nodes */
    struct bpe_scratch *s;
    size_t count;
    bool unknown;           /* an unknown token waits to be added (with `early`) */
    uint32_t unknown_start; /* its first byte */
};

/* Appends a node to the list. */
static err put_node(struct starting *w, uint32_t symbol, uint32_t start)
{
    TRY(list_grow(&w->s->node, &w->s->node_capacity, w->count + 1, sizeof *w->s->node));
    w->s->node[w->count] = (struct bpe_node){
        .symbol = symbol,
        .start = start,
        .next = (uint32_t)w->count + 1,
        .previous = w->count ? (uint32_t)w->count - 1 : BPE_NONE,
    };
    w->count++;
    return ERR_NONE;
}

/* Whether byte fallback is on and every byte of the character has a token. */
static bool has_bytes(const struct bpe *b, const char *text, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        if (b->byte[(uint8_t)text[i]] == BPE_NONE) return false;
    return b->byte_fallback;
}

/* Adds the unknown token that waits. */
static err flush_unknown(struct starting *w, const struct bpe *b)
{
    if (!w->unknown) return ERR_NONE;
    w->unknown = false;
    return put_node(w, b->unknown, w->unknown_start);
}

/* A character without a symbol. The order of Hugging Face is kept, including one oddity: a waiting
 * unknown token is added before the next known or unknown character, but not before a character
 * that falls back to bytes, which therefore comes first in the output. */
static err put_unknown(struct starting *w, const struct bpe *b, const char *text, uint32_t size,
                       uint32_t start)
{
    if (!b->early) return put_node(w, BPE_NONE, start);
    if (has_bytes(b, text, size)) {
        for (uint32_t i = 0; i < size; i++)
            TRY(put_node(w, b->byte[(uint8_t)text[i]], start + i));
        return ERR_NONE;
    }
    if (b->unknown == BPE_NONE) return ERR_NONE;
    if (w->unknown && b->fuse_unknown) return ERR_NONE;
    TRY(flush_unknown(w, b));
    w->unknown = true;
    w->unknown_start = start;
    return ERR_NONE;
}

/* Divides a word into nodes: bytes for a byte-level vocabulary, else characters. A character cut
 * off at the end of the word is shortened. */
static err lay_out(size_t *count, struct bpe_scratch *s, const struct bpe *b, const char *word,
                   uint32_t size)
{
    struct starting w = {.s = s};
    for (uint32_t at = 0, n; at < size; at += n) {
        uint8_t c = (uint8_t)word[at];
        n = b->bytes ? 1 : char_size(c);
        if (n > size - at) n = size - at;
        uint32_t symbol = b->bytes ? b->byte[c] : c < 128 ? b->ascii[c] : bpe_find(b, word + at, n);
        if (symbol == BPE_NONE) {
            TRY(put_unknown(&w, b, word + at, n, at));
            continue;
        }
        TRY(flush_unknown(&w, b));
        TRY(put_node(&w, symbol, at));
    }
    TRY(flush_unknown(&w, b));
    if (w.count) s->node[w.count - 1].next = BPE_NONE;
    *count = w.count;
    return ERR_NONE;
}

/* Takes jobs in order of rank. A job is stale if one of its two symbols was joined elsewhere in the
 * meantime; it is recognised by comparing the symbols, since removing jobs from the middle of a
 * heap would cost more. Each join can allow two new ones, with the left and the right neighbour. */
static err join_all(struct bpe_scratch *s, const struct bpe *b, size_t count)
{
    s->heap_count = 0;
    for (size_t i = 0; i + 1 < count; i++)
        TRY(push_job(s, b, (uint32_t)i));
    while (s->heap_count > 0) {
        struct bpe_job job = pop_job(s);
        struct bpe_node *left = &s->node[job.at];
        if (left->symbol != job.left || left->next == BPE_NONE) continue;
        struct bpe_node *right = &s->node[left->next];
        if (right->symbol != job.right) continue;
        left->symbol = job.joined;
        left->next = right->next;
        right->symbol = BPE_NONE;
        if (left->next != BPE_NONE) s->node[left->next].previous = job.at;
        TRY(push_job(s, b, job.at));
        if (left->previous != BPE_NONE) TRY(push_job(s, b, left->previous));
    }
    return ERR_NONE;
}

/* Tokens for a final symbol that is no token: the tokens of its bytes, else the unknown token, else
 * nothing. In a byte-level vocabulary llama.cpp looks up the bytes themselves rather than their
 * letters, so only the printable ASCII bytes are found; this is repeated here. */
static err emit_parts(struct bpe_scratch *s, const struct bpe *b, const char *text, uint32_t size,
                      uint32_t start)
{
    for (uint32_t i = 0; i < size; i++) {
        uint8_t c = (uint8_t)text[i];
        uint32_t symbol = b->byte[c];
        if (b->bytes && (c < 33 || c > 126)) continue;
        if (symbol == BPE_NONE) symbol = b->unknown;
        if (symbol == BPE_NONE || b->symbol[symbol].token < 0) continue;
        TRY(emit(s, b->symbol[symbol].token, start + i));
    }
    return ERR_NONE;
}

/* The text of a node ends where the next node starts, so nodes need no length. */
static err encode_word(struct bpe_scratch *s, const struct bpe *b, const char *word, uint32_t size)
{
    size_t count;
    uint32_t all = b->whole ? bpe_find(b, word, size) : BPE_NONE;
    if (all != BPE_NONE && b->symbol[all].token >= 0) return emit(s, b->symbol[all].token, 0);
    TRY(lay_out(&count, s, b, word, size));
    TRY(join_all(s, b, count));
    for (uint32_t i = 0; i < count;) {
        const struct bpe_node *node = &s->node[i];
        uint32_t end = node->next == BPE_NONE ? size : s->node[node->next].start;
        if (node->symbol != BPE_NONE && b->symbol[node->symbol].token >= 0)
            TRY(emit(s, b->symbol[node->symbol].token, node->start));
        else
            TRY(emit_parts(s, b, word + node->start, end - node->start, node->start));
        if (node->next == BPE_NONE) break;
        i = node->next;
    }
    return ERR_NONE;
}

/* Results with more than 6 tokens are not kept; such words are rare. */
static void remember(struct bpe_word *w, const struct bpe_scratch *s, const char *word,
                     uint32_t size)
{
    if (s->count > CACHE_TOKENS) return;
    w->size = (uint8_t)size;
    w->count = (uint8_t)s->count;
    memcpy(w->text, word, size);
    for (size_t i = 0; i < s->count; i++) {
        w->id[i] = s->id[i];
        w->start[i] = (uint8_t)s->start[i];
    }
}

/* The cache (0.9 MiB) is allocated with the first word, so a tokenizer that only looks tokens up
 * does not pay for it. */
err bpe_encode(struct bpe_scratch *s, const struct bpe *b, const char *word, uint32_t size)
{
    s->count = 0;
    if (size == 0) return ERR_NONE;
    if (size > CACHE_WORD_BYTES) return encode_word(s, b, word, size);
    if (!s->cache) s->cache = calloc(CACHE_SLOTS, sizeof *s->cache);
    if (!s->cache) return err_sys(ENOMEM, "tokenizer");
    struct bpe_word *w = &s->cache[bpe_table_hash(word, size) & (CACHE_SLOTS - 1)];
    if (w->size == size && memcmp(w->text, word, size) == 0) {
        for (size_t i = 0; i < w->count; i++)
            TRY(emit(s, w->id[i], w->start[i]));
        return ERR_NONE;
    }
    TRY(encode_word(s, b, word, size));
    remember(w, s, word, size);
    return ERR_NONE;
}
