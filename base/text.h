/* Small readings and writings of text: sizes, times, numbers, nearest words, sorted unique lists.
 */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

err text_parse_size(uint64_t *out, const char *text); /* 40MB (10^6), 2GiB (2^30), 512 */
err text_parse_duration_ms(uint64_t *out,
                           const char *text); /* 90s, 15m, 2h, 250ms; a bare number is seconds */
err text_parse_int(int64_t *out, const char *text, int64_t least, int64_t most);
err text_parse_num(double *out, const char *text, double least, double most); /* finite */
void text_size(char *out, size_t bytes, uint64_t n);                          /* "40.2 MB" */
void text_duration(char *out, size_t bytes, uint64_t ms);                     /* "2m05s" */
/* The word nearest to `word` by edit distance, or NULL when none is within a third of its length.
 */
const char *text_nearest(const char *word, const char *const *words, size_t count);
bool text_is_utf8(const void *data, size_t size);
/* Letters, digits, '.', '_' and '-' only, 1 to max bytes, not starting with '.' or '-': names of
 * runs and members, safe in paths and logs. */
bool text_is_name(const char *text, size_t bytes_max);
uint64_t text_now_ms(void);  /* monotonic clock */
uint64_t text_wall_ms(void); /* since 1970 */

#endif
