/* Training and evaluation rows from a JSON Lines file, tokenised once when the file is read.
 *
 * The form of a row is the first of these that fits:
 *
 *   {"input_ids", "labels"}   already tokenised; -100 is not learned; without labels all is learned
 *   {"messages"}              rendered by the model's chat template; assistant turns are learned
 *   {"prompt", "completion"}  one text; tokens whose first byte lies in the completion are learned
 *   {"text", "label"}         prompt: the text without spaces at its end; completion: a space (none
 *                             after a line break) and the label
 *   {"text"}                  all tokens are learned
 *
 * Other members are ignored. The end-of-sequence token is appended and learned, except after
 * input_ids and after messages, whose turns already end with a token of the template. Rows longer
 * than `seq` are cut at the end. Blank lines are skipped. */
#ifndef ENGINE_DATA_H
#define ENGINE_DATA_H

#include "base/arena.h"
#include "base/err.h"
#include "engine/tokens/chat.h"
#include "engine/tokens/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DATA_IGNORE = -100 };

struct data_row {
    const int32_t *id;    /* (count) */
    const int32_t *label; /* (count) id[t] if token t is learned, else DATA_IGNORE */
    uint32_t count;
    uint32_t learned; /* learned tokens after position 0, which nothing predicts */
    uint32_t prompt;  /* tokens before the first learned one; evaluation generates from these */
    uint32_t line;    /* number of the line in the file, from 1 */
    const char *completion; /* the text that generation should give, or NULL */
};

struct data_options {
    const struct tokenizer *tokenizer; /* may be NULL if all rows have input_ids */
    size_t vocab;                      /* ids must be smaller; 0: the size of the tokenizer */
    uint32_t seq;                      /* largest number of tokens in a row; 0: LIMIT_SEQUENCE */
    bool no_eos;
    bool bos; /* put the bos token before text rows; messages have their own */
};

struct dataset {
    struct arena arena;
    struct data_row *row;
    size_t count;
    size_t capacity;
    uint64_t tokens, learned; /* sums over rows */
    size_t cut;               /* rows that were longer than seq */
    size_t unlearned;         /* rows without a learned token; they are kept */
};

/* The number of rows that teach: those with a learned token. It is the weight of the data. */
static inline size_t data_teaching(const struct dataset *data)
{
    return data->count - data->unlearned;
}

/* ERR_INPUT "FILE:LINE: ..." for a row that cannot be read; ERR_INPUT for a file without rows. */
err data_open(struct dataset *out, const char *path, const struct data_options *options);
void data_close(struct dataset *data);

#endif
