#include "client/command/marked.h"

#include "base/limits.h"
#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Marks before and after learned text: the brackets U+27E6 and U+27E7 in UTF-8, and the terminal's
 * sequences for reversed colours and for its normal ones. */
static const char *const brackets[2] = {"\xE2\x9F\xA6", "\xE2\x9F\xA7"};
static const char *const colours[2] = {"\x1b[7m", "\x1b[0m"};

/* Copies first and then replaces in the copy, since `text` is borrowed. An escape byte from a data
 * file would otherwise let the file move the cursor or recolour the terminal. The marks do not pass
 * through here, because they hold such a byte themselves. */
static err put(struct bytes *out, const char *text, size_t size)
{
    TRY(bytes_append(out, text, size));
    char *copy = (char *)out->data + out->size - size;
    for (size_t i = 0; i < size; i++) {
        size_t control = text_control(copy + i, size - i);
        if (control && copy[i] != '\n' && copy[i] != '\t') memset(copy + i, '?', control);
    }
    return ERR_NONE;
}

static err put_marked(struct bytes *out, const char *text, size_t size, const char *const *marks)
{
    TRY(bytes_append(out, marks[0], strlen(marks[0])));
    TRY(put(out, text, size));
    return bytes_append(out, marks[1], strlen(marks[1]));
}

/* Spans are in order and do not overlap, so one pass over the text is enough. */
err marked_text(struct bytes *out, const char *text, size_t size, const struct chat_spans *spans)
{
    const char *const *marks = isatty(STDOUT_FILENO) ? colours : brackets;
    size_t at = 0;
    for (size_t i = 0; i < spans->count; i++) {
        struct chat_span s = spans->span[i];
        TRY(put(out, text + at, s.begin - at));
        TRY(put_marked(out, text + s.begin, s.end - s.begin, marks));
        at = s.end;
    }
    return put(out, text + at, size - at);
}

/* Tokens of a stretch are decoded together, because a character may have several tokens. */
static err decode(struct bytes *out, const struct data_row *row, const struct tokenizer *t,
                  uint32_t begin, uint32_t end)
{
    struct tokenizer_stream stream = {.tokenizer = t, .start = begin == 0, .special = true};
    bytes_clear(out);
    TRY(bytes_append(out, "", 0));
    for (uint32_t i = begin; i < end; i++)
        TRY(tokenizer_stream_add(out, &stream, row->id[i]));
    return tokenizer_stream_end(out, &stream);
}

/* A mark stands where learned tokens begin or end, so each such stretch is decoded on its own. Rows
 * of input_ids may decode to more text than their line of the file has, hence the larger limit. */
static err put_row(struct bytes *out, const struct data_row *row, const struct tokenizer *t)
{
    const char *const *marks = isatty(STDERR_FILENO) ? colours : brackets;
    struct bytes part = {.max = 4 * (size_t)LIMIT_LINE_BYTES};
    err e = ERR_NONE;
    for (uint32_t begin = 0, end; begin < row->count && !err_is(e); begin = end) {
        bool learned = row->label[begin] != DATA_IGNORE;
        for (end = begin; end < row->count && (row->label[end] != DATA_IGNORE) == learned;)
            end++;
        e = decode(&part, row, t, begin, end);
        const char *text = (const char *)part.data;
        if (!err_is(e))
            e = learned ? put_marked(out, text, part.size, marks) : put(out, text, part.size);
    }
    bytes_close(&part);
    return e;
}

/* A row is built completely before it is printed, so an error in it leaves no half-open mark on the
 * terminal. */
err marked_rows(const struct dataset *data, size_t count, const struct tokenizer *t)
{
    struct bytes out = {.max = 32 * (size_t)LIMIT_LINE_BYTES};
    err e = ERR_NONE;
    for (size_t i = 0; i < count && i < data->count && !err_is(e); i++) {
        const struct data_row *row = &data->row[i];
        bytes_clear(&out);
        e = bytes_printf(&out, "line %" PRIu32 ": %" PRIu32 " tokens, %" PRIu32 " learned\n",
                         row->line, row->count, row->learned);
        if (!err_is(e)) e = put_row(&out, row, t);
        if (!err_is(e)) fprintf(stderr, "%s\n", (const char *)out.data);
    }
    bytes_close(&out);
    return e;
}
