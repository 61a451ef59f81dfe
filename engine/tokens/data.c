/* The rows of a data file and their tokens. Memory is that of the tokens (8 bytes each, in an
 * arena) plus one row, whatever the size of the file. */
#include "engine/tokens/data.h"

#include "base/limits.h"
#include "engine/tokens/data_file.h"
#include "engine/tokens/data_json.h"
#include "engine/tokens/data_member.h"
#include "engine/tokens/data_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for one more row. The list doubles; the old one stays in the arena, which costs at
 * most as much memory as the list itself. */
static err next_row(struct data_row **out, struct dataset *d)
{
    if (d->count >= LIMIT_ROWS) return err_make(ERR_LIMIT, "more than %u rows", LIMIT_ROWS);
    if (d->count == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 256;
        struct data_row *grown;
        TRY(arena_take(&grown, &d->arena, capacity, sizeof *grown));
        if (d->count) memcpy(grown, d->row, d->count * sizeof *grown);
        d->row = grown;
        d->capacity = capacity;
    }
    *out = &d->row[d->count];
    return ERR_NONE;
}

static void count_kind(struct data_kind *k, uint32_t line)
{
    if (k->rows++ == 0) k->line = line;
}

void data_count(struct dataset *d, const struct data_row *row, size_t whole)
{
    d->tokens += row->count;
    d->learned += row->learned;
    if (whole > row->count) count_kind(&d->cut, row->line);
    if (row->learned == 0) count_kind(&d->unlearned, row->line);
    if (whole > d->longest) {
        d->longest = (uint32_t)whole;
        d->longest_line = row->line;
    }
}

/* Position 0 does not count as learned, because nothing predicts it, but it ends the prompt. Rows
 * without learned tokens are kept and counted in `unlearned`. */
err data_put_row(struct data_reader *r, const int32_t *label, const char *completion)
{
    struct dataset *d = r->data;
    struct data_row *row = NULL;
    int32_t *ids, *labels;
    size_t count = r->tokens.count < r->seq ? r->tokens.count : r->seq, learned = 0, prompt = count;
    if (count == 0) return err_make(ERR_INPUT, "the row holds no token");
    TRY(arena_take(&ids, &d->arena, 2 * count, sizeof *ids));
    labels = ids + count;
    memcpy(ids, r->tokens.id, count * sizeof *ids);
    memcpy(labels, label, count * sizeof *labels);
    for (size_t i = 0; i < count; i++) {
        if (labels[i] == DATA_IGNORE) continue;
        if (prompt == count) prompt = i;
        if (i > 0) learned++;
    }
    const char *kept = NULL, *by = NULL;
    if (completion) TRY(arena_text(&kept, &d->arena, completion, strlen(completion)));
    if (r->by) TRY(arena_text(&by, &d->arena, r->by, strlen(r->by)));
    TRY(next_row(&row, d));
    *row = (struct data_row){.id = ids,
                             .label = labels,
                             .count = (uint32_t)count,
                             .learned = (uint32_t)learned,
                             .prompt = (uint32_t)prompt,
                             .line = (uint32_t)r->line,
                             .completion = kept,
                             .by = by};
    d->count++;
    data_count(d, row, r->tokens.count);
    return ERR_NONE;
}

err data_span(struct data_reader *r, size_t begin, size_t end)
{
    if (r->spans.capacity == 0) {
        r->spans.span = malloc(sizeof *r->spans.span);
        if (!r->spans.span) return err_sys(ENOMEM, "row");
        r->spans.capacity = 1;
    }
    r->spans.span[0] = (struct chat_span){begin, end};
    r->spans.count = 1;
    return ERR_NONE;
}

/* ---- tokens ---- */

/* Some tokenizers put a space before every text, which a completion inside a text must not get.
 * Such a completion is encoded behind a line break, which stands alone in their vocabularies, and
 * the tokens of the line break are dropped. *skip is their number and *behind 1, the bytes of the
 * line break; both 0 if the completion is encoded as it is. */
static err encode_behind(size_t *skip, size_t *behind, struct data_reader *r, const char *text,
                         size_t size)
{
    const struct tokenizer *t = r->o->tokenizer;
    struct tokenizer_stream stream = {.tokenizer = t, .special = true};
    struct bytes plain = {.max = 4 * (size_t)LIMIT_LINE_BYTES};
    struct tokens *k = &r->completion;
    err e = ERR_NONE;
    *skip = *behind = 0;
    tokens_clear(k);
    TRY(tokenizer_encode(k, t, text, size, true));
    for (size_t i = 0; i < k->count && plain.size <= size && !err_is(e); i++)
        e = tokenizer_stream_add(&plain, &stream, k->id[i]);
    bool put = !err_is(e) && plain.size > size && plain.data[0] == ' ' &&
               memcmp(plain.data + 1, text, plain.size - 1 < size ? plain.size - 1 : size) == 0;
    bytes_clear(&plain);
    if (!err_is(e) && put) e = bytes_append(&plain, "\n", 1);
    if (!err_is(e) && put) e = bytes_append(&plain, text, size);
    if (!err_is(e) && put) {
        size_t before = k->count;
        e = tokenizer_encode(k, t, (const char *)plain.data, plain.size, true);
        size_t first = before;
        while (first < k->count && k->start[first] < 1)
            first++;
        if (!err_is(e) && first < k->count && k->start[first] == 1)
            *skip = first, *behind = 1;
        else
            k->count = before;
    }
    bytes_close(&plain);
    return e;
}

/* Prompt and completion apart: the ids of a prompt are then those that a user of the model gives
 * it. */
static err encode_apart(struct data_reader *r, size_t begin)
{
    const char *text = (const char *)r->text.data;
    size_t skip, behind;
    TRY(tokenizer_encode(&r->tokens, r->o->tokenizer, text, begin, true));
    TRY(encode_behind(&skip, &behind, r, text + begin, r->text.size - begin));
    for (size_t i = skip; i < r->completion.count; i++)
        TRY(tokens_push(&r->tokens, r->completion.id[i],
                        (uint32_t)(r->completion.start[i] - behind + begin)));
    return ERR_NONE;
}

/* Whether one token holds both the byte before `begin` and that at it, such as the end of the
 * prompt and the start of the completion. The search starts at token *at, which becomes the first
 * one from `begin` on. Where none starts at `begin`, its byte belongs to the token before, or it is
 * white space that the tokenizer drops; the length of that token tells which. */
static err find_joined(bool *out, size_t *at, const struct data_reader *r, size_t begin)
{
    const struct tokens *k = &r->tokens;
    struct bytes text = {.max = LIMIT_LINE_BYTES};
    size_t i = *at;
    *out = false;
    if (begin == 0 || begin >= r->text.size) return ERR_NONE;
    while (i < k->count && k->start[i] < begin)
        i++;
    *at = i;
    if (i == 0 || (i < k->count && k->start[i] == begin)) return ERR_NONE;
    err e = tokenizer_decode(&text, r->o->tokenizer, &k->id[i - 1], 1, true);
    *out = !err_is(e) && k->start[i - 1] + text.size > begin;
    bytes_close(&text);
    return e;
}

/* Whether the text ends an answer itself, so that another end would be learned twice. White space
 * behind the end is what chat templates write there. */
static bool ends_itself(const struct data_reader *r, size_t from)
{
    const struct tokens *k = &r->tokens;
    const char *text = (const char *)r->text.data;
    for (size_t i = k->count; i-- > from;) {
        if (tokenizer_ends(r->o->tokenizer, k->id[i])) return true;
        for (size_t at = k->start[i]; at < r->text.size; at++)
            if (!strchr(" \t\r\n", text[at]) || !text[at]) return false;
    }
    return false;
}

/* The ids of r->text with bos and eos. *from: the first token of the text; *to: behind its last. */
static err encode(size_t *from, size_t *to, struct data_reader *r, const struct data_text *how)
{
    const struct tokenizer *t = r->o->tokenizer;
    struct tokens *k = &r->tokens;
    const char *text = r->text.data ? (const char *)r->text.data : "";
    size_t begin = how->pair ? r->spans.span[0].begin : 0;
    bool had = false, joined = false;
    if (r->o->split && begin > 0 && begin < r->text.size)
        TRY(encode_apart(r, begin));
    else
        TRY(tokenizer_encode(k, t, text, r->text.size, true));
    size_t at = 0;
    /* The token is not learned, and when the model answers the prompt alone, the prompt ends with
     * another one. */
    if (how->pair) TRY(find_joined(&joined, &at, r, begin));
    if (joined) count_kind(&r->data->joined, (uint32_t)r->line);
    size_t count = k->count;
    if (r->o->bos && !how->messages) TRY(tokenizer_begin(k, t, &had));
    if (had) count_kind(&r->data->has_bos, (uint32_t)r->line);
    *from = k->count - count;
    *to = k->count;
    if (how->messages || r->o->no_eos) return ERR_NONE;
    if (tokenizer_eos(t) < 0)
        return err_make(ERR_INPUT, "the tokenizer has no end-of-sequence token; use --no-eos");
    if (!ends_itself(r, *from)) return tokens_push(k, tokenizer_eos(t), (uint32_t)r->text.size);
    count_kind(&r->data->has_eos, (uint32_t)r->line);
    return ERR_NONE;
}

/* The token that holds the first byte of an assistant's turn is learned, as the masks of
 * transformers have it, even if it starts with the space before the turn. */
static err learn_first_tokens(int32_t *label, const struct data_reader *r, size_t from)
{
    size_t at = from;
    for (size_t s = 0; s < r->spans.count; s++) {
        bool joined;
        TRY(find_joined(&joined, &at, r, r->spans.span[s].begin));
        if (joined && at > from) label[at - 1] = r->tokens.id[at - 1];
    }
    return ERR_NONE;
}

/* One encoding of the whole text gives the ids that the model sees in other texts of this kind;
 * encoding prompt and completion apart, as data_options.split asks for, can split a word
 * differently. */
err data_put_text(struct data_reader *r, const struct data_text *how)
{
    const struct tokens *k = &r->tokens;
    size_t from, to, s = 0;
    TRY(encode(&from, &to, r, how));
    if (how->messages && r->spans.earlier_changed)
        count_kind(&r->data->rewritten, (uint32_t)r->line);
    if (how->messages && r->spans.left_out) count_kind(&r->data->left_out, (uint32_t)r->line);
    int32_t *label = malloc((k->count + 1) * sizeof *label);
    if (!label) return err_sys(ENOMEM, "row of %zu tokens", k->count);
    for (size_t i = 0; i < k->count; i++) {
        while (i >= from && s < r->spans.count && k->start[i] >= r->spans.span[s].end)
            s++;
        bool in =
            i >= to || (i >= from && s < r->spans.count && k->start[i] >= r->spans.span[s].begin);
        label[i] = in ? k->id[i] : DATA_IGNORE;
    }
    err e = how->messages ? learn_first_tokens(label, r, from) : ERR_NONE;
    if (!err_is(e)) e = data_put_row(r, label, how->completion);
    free(label);
    return e;
}

/* ---- the file ---- */

static err take_row(void *object, const char *text, size_t size, uint64_t line)
{
    static const struct data_json_known known = {data_member_of_row, data_member_of_message};
    struct data_reader *r = object;
    json_t *row = NULL;
    r->line = line;
    err e = data_json_parse(&row, text, size, &known);
    if (!err_is(e)) e = data_read_row(r, row);
    json_decref(row);
    return err_is(e) ? err_in(e, "%s:%llu", r->path, (unsigned long long)line) : e;
}

/* *out is set only after the whole file has been read. r.text may be twice as long as a line,
 * because a chat template adds text around messages. */
err data_open(struct dataset *out, const char *path, const struct data_options *options)
{
    struct dataset data = {0};
    struct data_reader r = {.path = path, .o = options, .data = &data};
    const struct data_sink sink = {take_row, &r};
    REQUIRE(options->vocab > 0 || options->tokenizer);
    r.vocab = options->vocab ? options->vocab : tokenizer_vocab(options->tokenizer);
    r.seq = options->seq ? options->seq : LIMIT_SEQUENCE;
    r.text.max = 2 * (size_t)LIMIT_LINE_BYTES;
    err e = data_file_read(path, &sink);
    if (!err_is(e) && data.count == 0) e = err_make(ERR_INPUT, "%s: holds no rows", path);
    bytes_close(&r.text);
    chat_spans_close(&r.spans);
    chat_close(r.chat);
    tokens_close(&r.tokens);
    tokens_close(&r.completion);
    if (err_is(e)) {
        data_close(&data);
        return e;
    }
    *out = data;
    return ERR_NONE;
}

/* All rows lie in the arena. */
void data_close(struct dataset *data)
{
    arena_close(&data->arena);
    *data = (struct dataset){0};
}
