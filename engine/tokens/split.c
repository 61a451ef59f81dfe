/* Runs the steps of a pre-tokenizer over text. split_read.c makes the steps. */
#include "engine/tokens/split.h"

#include <errno.h>
#include <string.h>

/* Matching is bounded: PCRE2 gives up when its stack is full, and the text is then refused. A
 * pattern comes from the file of a model and is not trusted. */
enum { JIT_STACK_BYTES = 8 << 20 };

/* GPT-2 writes the printable bytes of Latin-1 as themselves, and the other 68 bytes as the code
 * points from 256 on, in the order of their values. */
int split_byte_of_letter(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
    if (c < 256 || c > 256 + 67) return -1;
    uint32_t n = c - 256;
    return n <= 32 ? (int)n : n <= 66 ? (int)(127 + n - 33) : 173;
}

void split_close(struct split *s)
{
    for (size_t i = 0; i < s->count; i++)
        pcre2_code_free(s->step[i].regex);
    *s = (struct split){0};
}

/* One match needs one pair of offsets. The JIT stack starts with 32 KiB and grows to 8 MiB. */
err split_scratch_open(struct split_scratch *s)
{
    s->match = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_BYTES, NULL);
    if (!s->match || !s->context || !s->stack) return err_sys(ENOMEM, "pre-tokenizer");
    pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return ERR_NONE;
}

void split_scratch_close(struct split_scratch *s)
{
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    for (int i = 0; i < SPLIT_STEPS_MAX; i++)
        piece_close(&s->buffer[i]);
    *s = (struct split_scratch){0};
}

/* One run over a text. Each step passes its pieces straight to the next step, so no list of words
 * is ever built. */
struct run {
    const struct split *split;
    struct split_scratch *scratch;
    const struct split_sink *sink;
};

static err run_step(const struct run *r, size_t index, const struct piece *text);

/* Joins neighbouring stretches by the behaviour of a step and passes the results on. The
 * stretch begin .. end - 1 waits for its neighbour; `last` is true if it was a match. */
struct joiner {
    const struct run *run;
    const struct piece *text;
    size_t next;
    enum split_behavior behavior;
    bool invert, last;
    uint32_t begin, end;
};

/* Passes the waiting stretch to the next step. */
static err flush(struct joiner *j)
{
    if (j->begin == j->end) return ERR_NONE;
    struct piece part = piece_part(j->text, j->begin, j->end);
    j->begin = j->end;
    return run_step(j->run, j->next, &part);
}

/* Takes the next stretch of the text, a match or the text between two matches. It either joins the
 * waiting one or replaces it. */
static err stretch(struct joiner *j, uint32_t begin, uint32_t end, bool match)
{
    if (begin == end) return ERR_NONE;
    if (j->invert) match = !match;
    bool waiting = j->begin != j->end, join = false;
    if (j->behavior == SPLIT_CONTIGUOUS) join = match == j->last;
    if (j->behavior == SPLIT_WITH_PREVIOUS) join = match && !j->last;
    if (j->behavior == SPLIT_WITH_NEXT) join = !match && j->last;
    j->last = match;
    if (waiting && join) {
        j->end = end;
        return ERR_NONE;
    }
    TRY(flush(j));
    if (j->behavior == SPLIT_REMOVED && match) {
        j->begin = j->end = end;
        return ERR_NONE;
    }
    j->begin = begin;
    j->end = end;
    return ERR_NONE;
}

/* The next match from `from` on, or an empty one at the end of the text. \K in a pattern can move
 * the start of a match before `from`; this is refused, because the loop would not end. */
static err next_match(uint32_t out[2], const struct run *r, const pcre2_code *regex,
                      const struct piece *text, uint32_t from)
{
    /* The text is valid UTF-8, and `from` lies on a character. */
    int n = pcre2_match(regex, (PCRE2_SPTR)text->text, text->size, from, PCRE2_NO_UTF_CHECK,
                        r->scratch->match, r->scratch->context);
    if (n == PCRE2_ERROR_NOMATCH) {
        out[0] = out[1] = text->size;
        return ERR_NONE;
    }
    if (n < 0)
        return err_make(
            ERR_LIMIT,
            "the pattern of the pre-tokenizer exceeds its limits on this text (PCRE2 error %d)", n);
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(r->scratch->match);
    if (at[0] > at[1] || at[0] < from)
        return err_make(ERR_INPUT, "the pattern of the pre-tokenizer moves the start of its match, "
                                   "which is not supported");
    out[0] = (uint32_t)at[0];
    out[1] = (uint32_t)at[1];
    return ERR_NONE;
}

/* Stretches between matches are passed on too. The behaviour decides what becomes of each. */
static err run_regex(const struct run *r, size_t index, const struct piece *text)
{
    const struct split_step *step = &r->split->step[index];
    struct joiner j = {.run = r,
                       .text = text,
                       .next = index + 1,
                       .behavior = step->behavior,
                       .invert = step->invert};
    uint32_t done = 0, from = 0;
    while (from < text->size) {
        uint32_t at[2] = {0, 0};
        TRY(next_match(at, r, step->regex, text, from));
        from = at[1];
        if (at[0] == at[1]) { /* an empty match cuts here; continue at the next character */
            uint32_t n = 1;
            TRY(stretch(&j, done, at[0], false));
            TRY(flush(&j));
            done = at[0];
            if (at[0] < text->size) (void)piece_char(text->text + at[0], &n);
            from = at[0] + n;
            continue;
        }
        TRY(stretch(&j, done, at[0], false));
        TRY(stretch(&j, at[0], at[1], true));
        done = at[1];
    }
    TRY(stretch(&j, done, text->size, false));
    return flush(&j);
}

/* SPLIT_SPACE and SPLIT_METASPACE. With prefix_first_only only the start of the whole text gets the
 * prefix, not a piece behind an added token. */
static err run_prefix(const struct run *r, size_t index, const struct piece *text)
{
    const struct split_step *step = &r->split->step[index];
    struct piece_buffer *b = &r->scratch->buffer[index];
    bool meta = step->kind == SPLIT_METASPACE;
    const char *mark = meta ? step->mark : " ";
    uint32_t mark_size = meta ? step->mark_size : 1;
    bool has = text->text[0] == ' ' ||
               (text->size >= mark_size && memcmp(text->text, mark, mark_size) == 0);
    bool prefix = step->prefix && !has;
    if (step->prefix_first_only && piece_origin(text, 0) != 0) prefix = false;
    if (!prefix && !meta) return run_step(r, index + 1, text);
    b->size = 0;
    if (prefix) TRY(piece_put(b, mark, mark_size, piece_origin(text, 0)));
    for (uint32_t at = 0; at < text->size;) {
        const char *space = meta ? memchr(text->text + at, ' ', text->size - at) : NULL;
        uint32_t end = space ? (uint32_t)(space - text->text) : text->size;
        TRY(piece_copy(b, text, at, end));
        if (space) TRY(piece_put(b, mark, mark_size, piece_origin(text, end)));
        at = end + 1;
    }
    struct piece changed = piece_of(b);
    return run_step(r, index + 1, &changed);
}

static err run_step(const struct run *r, size_t index, const struct piece *text)
{
    if (text->size == 0) return ERR_NONE;
    if (index == r->split->count) return r->sink->word(r->sink->object, text);
    if (r->split->step[index].kind == SPLIT_REGEX) return run_regex(r, index, text);
    return run_prefix(r, index, text);
}

err split_run(const struct split *s, struct split_scratch *scratch, const struct piece *text,
              const struct split_sink *sink)
{
    struct run r = {.split = s, .scratch = scratch, .sink = sink};
    return run_step(&r, 0, text);
}
