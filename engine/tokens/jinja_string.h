/* Python's operations on strings, used by the methods and the filters of templates. All arguments
 * are texts unless their type says otherwise. */
#ifndef ENGINE_JINJA_STRING_H
#define ENGINE_JINJA_STRING_H

#include "engine/tokens/jinja_parts.h"

enum { JINJA_LEFT = 1, JINJA_RIGHT = 2 };
/* Borrows from `v`. Without a set: white space. */
struct jinja_value jinja_string_strip(const struct jinja_value *v, const struct jinja_value *set,
                                      int sides);

enum jinja_case { JINJA_UPPER, JINJA_LOWER, JINJA_CAPITALIZE, JINJA_TITLE };
err jinja_string_case(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                      enum jinja_case how);
/* `what`: "upper", "lower", "alpha", "alnum", "ascii", "digit", "decimal" or "space". */
err jinja_string_is(bool *out, struct jinja_run *r, const struct jinja_value *v, const char *what);

/* The text marked as safe, with the special characters of HTML replaced unless it was safe. */
err jinja_string_escape(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v);

size_t jinja_string_words(const struct jinja_value *v);

/* *out: the first or, with `right`, the last place of `part`, or NULL. */
err jinja_string_find(const char **out, struct jinja_run *r, const struct jinja_value *v,
                      const struct jinja_value *part, bool right);

struct jinja_split {
    int64_t most; /* cuts; negative: no limit */
    bool right;   /* cut from the end */
};
/* A list. `by`: NULL: runs of white space. */
err jinja_string_split(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       const struct jinja_value *by, const struct jinja_split *how);
err jinja_string_lines(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       bool keep_ends);
/* most: negative: all. */
err jinja_string_replace(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                         const struct jinja_value *from, const struct jinja_value *to,
                         int64_t most);

#endif
