/* Chat templates as programs: the part of Jinja that they use, interpreted as jinja2 does with the
 * settings of transformers (immutable sandbox, trim_blocks, lstrip_blocks, loop controls, the
 * generation tag, and transformers' own tojson).
 *
 * A template gives the same text as jinja2 or an error that names the line. A construct that is
 * not implemented is refused by name; it never gives another text. Templates and variables come
 * from strangers, so the size, the depth, the steps, the memory and the output are bounded
 * (base/limits.h). A parsed template is immutable, so threads share it. */
#ifndef ENGINE_JINJA_H
#define ENGINE_JINJA_H

#include "base/bytes.h"
#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct jinja;

/* ERR_INPUT "line N: ..." for a template that jinja2 refuses too, or one with a statement, filter
 * or test that is not implemented. The text is copied. */
err jinja_open(struct jinja **out, const char *text, size_t size);
void jinja_close(struct jinja *j); /* accepts NULL */

/* Whether the template marks learned text with {% generation %}. */
bool jinja_has_generation(const struct jinja *j);
/* Whether the template mentions this variable, attribute or key anywhere. */
bool jinja_mentions(const struct jinja *j, const char *name);

struct jinja_span { /* bytes [begin, end) of the buffer */
    size_t begin, end;
};
struct jinja_spans { /* a zeroed one is valid */
    struct jinja_span *span;
    size_t count, capacity;
};
void jinja_spans_close(struct jinja_spans *spans);
err jinja_spans_add(struct jinja_spans *spans, size_t begin, size_t end);

struct jinja_options {
    int64_t now;          /* seconds since 1970 (UTC) that strftime_now() prints */
    uint64_t *steps_left; /* shared by several calls; NULL: LIMIT_TEMPLATE_STEPS for this call */
};

/* Appends the text to *out, and what lies inside {% generation %} to *spans (may be NULL).
 * `variables` is an object. ERR_INPUT with the line, or with the text that the template gives to
 * raise_exception(); ERR_LIMIT for a bound. On failure *out and *spans are unchanged. */
err jinja_render(struct bytes *out, struct jinja_spans *spans, const struct jinja *j,
                 const json_t *variables, const struct jinja_options *options);

#endif
