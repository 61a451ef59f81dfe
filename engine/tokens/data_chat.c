/* Rows with messages: OpenAI's form (role, content), ShareGPT's (from, value) and TRL's lists of
 * messages as prompt and completion. All become one list of messages with the members of OpenAI's
 * form, which the chat template of the model gets unchanged. */
#include "base/json.h"
#include "base/limits.h"
#include "base/list.h"
#include "engine/tokens/data_member.h"
#include "engine/tokens/data_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct conversation {
    json_t *messages; /* list of objects with role, content, and what a template may read */
    bool *unlearned;  /* (messages) */
    size_t capacity;
    json_t *tools; /* NULL: none */
};

static err no_memory(void)
{
    return err_sys(ENOMEM, "messages");
}

static void conversation_close(struct conversation *c)
{
    json_decref(c->messages);
    json_decref(c->tools);
    free(c->unlearned);
}

/* The message is taken over, also on failure. */
static err add(struct conversation *c, json_t *message, bool unlearned)
{
    size_t count = json_array_size(c->messages);
    err e = list_grow(&c->unlearned, &c->capacity, count + 1, sizeof *c->unlearned);
    if (err_is(e)) return json_decref(message), e;
    if (json_array_append_new(c->messages, message) != 0) return no_memory();
    c->unlearned[count] = unlearned;
    return ERR_NONE;
}

/* ---- one message ---- */

/* The names that ShareGPT's data sets use in "from". */
static const struct sender {
    const char *from, *role;
} senders[] = {
    {"human", "user"},
    {"user", "user"},
    {"gpt", "assistant"},
    {"chatgpt", "assistant"},
    {"bing", "assistant"},
    {"bard", "assistant"},
    {"model", "assistant"},
    {"bot", "assistant"},
    {"assistant", "assistant"},
    {"system", "system"},
    {"tool", "tool"},
    {"observation", "tool"},
    {"function_response", "tool"},
};

/* Templates take other names of the assistant for a role of their own or print them as they are,
 * and the turn would not be learned. */
static err check_role(const char *role)
{
    bool same = strcmp(role, "assistant") == 0, other = strcasecmp(role, "assistant") == 0;
    for (size_t i = 0; i < sizeof senders / sizeof *senders; i++)
        other = other || (strcmp(senders[i].role, "assistant") == 0 &&
                          strcasecmp(senders[i].from, role) == 0);
    if (same || !other) return ERR_NONE;
    return err_make(ERR_INPUT, "the role is \"%.40s\": expected \"assistant\"", role);
}

static err find_role(const char **out, const json_t *m)
{
    const json_t *role = data_member(m, "role"), *from = data_member(m, "from");
    if (json_is_string(role)) {
        *out = json_string_value(role);
        return check_role(*out);
    }
    if (role || !json_is_string(from))
        return err_make(ERR_INPUT, "expected a role and a content, both strings");
    for (size_t i = 0; i < sizeof senders / sizeof *senders; i++) {
        if (strcmp(senders[i].from, json_string_value(from)) != 0) continue;
        *out = senders[i].role;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "\"from\" is %.40s: expected human, gpt, system or tool",
                    json_string_value(from));
}

/* Parts of type text become one text. Other parts are images and the like. */
static err join_parts(json_t **out, const json_t *parts)
{
    struct bytes text = {.max = 2 * (size_t)LIMIT_LINE_BYTES};
    err e = bytes_append(&text, "", 0);
    for (size_t i = 0; i < json_array_size(parts) && !err_is(e); i++) {
        const json_t *part = json_array_get(parts, i), *value = data_member(part, "text");
        const char *type = json_string_value(data_member(part, "type"));
        if (type && strcmp(type, "text") != 0)
            e = err_make(ERR_INPUT, "\"content\" has a part of type %.40s: only text is read",
                         type);
        else if (!type || !json_is_string(value))
            e = err_make(ERR_INPUT, "\"content\": part %zu: expected a type and a text", i + 1);
        else
            e = bytes_append(&text, json_string_value(value), json_string_length(value));
    }
    if (!err_is(e)) {
        *out = json_stringn(text.data ? (const char *)text.data : "", text.size);
        if (!*out) e = no_memory();
    }
    bytes_close(&text);
    return e;
}

/* *out is NULL for an answer that is only a call of tools; its "content" stays as it is. */
static err find_content(json_t **out, const json_t *m, bool calls)
{
    const json_t *content = data_member(m, "content");
    if (!content) content = data_member(m, "value");
    *out = NULL;
    if (json_is_array(content)) return join_parts(out, content);
    if (json_is_string(content)) {
        *out = json_incref((json_t *)content);
        return ERR_NONE;
    }
    if (!content && calls) return ERR_NONE;
    return err_make(ERR_INPUT, "expected a role and a content, both strings");
}

/* Members that this file reads, and does not pass on. */
static bool is_own(const char *name)
{
    static const char *const own[] = {"role",   "content", "from",     "value",
                                      "weight", "train",   "training", "loss"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(name, own[i]) == 0) return true;
    return false;
}

/* "weight" of OpenAI's form, "train" and "training" of axolotl's, "loss" of ms-swift's. */
static err find_unlearned(bool *out, const json_t *m, bool answer)
{
    static const char *const names[] = {"weight", "train", "training", "loss"};
    *out = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = data_member(m, names[i]);
        if (!value) continue;
        double n = json_is_boolean(value) ? json_is_true(value) : json_number_value(value);
        if ((!json_is_number(value) && !json_is_boolean(value)) || (n != 0 && n != 1))
            return err_make(ERR_INPUT, "\"%s\" cannot be honoured: expected 0 or 1", names[i]);
        if (n == 1 && i > 0 && !answer)
            return err_make(ERR_INPUT,
                            "\"%s\" cannot be honoured: only the assistant's turns are learned",
                            names[i]);
        if (n == 0) *out = true;
    }
    return ERR_NONE;
}

/* A copy of the message in OpenAI's form, without null members, except that "content" stays null in
 * a call of tools, as templates expect it. */
static err copy_message(json_t **out, const json_t *m, const char *role, json_t *content)
{
    json_t *copy = json_object();
    const char *name;
    json_t *value;
    if (content == NULL && json_object_get(m, "content")) content = json_null();
    bool ok = copy && json_object_set_new(copy, "role", json_string(role)) == 0;
    if (ok && content) ok = json_object_set(copy, "content", content) == 0;
    json_object_foreach((json_t *)m, name, value) if (ok && !json_is_null(value) && !is_own(name))
        ok = json_object_set(copy, name, value) == 0;
    if (!ok) return json_decref(copy), no_memory();
    *out = copy;
    return ERR_NONE;
}

static err read_message(struct conversation *c, const json_t *m, bool learn)
{
    const char *role = NULL;
    json_t *content = NULL, *copy = NULL;
    bool unlearned = false;
    if (!json_is_object(m))
        return err_make(ERR_INPUT, "expected a role and a content, both strings");
    TRY(find_role(&role, m));
    bool answer = strcmp(role, "assistant") == 0;
    TRY(data_member_check_message(m));
    TRY(find_unlearned(&unlearned, m, answer));
    TRY(find_content(&content, m, answer && !data_member_empty(m, "tool_calls")));
    err e = copy_message(&copy, m, role, content);
    json_decref(content);
    return err_is(e) ? e : add(c, copy, unlearned || !learn);
}

static err read_list(struct conversation *c, const json_t *row, const char *key, bool learn)
{
    const json_t *list = data_member(row, key);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return err_make(ERR_INPUT, "\"%s\": expected a list of messages, at least one", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        err e = read_message(c, json_array_get(list, i), learn);
        if (err_is(e)) return err_in(e, "\"%s\": message %zu", key, i + 1);
    }
    return ERR_NONE;
}

/* ShareGPT's rows may have the system text beside the conversation. */
static err read_system(struct conversation *c, const json_t *row)
{
    const json_t *text = data_member(row, "system");
    if (data_member_empty(row, "system")) return ERR_NONE;
    if (!json_is_string(text)) return err_make(ERR_INPUT, "\"system\": expected a string");
    json_t *message = json_pack("{s:s, s:O}", "role", "system", "content", text);
    return message ? add(c, message, true) : no_memory();
}

static err read_conversation(struct conversation *c, const json_t *row)
{
    c->messages = json_array();
    if (!c->messages) return no_memory();
    TRY(read_system(c, row));
    bool system = json_array_size(c->messages) > 0;
    if (data_member(row, "messages")) {
        TRY(read_list(c, row, "messages", true));
    } else if (data_member(row, "conversations")) {
        TRY(read_list(c, row, "conversations", true));
    } else {
        TRY(read_list(c, row, "prompt", false));
        TRY(read_list(c, row, "completion", true));
    }
    const char *role = json_string_value(json_object_get(json_array_get(c->messages, 1), "role"));
    if (system && role && strcmp(role, "system") == 0)
        return err_make(ERR_INPUT, "\"system\" cannot be honoured: the messages have a system text "
                                   "too");
    return ERR_NONE;
}

/* Tables cannot hold lists of different objects, so data sets also have the tools as JSON text. */
static err read_tools(struct conversation *c, const json_t *row)
{
    const json_t *tools = data_member(row, "tools");
    if (data_member_empty(row, "tools")) return ERR_NONE;
    if (json_is_string(tools))
        TRY(json_parse(&c->tools, json_string_value(tools), json_string_length(tools),
                       "\"tools\""));
    else
        c->tools = json_incref((json_t *)tools);
    if (json_is_array(c->tools)) return ERR_NONE;
    return err_make(ERR_INPUT, "\"tools\": expected a list, or a list as JSON text");
}

/* ---- the text ---- */

/* Members of messages and rows that templates print, and cannot be honoured if the template does
 * not mention them. */
static err check_printed(const struct chat *chat, const json_t *object, const char *const *names,
                         size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!data_member_empty(object, names[i]) && !chat_mentions(chat, names[i]))
            return err_make(ERR_INPUT,
                            "\"%s\" cannot be honoured: the chat template does not print it",
                            names[i]);
    return ERR_NONE;
}

static err check_messages(const struct chat *chat, const struct conversation *c, const json_t *row)
{
    static const char *const of_message[] = {"tool_calls", "reasoning_content", "reasoning",
                                             "thinking"};
    static const char *const of_row[] = {"tools", "documents"};
    TRY(check_printed(chat, row, of_row, 2));
    for (size_t i = 0; i < json_array_size(c->messages); i++) {
        err e = check_printed(chat, json_array_get(c->messages, i), of_message, 4);
        if (err_is(e)) return err_in(e, "message %zu", i + 1);
    }
    return ERR_NONE;
}

/* Some templates mention calls, but print them only beside an absent content. The name of a
 * function stands in the text as it is or as in a JSON string. */
static err check_calls_printed(const struct bytes *text, const json_t *message)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i), *inner = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(inner ? inner : call, "name"));
        if (name && !memmem(text->data, text->size, name, strlen(name)))
            return err_make(ERR_INPUT, "\"tool_calls\" cannot be honoured: the chat template does "
                                       "not print them here");
    }
    return ERR_NONE;
}

static err render(struct data_reader *r, const struct conversation *c, const json_t *row)
{
    const json_t *variables = data_member(row, "chat_template_kwargs");
    const json_t *documents = data_member(row, "documents");
    if (variables && !json_is_object(variables))
        return err_make(ERR_INPUT, "\"chat_template_kwargs\": expected an object");
    if (documents && !json_is_array(documents))
        return err_make(ERR_INPUT, "\"documents\": expected a list");
    TRY(check_messages(r->chat, c, row));
    bytes_clear(&r->text);
    r->spans.count = 0;
    r->spans.earlier_changed = r->spans.left_out = false;
    TRY(chat_render(&r->text, &r->spans, r->chat,
                    &(struct chat_input){.messages = c->messages,
                                         .tools = c->tools,
                                         .documents = documents,
                                         .variables = variables,
                                         .unlearned = c->unlearned}));
    for (size_t i = 0; r->text.data && i < json_array_size(c->messages); i++) {
        err e = check_calls_printed(&r->text, json_array_get(c->messages, i));
        if (err_is(e)) return err_in(e, "message %zu", i + 1);
    }
    return ERR_NONE;
}

/* The template is opened only when the first row has messages, so models without one can train on
 * other rows. */
err data_read_chat(struct data_reader *r, const json_t *row)
{
    struct conversation c = {0};
    err e = read_conversation(&c, row);
    if (!err_is(e)) e = read_tools(&c, row);
    if (!err_is(e) && !r->chat) e = chat_open(&r->chat, r->o->tokenizer, r->o->template);
    if (!err_is(e)) e = render(r, &c, row);
    if (!err_is(e)) e = data_put_text(r, &(struct data_text){.messages = true});
    conversation_close(&c);
    return e;
}
