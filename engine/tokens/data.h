/* Training and evaluation rows from a JSON Lines file, tokenised once.
 *
 * A row is one of (the first that fits)
 *   {"input_ids", "labels"}   already tokenised, -100 = not learned; without labels all are learned
 *   {"messages"}              rendered by the model's chat template; assistant turns are learned
 *   {"prompt", "completion"}  one text; tokens whose first byte lies in the completion are learned
 *   {"text", "label"}         prompt: the text without spaces at its end; completion: a space (none
 *                             after a line break) and the label
 *   {"text"}                  all learned
 * Other members are ignored. The end-of-sequence token is appended and learned, except after
 * input_ids, and after messages, whose turns end with the token their template prints. Rows longer
 * than `seq` are cut at the end. Blank lines are skipped. */
#ifndef CLIENT_DATA_H
#define CLIENT_DATA_H

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
    const int32_t *label; /* (count) label[t] is id[t] where token t is learned, else DATA_IGNORE */
    uint32_t count;
    uint32_t learned; /* labels that count: those after the first position */
    uint32_t prompt;  /* tokens before the first learned one: evaluation generates from them */
    uint32_t line;    /* in the file, from 1 */
    const char *completion; /* what generation should give, or NULL when the row has none */
};

struct data_options {
    const struct tokenizer *tokenizer; /* may be NULL where all rows hold input_ids */
    size_t vocab;                      /* ids must be below; 0: the tokenizer's */
    uint32_t seq;                      /* most tokens of a row; 0: LIMIT_SEQUENCE */
    bool no_eos;
    bool bos; /* put the bos token in front of text rows (not of messages) */
};

struct dataset {
    struct arena arena;
    struct data_row *row;
    size_t count;
    size_t capacity;
    uint64_t tokens, learned; /* sums over rows */
    size_t cut;               /* rows longer than seq */
    size_t unlearned;         /* rows with nothing to learn, kept */
};

/* ERR_INPUT "FILE:LINE: ..." for a row that cannot be read, and for a file without rows. */
err data_open(struct dataset *out, const char *path, const struct data_options *options);
void data_close(struct dataset *data);

#endif
