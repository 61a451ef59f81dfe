/* The learned parts of a rendered conversation.
 *
 * A template without generation tags does not say where a turn begins and ends. Two more renderings
 * say it: P, the messages before the turn with the generation prompt, and Q, the messages up to and
 * including the turn. Q continues P by the turn. Most templates write each turn independently of
 * later ones, so Q is also the start of the whole text, and the turn lies at the same place there.
 * If it is not, the turn is found by rendering the whole conversation once more with another
 * content in its place. */
#include "engine/tokens/chat_parts.h"

#include "base/limits.h"
#include "base/list.h"
#include "engine/tokens/piece.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

struct text {
    const char *at;
    size_t size;
};

struct search {
    struct chat_work *w;
    struct text whole;    /* the text of all messages */
    struct bytes p, q, m; /* the renderings P and Q, and one with another content */
    json_t *before;       /* list of the messages before the turn */
    size_t offset;        /* of `whole` in the caller's buffer */
    struct chat_spans *spans;
};

static struct text text_of(const struct bytes *b)
{
    return (struct text){b->data ? (const char *)b->data : "", b->size};
}

/* ---- comparing ---- */

static size_t common_start(struct text a, struct text b)
{
    size_t n = 0, most = a.size < b.size ? a.size : b.size;
    while (n < most && a.at[n] == b.at[n])
        n++;
    while (n > 0 && n < a.size && ((uint8_t)a.at[n] & 0xC0) == 0x80)
        n--; /* not inside a character */
    return n;
}

/* Whole characters only, so that a span never cuts one. */
static size_t common_end(struct text a, struct text b)
{
    size_t n = 0, most = a.size < b.size ? a.size : b.size;
    while (n < most && a.at[a.size - 1 - n] == b.at[b.size - 1 - n])
        n++;
    while (n > 0 && ((uint8_t)a.at[a.size - n] & 0xC0) == 0x80)
        n--;
    return n;
}

static bool starts_with(struct text a, struct text part)
{
    return a.size >= part.size && memcmp(a.at, part.at, part.size) == 0;
}

static struct text from(struct text t, size_t at)
{
    return (struct text){t.at + at, t.size - at};
}

static struct text trim(struct text t)
{
    uint32_t n;
    while (t.size > 0 && piece_space(piece_char(t.at, &n)))
        t.at += n, t.size -= n;
    while (t.size > 0 && strchr(" \t\r\n", t.at[t.size - 1]))
        t.size--;
    return t;
}

static err add_span(struct search *s, size_t begin, size_t end)
{
    struct chat_spans *list = s->spans;
    TRY(list_grow(&list->span, &list->capacity, list->count + 1, sizeof *list->span));
    list->span[list->count++] = (struct chat_span){s->offset + begin, s->offset + end};
    return ERR_NONE;
}

/* ---- one turn ---- */

/* A turn in Q: [begin, end), with its content at [content, content_end) if that is found. */
struct turn {
    size_t begin, content, content_end, end;
    bool has_content, ends; /* ends: with a token that ends an answer */
};

/* The last place of the content in the turn. Templates trim it, and some print only what is behind
 * the thinking. */
static void find_content(struct turn *t, struct text q, const json_t *message)
{
    const json_t *value = json_object_get(message, "content");
    struct text content = {json_string_value(value), json_string_length(value)};
    struct text turn = from(q, t->begin);
    if (!content.at) return;
    for (int part = 0; part < 2; part++) {
        struct text wanted = trim(content);
        for (size_t at = wanted.size > 0 && turn.size >= wanted.size ? turn.size - wanted.size + 1
                                                                     : 0;
             at-- > 0;) {
            if (memcmp(turn.at + at, wanted.at, wanted.size) != 0) continue;
            t->has_content = true;
            t->content = t->begin + at;
            t->content_end = t->content + wanted.size;
            return;
        }
        const char *behind = content.at, *next;
        while ((next = memmem(behind, content.size - (size_t)(behind - content.at), "</think>",
                              8)) != NULL)
            behind = next + 8;
        content = from(content, (size_t)(behind - content.at));
    }
}

/* The first end token behind the content closes the turn. Without one it is the whole difference,
 * but not the white space at its end, which belongs to the next turn. */
static void find_end(struct turn *t, struct text q, const struct chat *c)
{
    size_t from_at = t->has_content ? t->content_end : t->begin;
    struct text tail = from(q, from_at);
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < c->ends; i++) {
        size_t n = strlen(c->end[i]);
        const char *at = memmem(tail.at, tail.size, c->end[i], n);
        if (at && (best == SIZE_MAX || (size_t)(at - tail.at) + n < best))
            best = (size_t)(at - tail.at) + n;
    }
    t->ends = best != SIZE_MAX;
    t->end = from_at + best;
    if (t->ends) return;
    t->end = q.size;
    while (t->end > from_at && strchr(" \t\r\n", q.at[t->end - 1]))
        t->end--;
}

/* The text of `messages` with another content in message i. */
static err render_other(struct search *s, const json_t *messages, size_t i, bool generate)
{
    /* Letters of the private use area, which no content has at its ends. */
    static const char other[] = "\xEE\x80\x80x\xEE\x80\x81";
    json_t *list = json_copy((json_t *)messages), *one = json_copy(json_array_get(messages, i));
    bytes_clear(&s->m);
    err e = list && one && json_object_set_new(one, "content", json_string(other)) == 0 &&
                    json_array_set(list, i, one) == 0
                ? chat_text(&s->m, NULL, s->w, list, generate)
                : err_sys(ENOMEM, "chat");
    json_decref(one);
    json_decref(list);
    return e;
}

/* The place where the turn begins in Q: behind the generation prompt. A prompt that Q does not
 * continue, as one with an open <think>, counts up to the content. */
static err find_begin(size_t *out, bool *found, struct search *s, size_t i)
{
    struct text p = text_of(&s->p), q = text_of(&s->q);
    size_t begin = common_start(p, q);
    *found = true;
    *out = begin;
    if (begin == p.size) return ERR_NONE;
    json_t *upto = json_copy(s->before);
    err e = upto && json_array_append(upto, json_array_get(s->w->in->messages, i)) == 0
                ? render_other(s, upto, i, false)
                : err_sys(ENOMEM, "chat");
    json_decref(upto);
    if (!err_is(e)) {
        size_t other = common_start(p, text_of(&s->m));
        if (other < begin) begin = other;
        bytes_clear(&s->m);
        e = chat_text(&s->m, NULL, s->w, s->before, false);
    }
    if (!err_is(e)) {
        *found = begin >= s->m.size && starts_with(q, text_of(&s->m));
        *out = begin;
    }
    return e;
}

/* Whether the turn stands at the same place in the whole text; if so, its span is added. An end
 * token that only the last turn gets, as Tulu 3 has it, is left out of the others. */
static err take_turn(bool *taken, struct search *s, const struct turn *t)
{
    struct text q = text_of(&s->q), whole = s->whole;
    struct text turn = {q.at, t->end}, content = {q.at, t->content_end};
    *taken = true;
    if (starts_with(whole, turn)) return add_span(s, t->begin, t->end);
    if (t->has_content && starts_with(whole, content)) return add_span(s, t->begin, t->content_end);
    *taken = false;
    return ERR_NONE;
}

static err not_found(size_t i)
{
    return err_make(ERR_INPUT,
                    "message %zu: the text of this turn cannot be told apart in what the chat "
                    "template prints; use a template with {%% generation %%}",
                    i + 1);
}

/* The length of the end token that closes an answer, with white space before it; 0: there is
 * none. */
static size_t closing(const struct chat *c, struct text behind)
{
    size_t space = 0;
    while (space < behind.size && behind.at[space] && strchr(" \t\r\n", behind.at[space]))
        space++;
    for (size_t i = 0; i < c->ends; i++) {
        struct text end = {c->end[i], strlen(c->end[i])};
        if (starts_with(from(behind, space), end)) return space + end.size;
    }
    return 0;
}

/* The turn in a text whose earlier turns are written otherwise. A space before the content belongs
 * to its first token. */
static err take_moved(struct search *s, const struct turn *t, size_t i)
{
    struct text q = text_of(&s->q), whole = s->whole;
    err e = render_other(s, s->w->in->messages, i, s->w->in->generate);
    if (err_is(e)) return e.kind == ERR_INPUT ? not_found(i) : e;
    size_t begin = common_start(whole, text_of(&s->m));
    size_t tail = common_end(from(whole, begin), from(text_of(&s->m), begin));
    size_t end = whole.size - tail;
    size_t last = s->spans->count ? s->spans->span[s->spans->count - 1].end : 0;
    if (t && t->has_content && t->content > t->begin) { /* the start of the answer in Q */
        struct text head = {q.at + t->begin, t->content - t->begin};
        if (begin >= head.size && memcmp(whole.at + begin - head.size, head.at, head.size) == 0)
            begin -= head.size;
    }
    while (!t && begin > 0 && whole.at[begin - 1] == ' ')
        begin--;
    end += closing(s->w->c, from(whole, end));
    if (begin >= end || s->offset + begin < last) return not_found(i);
    s->spans->earlier_changed = true;
    return add_span(s, begin, end);
}

/* Without Q, which saves a rendering of the conversation: the whole text continues P by the content
 * and a token that ends an answer. */
static err take_plain(bool *taken, struct search *s, const json_t *message)
{
    const json_t *value = json_object_get(message, "content");
    struct text p = text_of(&s->p), content = {json_string_value(value), json_string_length(value)};
    *taken = false;
    if (!content.at || !starts_with(s->whole, p)) return ERR_NONE;
    content = trim(content);
    size_t begin = p.size;
    while (begin < s->whole.size && s->whole.at[begin] && strchr(" \t\r\n", s->whole.at[begin]))
        begin++;
    if (content.size == 0 || !starts_with(from(s->whole, begin), content)) return ERR_NONE;
    size_t close = closing(s->w->c, from(s->whole, begin + content.size));
    if (close == 0) return ERR_NONE;
    *taken = true;
    return add_span(s, p.size, begin + content.size + close);
}

static err find_turn(struct search *s, size_t i)
{
    const struct chat_input *in = s->w->in;
    const json_t *message = json_array_get(in->messages, i);
    bool last = i + 1 == json_array_size(in->messages) && !in->generate, found = false;
    struct turn t = {0};
    bytes_clear(&s->p);
    bytes_clear(&s->q);
    err e = chat_text(&s->p, NULL, s->w, s->before, true);
    if (!err_is(e)) {
        TRY(take_plain(&found, s, message));
        if (found) return ERR_NONE;
    }
    if (!err_is(e) && last) {
        e = bytes_append(&s->q, s->whole.at, s->whole.size);
    } else if (!err_is(e)) {
        json_t *upto = json_copy(s->before);
        e = upto && json_array_append(upto, (json_t *)message) == 0
                ? chat_text(&s->q, NULL, s->w, upto, false)
                : err_sys(ENOMEM, "chat");
        json_decref(upto);
    }
    if (!err_is(e)) e = find_begin(&t.begin, &found, s, i);
    if (err_is(e) && e.kind != ERR_INPUT) return e;
    if (!err_is(e) && found) {
        bool taken;
        find_content(&t, text_of(&s->q), message);
        find_end(&t, text_of(&s->q), s->w->c);
        if (t.end > t.begin) {
            TRY(take_turn(&taken, s, &t));
            if (taken) return ERR_NONE;
        }
    }
    const char *content = json_string_value(json_object_get(message, "content"));
    if (!content) return not_found(i);
    return take_moved(s, found ? &t : NULL, i);
}

static bool is_answer(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && strcmp(role, "assistant") == 0;
}

/* A template may ignore a role that it does not know, so the message would be left out silently.
 * Its longest word must be in the text, because a template may trim or escape the rest. Templates
 * of Mistral leave out the system text when an answer is last, which is reported, not refused. */
static err check_printed(const struct search *s, const json_t *message, size_t i)
{
    const json_t *content = json_object_get(message, "content");
    const char *at = json_string_value(content), *end = at + json_string_length(content);
    struct text word = {at, 0};
    while (at && at < end) {
        const char *begin = at;
        while (at < end && isalnum((unsigned char)*at) && at - begin < 64)
            at++;
        if ((size_t)(at - begin) > word.size) word = (struct text){begin, (size_t)(at - begin)};
        at += at == begin;
    }
    if (word.size == 0 || memmem(s->whole.at, s->whole.size, word.at, word.size)) return ERR_NONE;
    const char *role = json_string_value(json_object_get(message, "role"));
    if (strcmp(role, "system") == 0 || strcmp(role, "user") == 0) {
        s->spans->left_out = true;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT,
                    "message %zu: the chat template leaves out this message of role %.40s", i + 1,
                    role);
}

static err find_turns(struct search *s)
{
    const struct chat_input *in = s->w->in;
    for (size_t i = 0; i < json_array_size(in->messages); i++) {
        json_t *message = json_array_get(in->messages, i);
        if (is_answer(message) && !(in->unlearned && in->unlearned[i])) TRY(find_turn(s, i));
        if (json_array_append(s->before, message) != 0) return err_sys(ENOMEM, "chat");
    }
    return ERR_NONE;
}

/* With tags the parts are in the order of the turns, which is needed to leave some out. */
static err take_tagged(struct search *s, const struct jinja_spans *tagged)
{
    const struct chat_input *in = s->w->in;
    size_t answers = 0, at = 0, count = json_array_size(in->messages);
    bool all = true;
    for (size_t i = 0; i < count; i++) {
        bool answer = is_answer(json_array_get(in->messages, i));
        answers += answer;
        if (answer && in->unlearned && in->unlearned[i]) all = false;
    }
    if (!all && answers != tagged->count)
        return err_make(ERR_INPUT,
                        "a turn cannot be left out: the chat template marks %zu parts as generated "
                        "for %zu turns",
                        tagged->count, answers);
    for (size_t i = 0; all && i < tagged->count; i++)
        TRY(add_span(s, tagged->span[i].begin, tagged->span[i].end));
    for (size_t i = 0; !all && i < count; i++) {
        if (!is_answer(json_array_get(in->messages, i))) continue;
        const struct jinja_span *span = &tagged->span[at++];
        if (!in->unlearned[i]) TRY(add_span(s, span->begin, span->end));
    }
    return ERR_NONE;
}

err chat_learned(struct chat_spans *spans, struct chat_work *w, const struct bytes *out,
                 size_t begin, const struct jinja_spans *tagged)
{
    struct search s = {.w = w,
                       .whole = from(text_of(out), begin),
                       .p.max = out->max,
                       .q.max = out->max,
                       .m.max = out->max,
                       .spans = spans};
    for (size_t i = 0; i < json_array_size(w->in->messages); i++) {
        const json_t *message = json_array_get(w->in->messages, i);
        if (!is_answer(message)) TRY(check_printed(&s, message, i));
    }
    if (jinja_has_generation(w->program)) return take_tagged(&s, tagged);
    s.offset = begin;
    s.before = json_array();
    err e = s.before ? find_turns(&s) : err_sys(ENOMEM, "chat");
    json_decref(s.before);
    bytes_close(&s.p);
    bytes_close(&s.q);
    bytes_close(&s.m);
    return e;
}
