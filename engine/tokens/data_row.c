/* The forms of rows other than those with messages: engine/tokens/data.h. */
#include "engine/tokens/data_member.h"
#include "engine/tokens/data_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names the accepted forms of a row, because a wrong key is the most common mistake in a new
 * file. */
static err needs_what(const char *what)
{
    return err_make(ERR_INPUT,
                    "%s; a row needs prompt and completion, messages, text, or "
                    "input_ids and labels",
                    what);
}

/* Names the missing key before the list of accepted forms. */
static err needs_key(const char *key)
{
    char what[64];
    (void)snprintf(what, sizeof what, "\"%s\" is missing", key);
    return needs_what(what);
}

static err find_text(const char **out, const json_t *row, const char *key)
{
    const json_t *value = data_member(row, key);
    if (!value) return needs_key(key);
    if (!json_is_string(value)) return err_make(ERR_INPUT, "\"%s\": expected a string", key);
    *out = json_string_value(value);
    return ERR_NONE;
}

static err append(struct data_reader *r, const char *text)
{
    return bytes_append(&r->text, text, strlen(text));
}

/* The completion starts behind r->text, at its separator, so a token that begins with the space is
 * learned. */
static err put_completion(struct data_reader *r, const char *between, const char *completion)
{
    size_t begin = r->text.size;
    TRY(append(r, between));
    TRY(append(r, completion));
    TRY(data_span(r, begin, r->text.size));
    return data_put_text(r, &(struct data_text){.pair = true, .completion = completion});
}

/* Nothing is put between the two parts: the prompt contains its own separator. */
static err read_pair(struct data_reader *r, const json_t *row)
{
    const char *prompt = NULL, *completion = NULL;
    TRY(find_text(&prompt, row, "prompt"));
    TRY(find_text(&completion, row, "completion"));
    TRY(append(r, prompt));
    return put_completion(r, "", completion);
}

/* The prompts of Stanford Alpaca. Both end with a line break, as in the column `text` of its data
 * set, so that the first token of the output stands alone. */
static err read_alpaca(struct data_reader *r, const json_t *row)
{
    const char *instruction = NULL, *output = NULL, *input = "";
    TRY(find_text(&instruction, row, "instruction"));
    TRY(find_text(&output, row, "output"));
    if (data_member(row, "input")) TRY(find_text(&input, row, "input"));
    TRY(append(r, *input ? "Below is an instruction that describes a task, paired with an input "
                           "that provides further context. Write a response that appropriately "
                           "completes the request.\n\n### Instruction:\n"
                         : "Below is an instruction that describes a task. Write a response that "
                           "appropriately completes the request.\n\n### Instruction:\n"));
    TRY(append(r, instruction));
    if (*input) TRY(append(r, "\n\n### Input:\n"));
    TRY(append(r, input));
    TRY(append(r, "\n\n### Response:\n"));
    return put_completion(r, "", output);
}

/* A row for classification. Spaces at the end of the prompt are moved into the completion:
 * otherwise the tokenizer would join the space with the first letters of the label into one token
 * that starts in the prompt, and that token would not be learned. Integer labels are written as
 * decimal numbers. */
static err read_labelled(struct data_reader *r, const json_t *row)
{
    const char *text = NULL, *label = NULL;
    const json_t *value = json_object_get(row, "label");
    char number[32];
    TRY(find_text(&text, row, "text"));
    if (json_is_integer(value)) {
        (void)snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        label = number;
    } else {
        TRY(find_text(&label, row, "label"));
    }
    size_t size = strlen(text);
    while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        size--;
    TRY(bytes_append(&r->text, text, size));
    return put_completion(r, size == 0 || text[size - 1] == '\n' ? "" : " ", label);
}

/* The whole text is learned, and there is no completion to measure accuracy with. */
static err read_text(struct data_reader *r, const json_t *row)
{
    const char *text = NULL;
    TRY(find_text(&text, row, "text"));
    TRY(append(r, text));
    TRY(data_span(r, 0, r->text.size));
    return data_put_text(r, &(struct data_text){0});
}

/* ---- rows of ids ---- */

/* The lists of a row that count its tokens, and the range of them that belongs to the row. */
struct ids {
    const json_t *id, *label;
    const json_t *mask[3]; /* NULL: absent */
    size_t begin, end;
};
static const char *const masks[3] = {"completion_mask", "assistant_masks", "loss_mask"};

static err find_list(const json_t **out, const json_t *row, const char *key, size_t count)
{
    *out = data_member(row, key);
    if (*out && (!json_is_array(*out) || json_array_size(*out) != count))
        return err_make(ERR_INPUT, "\"%s\": expected a list of %zu, as long as input_ids", key,
                        count);
    return ERR_NONE;
}

static err find_bit(bool *out, const json_t *list, size_t i, const char *key)
{
    const json_t *value = json_array_get(list, i);
    json_int_t n = json_is_boolean(value) ? json_is_true(value) : json_integer_value(value);
    if ((!json_is_integer(value) && !json_is_boolean(value)) || n < 0 || n > 1)
        return err_make(ERR_INPUT, "\"%s\"[%zu]: expected 0 or 1", key, i);
    *out = n == 1;
    return ERR_NONE;
}

/* Padding is left out at both ends. A zero between ones would mean that a token is read by the
 * model but seen by none of the others, which training here cannot do. */
static err find_range(struct ids *s, const json_t *row)
{
    const json_t *mask = NULL;
    size_t count = json_array_size(s->id);
    TRY(find_list(&mask, row, "attention_mask", count));
    s->begin = mask ? count : 0;
    s->end = mask ? 0 : count;
    for (size_t i = 0; mask && i < count; i++) {
        bool in = false;
        TRY(find_bit(&in, mask, i, "attention_mask"));
        if (in && s->end > 0 && s->end < i)
            return err_make(ERR_INPUT,
                            "\"attention_mask\"[%zu]: 0 between ones: only padding at the ends is "
                            "read",
                            s->end);
        if (in && s->begin == count) s->begin = i;
        if (in) s->end = i + 1;
    }
    if (s->begin >= s->end) return err_make(ERR_INPUT, "\"attention_mask\": all of it is 0");
    return ERR_NONE;
}

/* Positions that start again mark rows packed together, whose tokens must not see each other. */
static err check_positions(const struct ids *s, const json_t *row)
{
    const json_t *list = NULL;
    TRY(find_list(&list, row, "position_ids", json_array_size(s->id)));
    for (size_t i = s->begin; list && i < s->end; i++)
        if (!json_is_integer(json_array_get(list, i)) ||
            json_integer_value(json_array_get(list, i)) != (json_int_t)(i - s->begin))
            return err_make(ERR_INPUT,
                            "\"position_ids\"[%zu]: expected %zu: rows packed together are not "
                            "read: write each row on its own",
                            i, i - s->begin);
    return ERR_NONE;
}

/* Ids are checked here, because they index the embedding later. */
static err find_id(int32_t *out, const struct data_reader *r, const json_t *list, size_t i,
                   const char *key)
{
    const json_t *value = json_array_get(list, i);
    json_int_t id = json_integer_value(value);
    bool ignored = strcmp(key, "labels") == 0 && id == DATA_IGNORE;
    if (!json_is_integer(value) || ((id < 0 || (size_t)id >= r->vocab) && !ignored))
        return err_make(ERR_INPUT, "\"%s\"[%zu]: expected a token id below %zu%s", key, i, r->vocab,
                        strcmp(key, "labels") == 0 ? ", or -100" : "");
    *out = (int32_t)id;
    return ERR_NONE;
}

/* A token is learned if neither its label nor a mask says otherwise. */
static err put_id(int32_t *label, struct data_reader *r, const struct ids *s, size_t i)
{
    int32_t id = 0;
    bool in = true;
    TRY(find_id(&id, r, s->id, i, "input_ids"));
    TRY(tokens_push(&r->tokens, id, 0));
    *label = id;
    if (s->label) TRY(find_id(label, r, s->label, i, "labels"));
    for (int m = 0; m < 3; m++) {
        if (s->mask[m]) TRY(find_bit(&in, s->mask[m], i, masks[m]));
        if (!in) *label = DATA_IGNORE;
    }
    return ERR_NONE;
}

/* Without labels every token is learned. Such rows get no eos, since the ids are taken as they
 * are. */
static err read_ids(struct data_reader *r, const json_t *row)
{
    struct ids s = {.id = json_object_get(row, "input_ids")};
    size_t count = json_array_size(s.id);
    if (!json_is_array(s.id) || count == 0)
        return err_make(ERR_INPUT, "\"input_ids\": expected a list of token ids, at least one");
    TRY(find_list(&s.label, row, "labels", count));
    for (int m = 0; m < 3; m++)
        TRY(find_list(&s.mask[m], row, masks[m], count));
    TRY(find_range(&s, row));
    TRY(check_positions(&s, row));
    int32_t *label = malloc(count * sizeof *label);
    if (!label) return err_sys(ENOMEM, "row of %zu tokens", count);
    err e = ERR_NONE;
    for (size_t i = s.begin; i < s.end && !err_is(e); i++)
        e = put_id(&label[i - s.begin], r, &s, i);
    if (!err_is(e)) e = data_put_row(r, label, NULL);
    free(label);
    return e;
}

/* ---- the form of a row ---- */

/* The forms in the order of data.h: the first one that fits decides. */
static const struct form {
    enum data_form form;
    const char *key, *other; /* members that decide; NULL: none */
    bool both;               /* both of them are needed */
    json_type type;          /* of both members; JSON_NULL: any */
    err (*read)(struct data_reader *r, const json_t *row);
} forms[] = {
    /* clang-format off */
    {DATA_IDS,      "input_ids",   NULL,            false, JSON_NULL,  read_ids},
    {DATA_CHAT,     "messages",    "conversations", false, JSON_NULL,  data_read_chat},
    {DATA_CHAT,     "prompt",      "completion",    true,  JSON_ARRAY, data_read_chat},
    {DATA_PAIR,     "prompt",      "completion",    true,  JSON_NULL,  read_pair},
    {DATA_ALPACA,   "instruction", "output",        true,  JSON_NULL,  read_alpaca},
    {DATA_PAIR,     "prompt",      "completion",    false, JSON_NULL,  read_pair}, /* an error */
    {DATA_LABELLED, "label",       "text",          true,  JSON_NULL,  read_labelled},
    {DATA_TEXT,     "text",        NULL,            false, JSON_NULL,  read_text},
    /* clang-format on */
};

/* `type` tells lists of messages from texts, which have the same keys. */
static bool fits(const struct form *f, const json_t *row)
{
    const json_t *key = data_member(row, f->key);
    const json_t *other = f->other ? data_member(row, f->other) : NULL;
    if (f->type != JSON_NULL && (json_typeof(key ? key : json_null()) != f->type ||
                                 json_typeof(other ? other : json_null()) != f->type))
        return false;
    return f->both ? key && other : key || other;
}

/* Preferences without an answer of their own look like a row whose completion is missing. */
static err no_form(const json_t *row)
{
    if (data_member(row, "chosen") || data_member(row, "rejected"))
        return needs_what("\"chosen\" and \"rejected\": rows of preferences are not read");
    return needs_key("prompt");
}

/* Rows converted from a table have the text "False". */
static bool is_false(const json_t *value)
{
    const char *text = json_string_value(value);
    return json_is_false(value) || (text && strcasecmp(text, "false") == 0);
}

/* Methods that learn from bad answers too mark those with false; here such an answer would be
 * learned as a good one. */
static err check_good(const json_t *row, enum data_form form)
{
    static const char *const names[] = {"label", "kto_tag"};
    for (size_t i = 0; i < 2 && (form & (DATA_PAIR | DATA_CHAT | DATA_ALPACA)); i++)
        if (is_false(json_object_get(row, names[i])))
            return err_make(ERR_INPUT,
                            "\"%s\" cannot be honoured: it marks a bad answer; keep the good rows "
                            "only",
                            names[i]);
    /* Other numbers are a column of their own: the weight of a patient. */
    const json_t *weight = json_object_get(row, "weight");
    if (json_is_number(weight) && json_number_value(weight) == 0)
        return err_make(ERR_INPUT, "\"weight\" of 0 cannot be honoured: leave the row out");
    return ERR_NONE;
}

/* r->by is a text of the row, or a number in `number`. */
static err find_by(struct data_reader *r, const json_t *row, char *number, size_t bytes)
{
    const json_t *value = r->o->by ? json_object_get(row, r->o->by) : NULL;
    r->by = json_string_value(value);
    if (json_is_integer(value)) {
        (void)snprintf(number, bytes, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        r->by = number;
    }
    if (r->o->by && !r->by)
        return err_make(ERR_INPUT, "no field \"%s\" with a text or an integer", r->o->by);
    return ERR_NONE;
}

err data_read_row(struct data_reader *r, const json_t *row)
{
    char number[32];
    if (!json_is_object(row)) return needs_what("expected an object");
    bytes_clear(&r->text);
    tokens_clear(&r->tokens);
    r->spans.count = 0;
    TRY(find_by(r, row, number, sizeof number));
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i];
        if (!fits(f, row)) continue;
        if (f->form == DATA_PAIR && !data_member(row, "completion") &&
            (data_member(row, "chosen") || data_member(row, "rejected")))
            return no_form(row);
        if (f->form != DATA_IDS && !r->o->tokenizer) break;
        TRY(data_member_check_row(row, f->form));
        TRY(check_good(row, f->form));
        return f->read(r, row);
    }
    if (!r->o->tokenizer)
        return err_make(ERR_INPUT, "\"input_ids\" is missing, and there is no tokenizer for text");
    return no_form(row);
}
