/* Recognises chat templates by texts that they contain. A Jinja program cannot be compared as a
 * whole: publishers reformat templates and add branches for tools. Each test below looks for a text
 * that changes the output for plain messages; anything that might do so and is not known leads to a
 * refusal, because a model trained on slightly wrong text is worse than an error. */
#include "engine/tokens/chat.h"

#include <stdio.h>
#include <string.h>

/* The templates that are known. Those of the chatml family differ only in their default system
 * turn, which therefore identifies them. */
static const struct chat_template known[] = {
    {.name = "smollm2",
     .system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {.name = "qwen2", .system = "You are a helpful assistant."},
    {.name = "qwen2.5",
     .system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "chatml"},
    {.name = "qwen3", .family = CHAT_QWEN3},
    {.name = "llama2", .family = CHAT_LLAMA2},
    {.name = "llama3", .family = CHAT_LLAMA3},
    {.name = "llama3.1", .family = CHAT_LLAMA3, .dated = true},
    {.name = "mistral",
     .family = CHAT_MISTRAL,
     .user_before = "[INST] ",
     .user_after = " [/INST]",
     .answer_before = "",
     .answer_after = "",
     .no_system = true},
    {.name = "zephyr", .family = CHAT_ZEPHYR},
};
enum { KNOWN = sizeof known / sizeof *known };

static const struct chat_template *find_known(const char *name)
{
    for (size_t i = 0; i < KNOWN; i++)
        if (strcmp(known[i].name, name) == 0) return &known[i];
    return NULL;
}

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* Whether `part` occurs directly behind a quotation mark of either kind, that is at the start of a
 * Jinja string. */
static bool quotes(const char *text, const char *part)
{
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++)
        if (at > text && (at[-1] == '\'' || at[-1] == '"')) return true;
    return false;
}

/* Finds the default system turn of a chatml template: a string that contains the whole turn, from
 * <|im_start|>system to <|im_end|>. The escapes \n and \' of Jinja are undone. If several strings
 * match, the first complete one counts. */
static void read_system(struct chat_template *c, const char *jinja)
{
    static const char open[] = "<|im_start|>system", close[] = "<|im_end|>";
    for (const char *at = jinja; (at = strstr(at, open)) != NULL;) {
        at += strlen(open);
        const char quote = at - strlen(open) > jinja ? at[-(ptrdiff_t)strlen(open) - 1] : 0;
        const char *end = strstr(at, close);
        size_t used = 0;
        if (!end || (quote != '\'' && quote != '"')) continue;
        for (const char *p = at; p < end && *p != quote && used + 1 < sizeof c->system; p++) {
            if (*p == '\\' && p[1] == 'n')
                c->system[used++] = '\n', p++;
            else if (*p == '\\' && p[1])
                c->system[used++] = *++p;
            else
                c->system[used++] = *p;
            if (p + 1 == end && used > 1 && c->system[0] == '\n') {
                c->system[used] = 0;
                memmove(c->system, c->system + 1, used);
                return;
            }
        }
        c->system[0] = 0;
    }
}

/* Whether the template mentions features that change plain messages and are not rendered here, such
 * as dates, reasoning modes or other separators. */
static bool is_strange(const char *jinja)
{
    static const char *const words[] = {
        "<|im_sep|>", "strftime_now", "reasoning_mode", "custom_instructions",
        "/no_think",  "system_tools", "xml_tools",      "documents",
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (has(jinja, words[i])) return true;
    return false;
}

/* Templates with reasoning_content are of the Qwen3 kind. Trimmed contents appear in forms of
 * chatml whose other rules are unknown, so they are refused. */
static err recognise_chatml(struct chat_template *c, const char *jinja)
{
    bool trims = has(jinja, "| trim") || has(jinja, "|trim") || has(jinja, ".strip()");
    if (is_strange(jinja) || !has(jinja, "<|im_end|>"))
        return err_make(ERR_INPUT, "the model's chat template is an unknown form of chatml");
    if (has(jinja, "reasoning_content") && has(jinja, "</think>")) {
        *c = *find_known("qwen3");
        c->open_thought =
            has(jinja, "assistant\\n<think>\\n' }}") || has(jinja, "assistant\n<think>\n' }}");
        return ERR_NONE;
    }
    if (trims) return err_make(ERR_INPUT, "the model's chat template is an unknown form of chatml");
    *c = *find_known("chatml");
    c->says_bos = has(jinja, "bos_token");
    read_system(c, jinja);
    for (size_t i = 0; i < KNOWN; i++)
        if (known[i].family == CHAT_CHATML && strcmp(known[i].system, c->system) == 0)
            c->name = known[i].name;
    return ERR_NONE;
}

/* The published versions differ in spaces around [INST] and answers, and in where the system
 * message goes. Newer formats with [SYSTEM_PROMPT] are refused. */
static err recognise_mistral(struct chat_template *c, const char *jinja)
{
    *c = *find_known("mistral");
    bool space = quotes(jinja, " [INST] ");
    bool plain = quotes(jinja, "[INST] ");
    c->user_before = space ? " [INST] " : plain ? "[INST] " : "[INST]";
    c->user_after = has(jinja, " [/INST]") ? " [/INST]" : "[/INST]";
    bool before =
        has(jinja, "\" \" + message[\"content\"]") || has(jinja, "' ' + message['content']");
    c->answer_before = before ? " " : "";
    c->answer_after = has(jinja, "eos_token + ' '") ? " " : "";
    c->trim_answer =
        has(jinja, "message[\"content\"]|trim") || has(jinja, "message['content']|trim");
    c->no_system = !has(jinja, "system_message");
    c->system_last = has(jinja, "loop.last and system_message");
    if (has(jinja, "[SYSTEM_PROMPT]") || !has(jinja, "bos_token"))
        return err_make(ERR_INPUT, "the model's chat template is an unknown form of Mistral's");
    return ERR_NONE;
}

/* The order matters: templates of Llama 2 and Mistral both contain [INST], and only <<SYS>>
 * distinguishes them. */
err chat_recognise(struct chat_template *out, const char *jinja)
{
    struct chat_template c = {0};
    if (has(jinja, "<|im_start|>")) {
        TRY(recognise_chatml(&c, jinja));
    } else if (has(jinja, "<|start_header_id|>")) {
        c = *find_known(has(jinja, "Cutting Knowledge Date") ? "llama3.1" : "llama3");
        c.always_generate = !has(jinja, "add_generation_prompt");
    } else if (has(jinja, "[INST]") && has(jinja, "<<SYS>>") &&
               has(jinja, "bos_token + '[INST] '")) {
        c = *find_known("llama2");
    } else if (has(jinja, "[INST]") && !has(jinja, "<<SYS>>")) {
        TRY(recognise_mistral(&c, jinja));
    } else if (quotes(jinja, "<|user|>") && has(jinja, "+ eos_token")) {
        c = *find_known("zephyr");
    } else {
        return err_make(ERR_INPUT, "the model's chat template belongs to no supported family "
                                   "(chatml, qwen3, llama2, llama3, mistral, zephyr)");
    }
    *out = c;
    return ERR_NONE;
}

/* A token that the model does not have becomes an empty text. */
static void copy_token(char out[CHAT_TOKEN_BYTES], const struct tokenizer *t, int32_t id)
{
    const char *text = tokenizer_token(t, id);
    (void)snprintf(out, CHAT_TOKEN_BYTES, "%s", text ? text : "");
}

/* bos and eos are texts here, because templates print them as texts; encoding turns them back into
 * ids. */
err chat_find(struct chat_template *out, const struct tokenizer *t)
{
    const char *jinja = tokenizer_template(t);
    if (!jinja)
        return err_make(ERR_INPUT, "the model has no chat template, so it cannot train on "
                                   "messages; use rows with prompt and completion");
    TRY(chat_recognise(out, jinja));
    copy_token(out->bos, t, tokenizer_bos(t));
    copy_token(out->eos, t, tokenizer_eos(t));
    return ERR_NONE;
}
