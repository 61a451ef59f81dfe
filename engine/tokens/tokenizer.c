/* Encoding goes through these steps: added tokens in the original text; between them the
 * normaliser; added tokens in the normalised text; between them the pre-tokenizer; byte pair
 * encoding or the best unigram path of each word. Decoding joins the bytes of the tokens and
 * repairs them to valid UTF-8. */
#include "engine/tokens/tokenizer_parts.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void tokens_clear(struct tokens *tokens)
{
    tokens->count = 0;
}

void tokens_close(struct tokens *tokens)
{
    free(tokens->id);
    free(tokens->start);
    *tokens = (struct tokens){0};
}

/* A failed allocation leaves the list as it was: the capacity changes only when both arrays have
 * grown. */
err tokens_push(struct tokens *out, int32_t id, uint32_t start)
{
    if (out->count == out->capacity) {
        size_t capacity = out->capacity ? 2 * out->capacity : 64;
        int32_t *ids = realloc(out->id, capacity * sizeof *ids);
        if (ids) out->id = ids;
        uint32_t *starts = realloc(out->start, capacity * sizeof *starts);
        if (starts) out->start = starts;
        if (!ids || !starts) return err_sys(ENOMEM, "%zu tokens", capacity);
        out->capacity = capacity;
    }
    out->id[out->count] = id;
    out->start[out->count++] = start;
    return ERR_NONE;
}

/* The old list stays in the arena. Readers compute the final size first, so this happens at most a
 * few times. */
err tokenizer_make_room(struct tokenizer *t, size_t vocab)
{
    if (vocab > LIMIT_VOCAB)
        return err_make(ERR_INPUT, "vocabulary of %zu tokens, at most %u are supported", vocab,
                        LIMIT_VOCAB);
    if (vocab <= t->vocab) return ERR_NONE;
    struct tokenizer_token *grown;
    TRY(arena_take(&grown, &t->arena, vocab, sizeof *grown));
    if (t->vocab) memcpy(grown, t->token, t->vocab * sizeof *grown);
    t->token = grown;
    t->vocab = vocab;
    return ERR_NONE;
}

/* Byte-level vocabularies write bytes as letters; see split_byte_of_letter(). */
bool tokenizer_unletter(struct bytes *out, const char *text, size_t size)
{
    size_t before = out->size;
    for (size_t at = 0; at < size;) {
        uint32_t n = piece_valid(text + at, size - at);
        int byte = n ? split_byte_of_letter(piece_char(text + at, &n)) : -1;
        if (byte < 0 || err_is(bytes_append(out, &(uint8_t){(uint8_t)byte}, 1))) {
            out->size = before;
            return false;
        }
        at += n;
    }
    return true;
}

/* The names that end an answer in the published models of all families, as in llama.cpp. Many
 * configurations declare only eos and not the end of a chat turn, and generation would run on
 * without this list. */
bool tokenizer_ends_by_name(const char *text)
{
    static const char *const names[] = {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) return true;
    return false;
}

/* Only special tokens: a normal token may happen to have such a text. */
void tokenizer_mark_ends(struct tokenizer *t)
{
    for (size_t i = 0; i < t->vocab; i++)
        if (t->token[i].special && tokenizer_ends_by_name(t->token[i].text))
            t->token[i].ends = true;
    if (t->eos >= 0 && (size_t)t->eos < t->vocab) t->token[t->eos].ends = true;
}

static void scratch_free(struct tokenizer_scratch *s)
{
    piece_close(&s->repaired);
    normalize_buffers_close(&s->normalized);
    added_matches_close(&s->raw);
    added_matches_close(&s->normal);
    split_scratch_close(&s->split);
    bpe_scratch_close(&s->bpe);
    unigram_scratch_close(&s->unigram);
    free(s);
}

/* Working memory is kept in a list and reused, so an encoding allocates nothing once all its
 * buffers have grown. The lock is held only for the list. */
static err scratch_take(struct tokenizer_scratch **out, struct tokenizer *t)
{
    pthread_mutex_lock(&t->lock);
    struct tokenizer_scratch *s = t->idle;
    if (s) t->idle = s->next;
    pthread_mutex_unlock(&t->lock);
    if (!s) {
        s = calloc(1, sizeof *s);
        if (!s) return err_sys(ENOMEM, "tokenizer");
        err e = split_scratch_open(&s->split);
        if (err_is(e)) return scratch_free(s), e;
    }
    *out = s;
    return ERR_NONE;
}

/* A scratch never returns to the system before the tokenizer is closed: there are at most as many
 * as threads that encoded at once. */
static void scratch_give(struct tokenizer *t, struct tokenizer_scratch *s)
{
    pthread_mutex_lock(&t->lock);
    s->next = t->idle;
    t->idle = s;
    pthread_mutex_unlock(&t->lock);
}

/* No other thread may use the tokenizer any more, so the lock is not taken. */
void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    while (t->idle) {
        struct tokenizer_scratch *s = t->idle;
        t->idle = s->next;
        scratch_free(s);
    }
    pthread_mutex_destroy(&t->lock);
    added_close(&t->raw);
    added_close(&t->normal);
    split_close(&t->split);
    bpe_close(&t->bpe);
    unigram_close(&t->unigram);
    json_decref(t->templates);
    json_decref(t->specials);
    arena_close(&t->arena);
    free(t);
}

struct encoding { /* one call of tokenizer_encode */
    const struct tokenizer *t;
    struct tokenizer_scratch *s;
    struct tokens *out;
    bool special;
};

/* Byte pair encoding of a part of a word. Starts are turned back into offsets of the text of the
 * caller. */
static err encode_part(struct encoding *e, const struct piece *word, uint32_t begin, uint32_t end)
{
    struct bpe_scratch *b = &e->s->bpe;
    TRY(bpe_encode(b, &e->t->bpe, word->text + begin, end - begin));
    for (size_t i = 0; i < b->count; i++)
        TRY(tokens_push(e->out, b->id[i], piece_origin(word, begin + b->start[i])));
    return ERR_NONE;
}

static err encode_unigram(struct encoding *e, const struct piece *word)
{
    struct unigram_scratch *u = &e->s->unigram;
    TRY(unigram_encode(u, &e->t->unigram, word->text, word->size));
    for (size_t i = 0; i < u->count; i++)
        TRY(tokens_push(e->out, u->id[i], piece_origin(word, u->start[i])));
    return ERR_NONE;
}

/* If no symbol crosses the start of a marked word (words_by_mark), long text is cut before its
 * marks. The ids are the same, but the time is linear in the text and most words come from the
 * cache. SentencePiece tokenizers treat the whole text as one word, so this matters for every text
 * of Llama 2. */
static err encode_word(void *object, const struct piece *word)
{
    static const char mark[] = "\xE2\x96\x81";
    struct encoding *e = object;
    if (e->t->unigram.count > 0) return encode_unigram(e, word);
    if (!e->t->bpe.words_by_mark) return encode_part(e, word, 0, word->size);
    uint32_t begin = 0, at = 0;
    while (at < word->size) {
        const char *hit = memmem(word->text + at, word->size - at, mark, 3);
        uint32_t found = hit ? (uint32_t)(hit - word->text) : word->size;
        if (found > at && found < word->size) { /* after something else than a mark */
            TRY(encode_part(e, word, begin, found));
            begin = found;
        }
        at = found + 3;
    }
    return encode_part(e, word, begin, word->size);
}

/* The pre-tokenizer passes its words to encode_word(). */
static err encode_split(struct encoding *e, const struct piece *text)
{
    struct split_sink sink = {.word = encode_word, .object = e};
    return split_run(&e->t->split, &e->s->split, text, &sink);
}

/* Pushes the ids of the added tokens found, and calls `between` for the text around them. */
static err encode_around(struct encoding *e, const struct added_matches *found,
                         const struct piece *text,
                         err (*between)(struct encoding *, const struct piece *))
{
    uint32_t at = 0;
    for (size_t i = 0; i <= found->count; i++) {
        const struct added_match *m = i < found->count ? &found->match[i] : NULL;
        uint32_t end = m ? m->begin : text->size;
        if (end > at) {
            struct piece part = piece_part(text, at, end);
            TRY(between(e, &part));
        }
        if (!m) break;
        TRY(tokens_push(e->out, m->id, piece_origin(text, m->begin)));
        at = m->end;
    }
    return ERR_NONE;
}

/* Normalises a stretch between two added tokens, finds the added tokens that match normalised text,
 * and encodes the rest. */
static err encode_normal(struct encoding *e, const struct piece *text)
{
    struct piece normal;
    TRY(normalize_run(&normal, &e->t->normalize, text, &e->s->normalized));
    TRY(added_find(&e->s->normal, &e->t->normal, normal.text, normal.size, e->special));
    return encode_around(e, &e->s->normal, &normal, encode_split);
}

/* Whether all of the text is valid, which nearly always spares a copy. */
static bool is_utf8(const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        uint32_t n = piece_valid(text + at, size - at);
        if (n == 0) return false;
        at += n;
    }
    return true;
}

/* Invalid UTF-8 is repaired first, since all later steps rely on valid text; nearly all text is
 * valid and is not copied. A failure truncates *out to its old length. */
err tokenizer_encode(struct tokens *out, const struct tokenizer *t, const char *text, size_t bytes,
                     bool special)
{
    if (bytes > LIMIT_TEXT_BYTES)
        return err_make(ERR_LIMIT, "text of %zu bytes, at most %u at once", bytes,
                        LIMIT_TEXT_BYTES);
    struct tokenizer *owner = (struct tokenizer *)t; /* only its list of idle scratch changes */
    struct encoding work = {.t = t, .out = out, .special = special};
    size_t before = out->count;
    TRY(scratch_take(&work.s, owner));
    struct piece whole = {.text = bytes ? text : "", .size = (uint32_t)bytes};
    err e = ERR_NONE;
    if (!is_utf8(whole.text, bytes)) {
        work.s->repaired.size = 0;
        TRY_OUT(e, piece_repair(&work.s->repaired, text, (uint32_t)bytes));
        whole = piece_of(&work.s->repaired);
    }
    TRY_OUT(e, added_find(&work.s->raw, &t->raw, whole.text, whole.size, special));
    TRY_OUT(e, encode_around(&work, &work.s->raw, &whole, encode_normal));
out:
    if (err_is(e)) out->count = before;
    scratch_give(owner, work.s);
    return e;
}

/* The list grows at its end first, so that a failure leaves it as it was. */
err tokenizer_begin(struct tokens *tokens, const struct tokenizer *t, bool *had)
{
    bool there = t->bos >= 0 && tokens->count > 0 && tokens->id[0] == t->bos;
    if (had) *had = there;
    if (t->bos < 0 || there) return ERR_NONE;
    TRY(tokens_push(tokens, t->bos, 0));
    memmove(tokens->id + 1, tokens->id, (tokens->count - 1) * sizeof *tokens->id);
    memmove(tokens->start + 1, tokens->start, (tokens->count - 1) * sizeof *tokens->start);
    tokens->id[0] = t->bos;
    tokens->start[0] = 0;
    return ERR_NONE;
}

static err put_replacement(struct bytes *out)
{
    return bytes_append(out, "\xEF\xBF\xBD", 3);
}

/* The length of the valid character at the start of held[0 .. count - 1]; or the negative number of
 * bytes that can no longer become a valid character; or 0 if more bytes are needed. The ranges of
 * the second byte follow the table of well-formed sequences of the Unicode standard, so an error is
 * noticed at the first wrong byte. */
static int decided(const uint8_t *held, uint32_t count)
{
    uint32_t n = piece_valid((const char *)held, count);
    if (n > 0) return (int)n;
    uint8_t c = held[0];
    if (c < 0xC2 || c > 0xF4) return -1;
    uint32_t need = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
    for (uint32_t i = 1; i < count && i < need; i++) {
        uint8_t low = 0x80, high = 0xBF;
        if (i == 1 && c == 0xE0) low = 0xA0;
        if (i == 1 && c == 0xED) high = 0x9F;
        if (i == 1 && c == 0xF0) low = 0x90;
        if (i == 1 && c == 0xF4) high = 0x8F;
        if (held[i] < low || held[i] > high) return -(int)i;
    }
    return 0;
}

/* Passes on everything that is decided. At most 4 bytes are held, because a fourth byte always
 * decides. */
static err stream_byte(struct bytes *out, struct tokenizer_stream *s, uint8_t byte)
{
    s->held[s->held_count++] = byte;
    for (int n; s->held_count > 0 && (n = decided(s->held, s->held_count)) != 0;) {
        uint32_t used = (uint32_t)(n > 0 ? n : -n);
        if (n > 0)
            TRY(bytes_append(out, s->held, used));
        else
            TRY(put_replacement(out));
        s->held_count -= used;
        memmove(s->held, s->held + used, s->held_count);
    }
    return ERR_NONE;
}

/* On failure the stream and *out are as before, so a caller may try again. */
err tokenizer_stream_add(struct bytes *out, struct tokenizer_stream *s, int32_t id)
{
    const struct tokenizer *t = s->tokenizer;
    if (id < 0 || (size_t)id >= t->vocab)
        return err_make(ERR_INPUT, "token id %d is outside the vocabulary of %zu", id, t->vocab);
    const struct tokenizer_token *token = &t->token[id];
    struct tokenizer_stream before = *s;
    size_t size = out->size;
    bool first = s->start;
    if (token->special && !s->special) return ERR_NONE;
    s->start = false;
    for (uint32_t i = 0; i < token->size; i++) {
        if (i == 0 && first && t->strip_space && token->bytes[0] == ' ') continue;
        err e = stream_byte(out, s, (uint8_t)token->bytes[i]);
        if (!err_is(e)) continue;
        *s = before;
        out->size = size;
        return e;
    }
    return ERR_NONE;
}

err tokenizer_stream_end(struct bytes *out, struct tokenizer_stream *s)
{
    if (s->held_count > 0) TRY(put_replacement(out));
    s->held_count = 0;
    return ERR_NONE;
}

/* The stream decoder does the work, so both ways of decoding give the same text. */
err tokenizer_decode(struct bytes *out, const struct tokenizer *t, const int32_t *id, size_t count,
                     bool special)
{
    struct tokenizer_stream s = {.tokenizer = t, .start = true, .special = special};
    size_t before = out->size;
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = tokenizer_stream_add(out, &s, id[i]);
    if (!err_is(e)) e = tokenizer_stream_end(out, &s);
    if (err_is(e)) out->size = before;
    return e;
}

size_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab;
}
const char *tokenizer_kind(const struct tokenizer *t)
{
    return t->kind;
}
int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}
int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}
const char *tokenizer_template(const struct tokenizer *t, const char *name)
{
    return json_string_value(json_object_get(t->templates, name));
}
const json_t *tokenizer_specials(const struct tokenizer *t)
{
    return t->specials;
}

/* An id outside the vocabulary, such as a padding row of the embedding, has no text and no
 * properties. */
static const struct tokenizer_token *token_at(const struct tokenizer *t, int32_t id)
{
    static const struct tokenizer_token none;
    return id >= 0 && (size_t)id < t->vocab ? &t->token[id] : &none;
}

bool tokenizer_ends(const struct tokenizer *t, int32_t id)
{
    return token_at(t, id)->ends;
}
const char *tokenizer_token(const struct tokenizer *t, int32_t id)
{
    return token_at(t, id)->text;
}

/* Linear: used only while opening and in tests. */
int32_t tokenizer_find(const struct tokenizer *t, const char *token)
{
    for (size_t i = 0; i < t->vocab; i++)
        if (t->token[i].text && strcmp(t->token[i].text, token) == 0) return (int32_t)i;
    return -1;
}
