/* Opens chat templates and renders messages with them. */
#include "engine/tokens/chat_parts.h"

#include "base/file.h"
#include "base/limits.h"
#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void chat_spans_close(struct chat_spans *spans)
{
    free(spans->span);
    *spans = (struct chat_spans){0};
}

/* ---- opening ---- */

/* More ends than CHAT_ENDS are ignored. A vocabulary names a handful, and a missing one only moves
 * the end of a learned turn. An empty text would end every turn at its start. */
static err add_end(struct chat *c, const char *text)
{
    for (size_t i = 0; i < c->ends; i++)
        if (strcmp(c->end[i], text) == 0) return ERR_NONE;
    if (c->ends == CHAT_ENDS || !*text) return ERR_NONE;
    c->end[c->ends] = strdup(text);
    return c->end[c->ends++] ? ERR_NONE : err_sys(ENOMEM, "chat template");
}

static err parse(struct jinja **out, const char *text, size_t size, const char *name)
{
    err e = jinja_open(out, text, size);
    return err_is(e) ? err_in(e, "chat template %s", name) : e;
}

/* The template of the model itself. */
static err open_own(struct chat *c, const struct tokenizer *t)
{
    const char *plain = tokenizer_template(t, "default");
    const char *tools = tokenizer_template(t, "tool_use");
    (void)snprintf(c->name, sizeof c->name, "of the model");
    if (!plain && !tools)
        return err_make(ERR_INPUT, "the model has no chat template, so it cannot read messages; "
                                   "name one with --template, or use rows with prompt and "
                                   "completion");
    if (!plain) plain = tools;
    TRY(parse(&c->plain, plain, strlen(plain), c->name));
    return tools && tools != plain ? parse(&c->tools, tools, strlen(tools), "tool_use") : ERR_NONE;
}

/* A text that is neither a name nor a file is most likely a misspelt name. */
static err open_choice(struct chat *c, const char *choice)
{
    char suggestion[TEXT_SUGGESTION_BYTES], *text = NULL;
    const char *builtin = chat_builtin(choice);
    const char *names[CHAT_BUILTINS];
    const char *slash = strrchr(choice, '/');
    size_t size = 0;
    (void)snprintf(c->name, sizeof c->name, "%s", slash && slash[1] ? slash + 1 : choice);
    if (builtin) return parse(&c->plain, builtin, strlen(builtin), c->name);
    chat_names(names);
    if (!file_exists(choice))
        return err_make(ERR_INPUT,
                        "--template %s: neither a file nor a built-in template (" CHAT_NAMES ")%s",
                        choice, text_suggestion(suggestion, choice, names, CHAT_BUILTINS));
    TRY(file_read_all(&text, &size, choice, LIMIT_TEMPLATE_BYTES));
    err e = parse(&c->plain, text, size, c->name);
    free(text);
    return e;
}

/* A vocabulary writes tokens that end an answer as they stand in a text, because they are special
 * tokens. */
static err find_ends(struct chat *c, const struct tokenizer *t)
{
    for (size_t id = 0; id < tokenizer_vocab(t); id++) {
        const char *text = tokenizer_ends(t, (int32_t)id) ? tokenizer_token(t, (int32_t)id) : NULL;
        if (text) TRY(add_end(c, text));
    }
    return ERR_NONE;
}

err chat_open(struct chat **out, const struct tokenizer *t, const char *choice)
{
    struct chat *c = calloc(1, sizeof *c);
    if (!c) return err_sys(ENOMEM, "chat template");
    err e;
    c->specials = json_deep_copy(tokenizer_specials(t));
    TRY_OUT(e, c->specials ? ERR_NONE : err_sys(ENOMEM, "chat template"));
    TRY_OUT(e, choice ? open_choice(c, choice) : open_own(c, t));
    TRY_OUT(e, find_ends(c, t));
    *out = c;
    c = NULL;
out:
    chat_close(c);
    return e;
}

err chat_open_text(struct chat **out, const char *jinja, size_t size, const json_t *specials)
{
    struct chat *c = calloc(1, sizeof *c);
    if (!c) return err_sys(ENOMEM, "chat template");
    const char *eos = json_string_value(json_object_get(specials, "eos_token"));
    const char *eot = json_string_value(json_object_get(specials, "eot_token"));
    err e;
    (void)snprintf(c->name, sizeof c->name, "given as text");
    c->specials = specials ? json_deep_copy(specials) : json_object();
    TRY_OUT(e, c->specials ? ERR_NONE : err_sys(ENOMEM, "chat template"));
    TRY_OUT(e, jinja_open(&c->plain, jinja, size));
    if (eos) TRY_OUT(e, add_end(c, eos));
    if (eot) TRY_OUT(e, add_end(c, eot));
    *out = c;
    c = NULL;
out:
    chat_close(c);
    return e;
}

void chat_close(struct chat *c)
{
    if (!c) return;
    jinja_close(c->plain);
    jinja_close(c->tools);
    json_decref(c->specials);
    for (size_t i = 0; i < c->ends; i++)
        free(c->end[i]);
    free(c);
}

const char *chat_name(const struct chat *c)
{
    return c->name;
}

bool chat_mentions(const struct chat *c, const char *name)
{
    return jinja_mentions(c->plain, name) || (c->tools && jinja_mentions(c->tools, name));
}

/* ---- rendering ---- */

/* "26 Jul 2024" in seconds since 1970; the default for other forms is that day too. */
static int64_t read_date(const char *date)
{
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm tm = {.tm_mday = 26, .tm_mon = 6, .tm_year = 124};
    int day = 0, year = 0;
    char month[4] = "";
    const char *at = NULL;
    if (date && sscanf(date, "%2d %3[A-Za-z] %4d", &day, month, &year) == 3)
        at = strstr(months, month);
    if (at && strlen(month) == 3) {
        tm.tm_mon = (int)(at - months) / 3;
        tm.tm_mday = day;
        tm.tm_year = year - 1900;
    }
    return (int64_t)timegm(&tm);
}

static err set(json_t *variables, const char *name, const json_t *value)
{
    json_t *kept = value ? json_incref((json_t *)value) : json_null();
    return json_object_set_new(variables, name, kept) == 0 ? ERR_NONE
                                                           : err_sys(ENOMEM, "chat template");
}

/* transformers gives tools and documents to a template even if there are none. */
static err fill_variables(struct chat_work *w)
{
    const struct chat_input *in = w->in;
    w->variables = json_copy(w->c->specials);
    if (!w->variables) return err_sys(ENOMEM, "chat template");
    TRY(set(w->variables, "tools", in->tools));
    TRY(set(w->variables, "documents", in->documents));
    if (in->date)
        TRY(json_object_set_new(w->variables, "date_string", json_string(in->date)) == 0
                ? ERR_NONE
                : err_make(ERR_INPUT, "the date is not UTF-8"));
    if (in->variables && json_object_update(w->variables, (json_t *)in->variables) != 0)
        return err_sys(ENOMEM, "chat template");
    return ERR_NONE;
}

/* The steps that are left are shared, so the many renderings that chat_learned() needs cannot take
 * longer together than one template may. */
err chat_text(struct bytes *out, struct jinja_spans *spans, struct chat_work *w,
              const json_t *messages, bool generate)
{
    TRY(set(w->variables, "messages", messages));
    TRY(set(w->variables, "add_generation_prompt", generate ? json_true() : json_false()));
    err e = jinja_render(out, spans, w->program, w->variables, &w->options);
    if (!err_is(e) || strncmp(e.text, "line ", 5) != 0) return e;
    return err_make(e.kind, "chat template, %.450s", e.text);
}

/* A list of objects with a role, because everything else depends on the template. */
static err check_messages(const json_t *messages)
{
    size_t count = json_array_size(messages);
    if (count == 0) return err_make(ERR_INPUT, "messages are empty");
    for (size_t i = 0; i < count; i++)
        if (!json_is_string(json_object_get(json_array_get(messages, i), "role")))
            return err_make(ERR_INPUT, "message %zu: expected a role", i + 1);
    return ERR_NONE;
}

err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat *c,
                const struct chat_input *input)
{
    bool tools = input->tools && !json_is_null(input->tools);
    struct jinja_spans tagged = {0};
    struct chat_work w = {.c = c,
                          .in = input,
                          .program = tools && c->tools ? c->tools : c->plain,
                          .steps = LIMIT_TEMPLATE_STEPS};
    size_t begin = out->size, had = spans ? spans->count : 0;
    err e;
    w.options = (struct jinja_options){.now = read_date(input->date), .steps_left = &w.steps};
    TRY_OUT(e, check_messages(input->messages));
    TRY_OUT(e, fill_variables(&w));
    TRY_OUT(e, chat_text(out, spans ? &tagged : NULL, &w, input->messages, input->generate));
    if (spans) e = chat_learned(spans, &w, out, begin, &tagged);
out:
    jinja_spans_close(&tagged);
    json_decref(w.variables);
    if (err_is(e)) {
        out->size = begin;
        if (spans) spans->count = had;
    }
    return e;
}
