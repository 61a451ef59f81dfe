/* Parsing of templates, shared by jinja_read.c (statements) and jinja_expression.c only. */
#ifndef ENGINE_JINJA_READ_H
#define ENGINE_JINJA_READ_H

#include "engine/tokens/jinja_parts.h"

struct jinja_reading {
    struct jinja *j;
    const struct jinja_token *at; /* the current token */
    uint32_t depth;               /* of nested bodies and expressions */
    uint32_t loops;               /* around the current statement, inside of its macro */
};

/* Whether the current token is this operator or name; accept: if so, the next one becomes
 * current. */
bool jinja_at_op(const struct jinja_reading *p, const char *op);
bool jinja_at_name(const struct jinja_reading *p, const char *name);
bool jinja_accept_op(struct jinja_reading *p, const char *op);
bool jinja_accept_name(struct jinja_reading *p, const char *name);
err jinja_expect_op(struct jinja_reading *p, const char *op);
/* ERR_INPUT that names the current token and its line. */
err jinja_unexpected(const struct jinja_reading *p, const char *expected);

err jinja_node_make(struct jinja_node **out, struct jinja_reading *p, enum jinja_node_kind kind);
/* Makes `n` deeper than `child` (may be NULL); an error beyond LIMIT_TEMPLATE_DEPTH. */
err jinja_node_over(struct jinja_node *n, const struct jinja_node *child);
err jinja_intern(uint32_t *out, struct jinja_reading *p, const char *text, size_t size);
err jinja_take_name(uint32_t *out, struct jinja_reading *p, const char *expected);

/* jinja_expression.c */
err jinja_read_expression(struct jinja_node **out, struct jinja_reading *p);
/* One expression, or several with commas, which are a tuple. `choice`: "a if b else c" is allowed;
 * `end`: a name that ends the tuple, or NULL. */
err jinja_read_tuple(struct jinja_node **out, struct jinja_reading *p, bool choice,
                     const char *end);
/* "| f | g(1)" applied to `value`; `inside`: without the first "|". */
err jinja_read_filters(struct jinja_node **out, struct jinja_reading *p, struct jinja_node *value,
                       bool inside);

#endif
