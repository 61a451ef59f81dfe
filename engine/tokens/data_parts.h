/* The parts of reading a data file: data.c owns the rows and their tokens, data_row.c knows the
 * forms of rows, data_chat.c those with messages. Used only there. */
#ifndef ENGINE_DATA_PARTS_H
#define ENGINE_DATA_PARTS_H

#include "engine/tokens/data.h"

#include <jansson.h>

/* The reading of one file. */
struct data_reader {
    const char *path;
    const struct data_options *o;
    struct dataset *data;
    size_t vocab, seq;
    struct chat *chat;        /* opened by the first row with messages */
    struct bytes text;        /* of the current row */
    struct chat_spans spans;  /* learned parts of `text` */
    struct tokens tokens;     /* of the current row */
    struct tokens completion; /* of a completion that is encoded apart */
    uint64_t line;            /* where the current row starts */
    const char *by;           /* its value of options.by, borrowed */
};

/* Adds a row with the ids in r->tokens and their labels, cut at `seq`. */
err data_put_row(struct data_reader *r, const int32_t *label, const char *completion);
/* Encodes r->text and marks as learned the tokens whose first byte lies in r->spans. The pieces of
 * a text with a prompt follow data_options; those of messages are complete. */
struct data_text {
    bool messages;          /* the template wrote bos and the ends of turns */
    bool pair;              /* a completion starts at the first span */
    const char *completion; /* or NULL */
};
err data_put_text(struct data_reader *r, const struct data_text *text);
/* Sets r->spans to one stretch of r->text. */
err data_span(struct data_reader *r, size_t begin, size_t end);

/* Reads the members of one row and adds it. Errors do not name the line. */
err data_read_row(struct data_reader *r, const json_t *row);
/* A row with messages, conversations, or prompt and completion as lists of messages. */
err data_read_chat(struct data_reader *r, const json_t *row);

#endif
