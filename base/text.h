/* Parsing and printing of small values: sizes, durations, numbers, names; and the clocks. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Parsing; ERR_INPUT quotes the text and says what was expected. Ranges are inclusive. */
err text_parse_size(uint64_t *out, const char *text);        /* 512, 40MB (10^6), 2GiB (2^30) */
err text_parse_duration_ms(uint64_t *out, const char *text); /* 250ms, 90s, 15m, 2h; "90" is 90 s */
err text_parse_int(int64_t *out, const char *text, int64_t least, int64_t most);
err text_parse_num(double *out, const char *text, double least, double most);  /* finite */
err text_parse_part(double *out, const char *text, double least, double most); /* 0.1 or 10% */

/* Printing into out[0..bytes). */
void text_size(char *out, size_t bytes, uint64_t n);      /* "40.2 MB" */
void text_duration(char *out, size_t bytes, uint64_t ms); /* "2m05s" */

/* The word nearest to `word` by edit distance, or NULL when none is within a third of its length;
 * for "did you mean". */
const char *text_nearest(const char *word, const char *const *words, size_t count);
/* "; did you mean WORD?" with the nearest word, or "", for the end of an error. Returns out. */
enum { TEXT_SUGGESTION_BYTES = 160 };
const char *text_suggestion(char out[TEXT_SUGGESTION_BYTES], const char *word,
                            const char *const *words, size_t count);
bool text_is_utf8(const void *data, size_t size);
bool text_ends_with(const char *text, const char *end);
/* The bytes of the control character (C0, DEL or C1) of UTF-8 that starts at text[0]; 0: none. */
size_t text_control(const char *text, size_t size);
/* Makes text from another machine harmless on a terminal and in a log: line ends and tabs become
 * spaces, and control characters (C0, DEL, C1) and those that change the direction of writing
 * (Unicode TR 36) become '?', as do all bytes above 127 if the text is not UTF-8. It does not
 * grow. */
void text_tame(char *text);
/* Only letters, digits, '.', '_' and '-', 1 to bytes_max bytes, not starting with '.' or '-'. Names
 * of runs and members are checked with this, so that they are safe in paths and logs. */
bool text_is_name(const char *text, size_t bytes_max);
/* strcmp() of two elements of an array of strings, for qsort() and bsearch(). */
int text_order(const void *a, const void *b);
uint64_t text_now_ms(void);  /* monotonic clock */
uint64_t text_wall_ms(void); /* since 1970, UTC */

#endif
