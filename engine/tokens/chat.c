/* Renders messages by the rules of each family. Each render function repeats what the published
 * Jinja template prints for plain messages, including its odd spaces: a model has seen exactly this
 * text in training. tests/golden compares them with transformers. */
#include "engine/tokens/chat.h"

#include "engine/tokens/piece.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The date that the template of Llama 3.1 prints when it is given none. */
static const char default_date[] = "26 Jul 2024";

void chat_spans_close(struct chat_spans *spans)
{
    free(spans->span);
    *spans = (struct chat_spans){0};
}

struct text {
    const char *at;
    size_t size;
};

struct render { /* arguments of one call of chat_render() */
    struct bytes *out;
    struct chat_spans *spans;
    const struct chat_template *c;
    const struct chat_message *message;
    size_t count;
    const struct chat_options *options;
};

static err say(struct render *r, const char *text)
{
    return bytes_append(r->out, text, strlen(text));
}
/* `out` has a maximum size; a longer text is an error of bytes_append(). */
static err say_part(struct render *r, struct text t)
{
    return bytes_append(r->out, t.at, t.size);
}

static struct text whole(const char *text)
{
    return (struct text){text, strlen(text)};
}

/* As strip() of Python and trim of Jinja: white space and the separators U+001C to U+001F. */
static struct text trim(struct text t)
{
    uint32_t n;
    for (; t.size > 0; t.at += n, t.size -= n) {
        uint32_t c = piece_char(t.at, &n);
        if (!piece_space(c) && !(c >= 0x1C && c <= 0x1F)) break;
    }
    while (t.size > 0) {
        size_t last = t.size - 1;
        while (last > 0 && ((uint8_t)t.at[last] & 0xC0) == 0x80)
            last--;
        uint32_t c = piece_char(t.at + last, &n);
        if (!piece_space(c) && !(c >= 0x1C && c <= 0x1F)) break;
        t.size = last;
    }
    return t;
}

/* Removes line feeds only, as strip("\n") and lstrip("\n") in the template of Qwen3. */
static struct text trim_lines(struct text t, bool left, bool right)
{
    while (left && t.size > 0 && *t.at == '\n')
        t.at++, t.size--;
    while (right && t.size > 0 && t.at[t.size - 1] == '\n')
        t.size--;
    return t;
}

/* The span ends at the current end of the text. */
static err add_span(struct render *r, size_t begin)
{
    struct chat_spans *s = r->spans;
    if (!s) return ERR_NONE;
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 8;
        struct chat_span *grown = realloc(s->span, capacity * sizeof *grown);
        if (!grown) return err_sys(ENOMEM, "chat");
        s->span = grown;
        s->capacity = capacity;
    }
    s->span[s->count++] = (struct chat_span){begin, r->out->size};
    return ERR_NONE;
}

/* False also beyond the last message, so callers need not check the count. */
static bool is_role(const struct render *r, size_t i, const char *role)
{
    return i < r->count && strcmp(r->message[i].role, role) == 0;
}

/* A turn <before>content<after>. The span of an answer is the content and the token that closes it,
 * so the model learns to stop. */
static err say_turn(struct render *r, const char *before, struct text content, const char *after,
                    bool answer)
{
    TRY(say(r, before));
    size_t begin = r->out->size;
    TRY(say_part(r, content));
    TRY(say(r, after));
    return answer ? add_span(r, begin) : ERR_NONE;
}

/* The line feed after <|im_end|> does not belong to the span: generation has stopped before it. */
static err render_chatml(struct render *r)
{
    char before[64];
    if (r->c->says_bos) TRY(say(r, r->c->bos));
    if (!is_role(r, 0, "system") && *r->c->system)
        TRY(say_turn(r, "<|im_start|>system\n", whole(r->c->system), "<|im_end|>\n", false));
    for (size_t i = 0; i < r->count; i++) {
        (void)snprintf(before, sizeof before, "<|im_start|>%s\n", r->message[i].role);
        TRY(say_turn(r, before, whole(r->message[i].content), "<|im_end|>",
                     is_role(r, i, "assistant")));
        TRY(say(r, "\n"));
    }
    return r->options->generate ? say(r, "<|im_start|>assistant\n") : ERR_NONE;
}

static bool starts_with(struct text t, const char *part)
{
    return t.size >= strlen(part) && memcmp(t.at, part, strlen(part)) == 0;
}

static bool ends_with(struct text t, const char *part)
{
    size_t n = strlen(part);
    return t.size >= n && memcmp(t.at + t.size - n, part, n) == 0;
}

/* The last user turn that is not the answer of a tool. The template prints thoughts only in answers
 * behind it. */
static size_t last_question(const struct render *r)
{
    for (size_t i = r->count; i-- > 0;) {
        struct text t = whole(r->message[i].content);
        bool tool = starts_with(t, "<tool_response>") && ends_with(t, "</tool_response>");
        if (is_role(r, i, "user") && !tool) return i;
    }
    return r->count - 1;
}

/* The thought is the text between the last <think> before the first </think> and this </think>; the
 * answer is the text behind the last </think>. The template finds them with split() in the same
 * way. */
static void part_thought(struct text *thought, struct text *answer, const char *content)
{
    static const char open[] = "<think>", close[] = "</think>";
    const char *first = strstr(content, close), *last = first, *start = content;
    *thought = (struct text){content, 0};
    *answer = whole(content);
    if (!first) return;
    for (const char *next; (next = strstr(last + 1, close)) != NULL;)
        last = next;
    for (const char *next; (next = strstr(start, open)) != NULL && next < first;)
        start = next + strlen(open);
    *thought = trim_lines((struct text){start, (size_t)(first - start)}, true, true);
    *answer = trim_lines(whole(last + strlen(close)), true, false);
}

/* The last answer gets a pair of think marks even without a thought, as the template prints
 * them. */
static err render_qwen3_answer(struct render *r, size_t i, size_t question)
{
    struct text thought, answer;
    part_thought(&thought, &answer, r->message[i].content);
    TRY(say(r, "<|im_start|>assistant\n"));
    size_t begin = r->out->size;
    if (i > question && (i + 1 == r->count || thought.size > 0)) {
        TRY(say(r, "<think>\n"));
        TRY(say_part(r, thought));
        TRY(say(r, "\n</think>\n\n"));
        answer = trim_lines(answer, true, false);
    }
    TRY(say_part(r, answer));
    TRY(say(r, "<|im_end|>"));
    TRY(add_span(r, begin));
    return say(r, "\n");
}

/* The template of Qwen3 has no default system turn. */
static err render_qwen3(struct render *r)
{
    char before[64];
    size_t question = last_question(r);
    for (size_t i = 0; i < r->count; i++) {
        if (is_role(r, i, "assistant")) {
            TRY(render_qwen3_answer(r, i, question));
            continue;
        }
        (void)snprintf(before, sizeof before, "<|im_start|>%s\n", r->message[i].role);
        TRY(say_turn(r, before, whole(r->message[i].content), "<|im_end|>\n", false));
    }
    if (!r->options->generate) return ERR_NONE;
    TRY(say(r, "<|im_start|>assistant\n"));
    return r->c->open_thought ? say(r, "<think>\n") : ERR_NONE;
}

/* Llama 3.1 and later always print a system turn with two dates, into which the system message of
 * the caller is put. */
static err render_llama3(struct render *r)
{
    char before[80];
    size_t i = 0;
    TRY(say(r, r->c->bos));
    if (r->c->dated) {
        TRY(say(r, "<|start_header_id|>system<|end_header_id|>\n\n"
                   "Cutting Knowledge Date: December 2023\nToday Date: "));
        TRY(say(r, r->options->date ? r->options->date : default_date));
        TRY(say(r, "\n\n"));
        if (is_role(r, 0, "system")) TRY(say_part(r, trim(whole(r->message[i++].content))));
        TRY(say(r, "<|eot_id|>"));
    }
    for (; i < r->count; i++) {
        (void)snprintf(before, sizeof before, "<|start_header_id|>%s<|end_header_id|>\n\n",
                       r->message[i].role);
        TRY(say_turn(r, before, trim(whole(r->message[i].content)), "<|eot_id|>",
                     is_role(r, i, "assistant")));
    }
    bool open = r->options->generate || r->c->always_generate;
    return open ? say(r, "<|start_header_id|>assistant<|end_header_id|>\n\n") : ERR_NONE;
}

/* The templates of Llama 2 and Mistral raise an exception for other orders. */
static err check_alternation(const struct render *r, size_t first)
{
    for (size_t i = first; i < r->count; i++)
        if (is_role(r, i, "user") != ((i - first) % 2 == 0) || is_role(r, i, "system"))
            return err_make(ERR_INPUT,
                            "message %zu has role %.20s: this model's turns must alternate user, "
                            "assistant, user, ...",
                            i + 1, r->message[i].role);
    return ERR_NONE;
}

/* The system message becomes part of the first user turn, between <<SYS>> and <</SYS>>. The
 * template strips the joined text, so leading white space of the user's message survives behind the
 * markers and only the end is stripped; if the message is empty, the line feeds behind the marker
 * go too. */
static err render_llama2(struct render *r)
{
    size_t first = is_role(r, 0, "system") ? 1 : 0;
    TRY(check_alternation(r, first));
    for (size_t i = first; i < r->count; i++) {
        struct text content = whole(r->message[i].content);
        if (is_role(r, i, "assistant")) {
            size_t begin = r->out->size;
            TRY(say(r, " "));
            TRY(say_part(r, trim(content)));
            TRY(say(r, " "));
            TRY(say(r, r->c->eos));
            TRY(add_span(r, begin));
            continue;
        }
        TRY(say(r, r->c->bos));
        TRY(say(r, "[INST] "));
        if (i == first && first == 1) {
            TRY(say(r, "<<SYS>>\n"));
            TRY(say(r, r->message[0].content));
            TRY(say(r, "\n<</SYS>>\n\n"));
            struct text t = trim(content);
            if (t.size == 0)
                r->out->size -= 2;
            else
                t = (struct text){content.at, (size_t)(t.at + t.size - content.at)};
            TRY(say_part(r, t));
        } else {
            TRY(say_part(r, trim(content)));
        }
        TRY(say(r, " [/INST]"));
    }
    return ERR_NONE;
}

/* Versions differ in their spaces and in the place of the system message: before the first or the
 * last user message. chat_find.c reads these details from the template. */
static err render_mistral(struct render *r)
{
    const struct chat_template *c = r->c;
    size_t first = is_role(r, 0, "system") ? 1 : 0;
    if (first == 1 && c->no_system)
        return err_make(
            ERR_INPUT,
            "message 1 has role system: this model's template does not allow system messages");
    TRY(check_alternation(r, first));
    TRY(say(r, c->bos));
    for (size_t i = first; i < r->count; i++) {
        struct text content = whole(r->message[i].content);
        if (is_role(r, i, "assistant")) {
            size_t begin = r->out->size;
            TRY(say(r, c->answer_before));
            TRY(say_part(r, c->trim_answer ? trim(content) : content));
            TRY(say(r, c->eos));
            TRY(add_span(r, begin));
            TRY(say(r, c->answer_after));
            continue;
        }
        TRY(say(r, c->user_before));
        if (first == 1 && (c->system_last ? i + 1 == r->count : i == first)) {
            TRY(say(r, r->message[0].content));
            TRY(say(r, "\n\n"));
        }
        TRY(say_turn(r, "", content, c->user_after, false));
    }
    return ERR_NONE;
}

/* The closing token is the eos of the model. */
static err render_zephyr(struct render *r)
{
    char before[64];
    for (size_t i = 0; i < r->count; i++) {
        (void)snprintf(before, sizeof before, "<|%s|>\n", r->message[i].role);
        TRY(say_turn(r, before, whole(r->message[i].content), r->c->eos,
                     is_role(r, i, "assistant")));
        TRY(say(r, "\n"));
    }
    return r->options->generate ? say(r, "<|assistant|>\n") : ERR_NONE;
}

/* Roles are checked for all families first. Turns of tools are refused, since their text depends on
 * parts of the template that are not repeated here. */
static err check_roles(const struct render *r)
{
    if (r->count == 0) return err_make(ERR_INPUT, "messages are empty");
    for (size_t i = 0; i < r->count; i++)
        if (!is_role(r, i, "system") && !is_role(r, i, "user") && !is_role(r, i, "assistant"))
            return err_make(ERR_INPUT,
                            "message %zu has role %.20s: expected system, user or assistant", i + 1,
                            r->message[i].role);
    return ERR_NONE;
}

/* A failed call cuts *out and *spans back to their old lengths. */
err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat_template *c,
                const struct chat_message *message, size_t count,
                const struct chat_options *options)
{
    static err (*const families[])(struct render *) = {
        [CHAT_CHATML] = render_chatml,   [CHAT_QWEN3] = render_qwen3,
        [CHAT_LLAMA2] = render_llama2,   [CHAT_LLAMA3] = render_llama3,
        [CHAT_MISTRAL] = render_mistral, [CHAT_ZEPHYR] = render_zephyr,
    };
    struct render r = {out, spans, c, message, count, options};
    size_t size = out->size, had = spans ? spans->count : 0;
    err e = check_roles(&r);
    if (!err_is(e)) e = families[c->family](&r);
    if (!err_is(e)) return e;
    out->size = size;
    if (spans) spans->count = had;
    return e;
}
