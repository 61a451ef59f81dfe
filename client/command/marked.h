/* Text whose learned parts are marked: reversed on a terminal, else between the brackets U+27E6 and
 * U+27E7, which hardly any text has. */
#ifndef CLIENT_MARKED_H
#define CLIENT_MARKED_H

#include "base/bytes.h"
#include "engine/tokens/data.h"

/* Appends the text for standard output. Control characters other than line feeds and tabs become
 * '?', because the text may come from anyone. */
err marked_text(struct bytes *out, const char *text, size_t size, const struct chat_spans *spans);
/* Prints the first `count` rows to standard error, each under its line number. */
err marked_rows(const struct dataset *data, size_t count, const struct tokenizer *t);

#endif
