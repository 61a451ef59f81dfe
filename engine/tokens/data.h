/* Training and evaluation rows from a data file, tokenised once when the file is read.
 *
 * The file holds one JSON object in each line or one JSON list of objects, either of them also
 * compressed by gzip (data_file.h). The form of a row is the first of these that fits; null counts
 * as absent:
 *
 *   {"input_ids", "labels"}            already tokenised; -100 is not learned; without labels all
 *                                      is learned; masks leave out more (data_member.h)
 *   {"messages"}, {"conversations"}    rendered by the model's chat template; assistant turns are
 *                                      learned
 *   {"prompt", "completion"}           one text; tokens whose first byte lies in the completion are
 *                                      learned. If both are lists of messages, they are one
 *                                      conversation, of which the completion's turns are learned
 *   {"instruction", "input", "output"} prompt: Stanford's prompt for Alpaca; completion: output
 *   {"text", "label"}                  prompt: the text without spaces at its end; completion: a
 *                                      space (none after a line break) and the label
 *   {"text"}                           all tokens are learned
 *
 * Members of a known meaning that cannot be honoured are refused (data_member.h). Other members are
 * ignored. The end-of-sequence token is appended and learned, except after input_ids, after
 * messages, whose turns already end with a token of the template, and after a text that ends with
 * such a token. Rows longer than `seq` are cut at the end. Blank lines are skipped. */
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
    uint32_t line;    /* number of the line in the file, from 1, where the row starts */
    const char *completion; /* the text that generation should give, or NULL */
    const char *by;         /* the value of the member data_options.by, or NULL */
};

struct data_options {
    const struct tokenizer *tokenizer; /* may be NULL if all rows have input_ids */
    size_t vocab;                      /* ids must be smaller; 0: the size of the tokenizer */
    uint32_t seq;                      /* largest number of tokens in a row; 0: LIMIT_SEQUENCE */
    bool no_eos;
    bool bos; /* put the bos token before text rows that do not start with it; messages have
                       their own */
    const char *template; /* chat template: a built-in name or a file; NULL: the model's own */
    bool split;           /* encode prompt and completion apart, so no token lies in both */
    const char *by;       /* a member whose text or integer every row has and keeps; NULL: none */
};

/* Rows of one kind, and the line of the first of them; 0: there is none. */
struct data_kind {
    size_t rows;
    uint32_t line;
};

struct dataset {
    struct arena arena;
    struct data_row *row;
    size_t count;
    size_t capacity;
    uint64_t tokens, learned;       /* sums over rows */
    uint32_t longest, longest_line; /* tokens of the longest row before it was cut; its line */
    struct data_kind cut;           /* longer than seq */
    struct data_kind unlearned;     /* without a learned token; they are kept */
    struct data_kind joined;    /* a token lies in both prompt and completion and is not learned */
    struct data_kind has_eos;   /* the text ends an answer itself, so no eos was appended */
    struct data_kind rewritten; /* the chat template writes turns otherwise once others follow */
    struct data_kind left_out;  /* the chat template leaves out a message of the system or user */
    struct data_kind has_bos;   /* the text starts with the bos token, so none was put first */
};

/* The number of rows that teach: those with a learned token. It is the weight of the data. */
static inline size_t data_teaching(const struct dataset *data)
{
    return data->count - data->unlearned.rows;
}

/* Adds the row to the sums and kinds of *data, but not to its list. `whole`: its tokens before it
 * was cut. */
void data_count(struct dataset *data, const struct data_row *row, size_t whole);

/* ERR_INPUT "FILE:LINE: ..." for a row that cannot be read; ERR_INPUT for a file without rows. */
err data_open(struct dataset *out, const char *path, const struct data_options *options);
void data_close(struct dataset *data);

#endif
