#include "engine/completions.h"

#include "engine/generate.h"

#include <ctype.h>
#include <string.h>

/* The texts of the tokens that end an answer. */
struct ends {
    const char **text;
    size_t count;
};

/* Tokens without a visible text cannot be seen at the end of a completion. */
static err find_ends(struct ends *out, const struct tokenizer *t, const int32_t *id, size_t count,
                     struct arena *arena)
{
    struct bytes text = {.max = LIMIT_LINE_BYTES};
    struct ends ends = {0};
    err e = ERR_NONE;
    TRY(arena_take(&ends.text, arena, count, sizeof *ends.text));
    for (size_t i = 0; i < count && !err_is(e); i++) {
        if (!tokenizer_token(t, id[i])) continue; /* the configuration may name ids beyond it */
        bytes_clear(&text);
        e = tokenizer_decode(&text, t, &id[i], 1, /*special*/ true);
        if (err_is(e) || !text.size || isspace(text.data[text.size - 1])) continue;
        e = arena_text(&ends.text[ends.count++], arena, (const char *)text.data, text.size);
    }
    bytes_close(&text);
    if (!err_is(e)) *out = ends;
    return e;
}

static bool ends_with(const char *text, size_t size, const char *end)
{
    size_t n = strlen(end);
    return n <= size && memcmp(text + size - n, end, n) == 0;
}

/* White space at the ends is ignored, because a tokenizer may or may not attach a space to the
 * first token of an answer. So are tokens that end an answer: rows that were rendered by another
 * program contain them as text, while a generated answer never does. */
static const char *trim(size_t *size, const char *text, const struct ends *ends)
{
    size_t n = strlen(text), i;
    while (isspace((unsigned char)*text))
        text++, n--;
    do {
        while (n && isspace((unsigned char)text[n - 1]))
            n--;
        for (i = 0; i < ends->count && !ends_with(text, n, ends->text[i]);)
            i++;
        if (i < ends->count) n -= strlen(ends->text[i]);
    } while (i < ends->count);
    *size = n;
    return text;
}

static bool is_equal(const char *found, const char *expected, const struct ends *ends)
{
    size_t n, m;
    found = trim(&n, found, ends);
    expected = trim(&m, expected, ends);
    return n == m && memcmp(found, expected, n) == 0;
}

/* A row needs at least one prompt token to generate from. */
static bool is_wanted(const struct data_row *row)
{
    return row->completion != NULL && row->prompt != 0;
}

/* Both the configuration and the tokenizer declare ending tokens, and published models often state
 * only one of the two. Duplicates do no harm. */
err completions_stop_ids(const int32_t **out, size_t *count, const struct model *m,
                         const struct tokenizer *tokenizer, struct arena *arena)
{
    int32_t *id = NULL, vocab = (int32_t)m->arch.vocab;
    size_t n = 0;
    TRY(arena_take(&id, arena, (size_t)vocab + MODEL_EOS_MAX, sizeof *id));
    for (uint32_t i = 0; i < m->eos_count; i++)
        id[n++] = m->eos[i];
    for (int32_t i = 0; i < vocab; i++)
        if (tokenizer_ends(tokenizer, i)) id[n++] = i;
    *out = id;
    *count = n;
    return ERR_NONE;
}

/* Callers use it to find out whether they need a tokenizer at all. */
size_t completions_wanted(const struct dataset *data)
{
    size_t n = 0;
    for (size_t i = 0; i < data->count; i++)
        n += is_wanted(&data->row[i]);
    return n;
}

struct batch { /* rows with completions: index, prompt, generated ids, their number */
    struct ends ends;
    size_t *row;
    struct generate_prompt *prompt;
    int32_t **out;
    uint32_t *count;
};

/* A row may generate as many tokens as its own completion has, including the token that ends it: a
 * longer answer is wrong anyway. If the completion was cut away when the row was read, the answer
 * cannot be right, and one token is enough to show it. */
static err batch_make(struct batch *b, const struct dataset *data, size_t wanted,
                      struct arena *arena)
{
    size_t n = 0;
    TRY(arena_take(&b->row, arena, wanted, sizeof *b->row));
    TRY(arena_take(&b->prompt, arena, wanted, sizeof *b->prompt));
    TRY(arena_take(&b->out, arena, wanted, sizeof *b->out));
    TRY(arena_take(&b->count, arena, wanted, sizeof *b->count));
    for (size_t i = 0; i < data->count; i++) {
        const struct data_row *row = &data->row[i];
        if (!is_wanted(row)) continue;
        uint32_t tokens = row->count > row->prompt ? row->count - row->prompt : 1;
        b->row[n] = i;
        b->prompt[n] = (struct generate_prompt){row->id, row->prompt, tokens};
        TRY(arena_take(&b->out[n], arena, tokens, sizeof(int32_t)));
        n++;
    }
    return ERR_NONE;
}

/* Decodes the generated ids and compares them with the completion. The text lives in the arena,
 * because callers print it. */
static err judge(struct completions *c, const struct completions_task *t, const struct batch *b,
                 size_t i, struct arena *arena)
{
    struct bytes text = {.max = LIMIT_LINE_BYTES};
    err e = tokenizer_decode(&text, t->tokenizer, b->out[i], b->count[i], false);
    const char *found = text.data ? (const char *)text.data : "";
    size_t row = b->row[i];
    if (!err_is(e)) e = arena_text(&c->found[row], arena, found, strlen(found));
    if (!err_is(e)) {
        c->correct[row] = is_equal(found, t->data->row[row].completion, &b->ends);
        c->right += c->correct[row];
    }
    bytes_close(&text);
    return e;
}

/* In slices of 32 rows, so that progress is shown and an interruption is noticed within seconds.
 * The batch size does not change the answers. */
err completions_measure(struct completions *out, const struct completions_task *t,
                        struct arena *arena)
{
    enum { SLICE = 32 };
    struct completions c = {.asked = completions_wanted(t->data)};
    struct batch b = {0};
    struct generate_options how = {0};
    TRY(arena_take(&c.found, arena, t->data->count, sizeof *c.found));
    TRY(arena_take(&c.correct, arena, t->data->count, sizeof *c.correct));
    if (c.asked > 0) {
        TRY(batch_make(&b, t->data, c.asked, arena));
        TRY(completions_stop_ids(&how.stop, &how.stops, t->model, t->tokenizer, arena));
        TRY(find_ends(&b.ends, t->tokenizer, how.stop, how.stops, arena));
    }
    for (size_t at = 0; at < c.asked; at += SLICE) {
        size_t n = c.asked - at < SLICE ? c.asked - at : SLICE;
        if (t->progress && !t->progress(t->user, at, c.asked))
            return err_make(ERR_STOPPED, "interrupted");
        TRY(generate_many(b.out + at, b.count + at, t->engine, t->adapter, b.prompt + at, n, &how));
        for (size_t i = at; i < at + n; i++)
            TRY(judge(&c, t, &b, i, arena));
    }
    *out = c;
    return ERR_NONE;
}
