#include "engine/tokens/data_member.h"

#include <string.h>

/* A member that is not empty is refused with `reason` in the forms that do not honour it, or
 * ignored there if there is no reason. docs/researcher.md has the same table for users. */
struct member {
    const char *name;
    unsigned forms; /* enum data_form: honoured here */
    const char *reason;
};

#define TEXTS (DATA_PAIR | DATA_ALPACA | DATA_LABELLED | DATA_TEXT)
#define ALL (DATA_IDS | DATA_CHAT | TEXTS)
#define OF_IDS "it belongs to input_ids, which this row does not have"
#define OF_CHAT "it belongs to messages, which this row does not have"
#define NOT_TEXT "only text is read: remove it, or the row"

static const struct member of_row[] = {
    /* clang-format off */
    {"input_ids",            DATA_IDS,               NULL},
    {"labels",               DATA_IDS,               OF_IDS},
    {"attention_mask",       DATA_IDS,               OF_IDS},
    {"completion_mask",      DATA_IDS,               OF_IDS},
    {"assistant_masks",      DATA_IDS,               OF_IDS},
    {"loss_mask",            DATA_IDS,               OF_IDS},
    {"position_ids",         DATA_IDS,               OF_IDS},
    {"seq_lengths",          0,                      "rows packed together are not read: write "
                                                     "each row on its own"},
    {"messages",             DATA_CHAT,              NULL},
    {"conversations",        DATA_CHAT,              NULL},
    {"prompt",               DATA_CHAT | DATA_PAIR,  NULL},
    {"completion",           DATA_CHAT | DATA_PAIR,  NULL},
    {"tools",                DATA_CHAT,              OF_CHAT},
    {"chat_template_kwargs", DATA_CHAT,              OF_CHAT},
    {"system",               DATA_CHAT | DATA_IDS,   "a system text is read with messages or "
                                                     "conversations only: put it into the prompt"},
    {"system_prompt",        0,                      "put it into the messages or into the "
                                                     "prompt"},
    {"documents",            DATA_CHAT,              OF_CHAT},
    {"instruction",          DATA_ALPACA,            NULL},
    {"input",                DATA_ALPACA,            NULL},
    {"output",               DATA_ALPACA,            NULL},
    {"context",              ALL & ~DATA_ALPACA,     "expected the context of an instruction in "
                                                     "\"input\""},
    {"history",              ALL & ~DATA_ALPACA,     "earlier turns are read as messages only"},
    {"text",                 DATA_TEXT | DATA_LABELLED, NULL},
    {"label",                DATA_LABELLED,          NULL},
    {"functions",            0,                      "expected \"tools\" in its place"},
    {"images",               0,                      NOT_TEXT},
    {"image",                0,                      NOT_TEXT},
    {"videos",               0,                      NOT_TEXT},
    {"video",                0,                      NOT_TEXT},
    {"audios",               0,                      NOT_TEXT},
    {"audio",                0,                      NOT_TEXT},
    /* clang-format on */
};

/* DATA_CHAT: read here or by the chat template. */
static const struct member of_message[] = {
    /* clang-format off */
    {"role",              DATA_CHAT, NULL},
    {"content",           DATA_CHAT, NULL},
    {"from",              DATA_CHAT, NULL},
    {"value",             DATA_CHAT, NULL},
    {"weight",            DATA_CHAT, NULL},
    {"train",             DATA_CHAT, NULL},
    {"training",          DATA_CHAT, NULL},
    {"loss",              DATA_CHAT, NULL},
    {"tool_calls",        DATA_CHAT, NULL},
    {"tool_call_id",      DATA_CHAT, NULL},
    {"name",              DATA_CHAT, NULL},
    {"reasoning_content", DATA_CHAT, NULL},
    {"reasoning",         DATA_CHAT, NULL},
    {"thinking",          DATA_CHAT, NULL},
    {"train_detail",      0,         "parts of a turn cannot be chosen: use "
                                     "\"train\": false for the whole turn"},
    {"training_detail",   0,         "parts of a turn cannot be chosen: use "
                                     "\"train\": false for the whole turn"},
    {"function_call",     0,         "expected \"tool_calls\" in its place"},
    {"refusal",           0,         "expected the text in \"content\""},
    {"prefix",            0,         "the start of an answer cannot be given apart from it"},
    {"images",            0,         NOT_TEXT},
    {"image",             0,         NOT_TEXT},
    {"videos",            0,         NOT_TEXT},
    {"video",             0,         NOT_TEXT},
    {"audios",            0,         NOT_TEXT},
    {"audio",             0,         NOT_TEXT},
    /* clang-format on */
};

const json_t *data_member(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

/* Tables write every column in every row, so an empty member asks for nothing and need not be
 * refused. A number is never empty, not even 0. */
bool data_member_empty(const json_t *object, const char *name)
{
    const json_t *value = data_member(object, name);
    if (!value || json_is_false(value)) return true;
    if (json_is_string(value)) return json_string_length(value) == 0;
    if (json_is_array(value)) return json_array_size(value) == 0;
    return json_is_object(value) && json_object_size(value) == 0;
}

static err check(const json_t *object, unsigned form, const struct member *table, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct member *m = &table[i];
        if (!m->reason || (m->forms & form) || data_member_empty(object, m->name)) continue;
        return err_make(ERR_INPUT, "\"%s\" cannot be honoured: %s", m->name, m->reason);
    }
    return ERR_NONE;
}

err data_member_check_row(const json_t *row, enum data_form form)
{
    return check(row, form, of_row, sizeof of_row / sizeof *of_row);
}

err data_member_check_message(const json_t *message)
{
    return check(message, DATA_CHAT, of_message, sizeof of_message / sizeof *of_message);
}

static bool find(const char *name, const struct member *table, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i].name, name) == 0) return true;
    return false;
}

bool data_member_of_row(const char *name)
{
    return find(name, of_row, sizeof of_row / sizeof *of_row);
}

bool data_member_of_message(const char *name)
{
    return find(name, of_message, sizeof of_message / sizeof *of_message);
}
