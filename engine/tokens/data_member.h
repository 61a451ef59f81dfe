/* The members of rows and messages that have a known meaning. One table says which of them are
 * honoured in which form of row, and what happens elsewhere. */
#ifndef ENGINE_DATA_MEMBER_H
#define ENGINE_DATA_MEMBER_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>

/* The forms of rows, as bits. */
enum data_form {
    DATA_IDS = 1,       /* input_ids */
    DATA_CHAT = 2,      /* messages, conversations, or prompt and completion as lists */
    DATA_PAIR = 4,      /* prompt and completion */
    DATA_ALPACA = 8,    /* instruction and output */
    DATA_LABELLED = 16, /* text and label */
    DATA_TEXT = 32,     /* text */
};

/* The member, or NULL if it is absent or null. Exporters of tables write null for empty cells. */
const json_t *data_member(const json_t *object, const char *name);
/* Whether a member holds nothing: absent, null, or an empty text, list or object. */
bool data_member_empty(const json_t *object, const char *name);

/* ERR_INPUT naming a member that has a meaning which this form of row cannot honour. */
err data_member_check_row(const json_t *row, enum data_form form);
err data_member_check_message(const json_t *message);
/* Whether the member has a known meaning; others are not read. */
bool data_member_of_row(const char *name);
bool data_member_of_message(const char *name);

#endif
