/* Running a parsed template, shared by jinja_run.c (statements) and jinja_eval.c (expressions)
 * only. */
#ifndef ENGINE_JINJA_RUN_H
#define ENGINE_JINJA_RUN_H

#include "engine/tokens/jinja_parts.h"

/* jinja_run.c */
err jinja_bind(struct jinja_run *r, struct jinja_scope *scope, uint32_t name,
               const struct jinja_value *value);
err jinja_run_body(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *body);
/* Runs the body with its output captured. */
err jinja_run_captured(struct jinja_value *out, struct jinja_run *r, struct jinja_scope *scope,
                       const struct jinja_node *body);

/* jinja_eval.c */
err jinja_eval(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
               const struct jinja_node *n);
/* The arguments in the list `n`. */
err jinja_eval_arguments(struct jinja_call *out, struct jinja_run *r,
                         const struct jinja_scope *scope, const struct jinja_node *n);
/* Applies a chain of filters (NODE_FILTER whose innermost value is absent) to `value`. */
err jinja_eval_filters(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n,
                       const struct jinja_value *value);
err jinja_call_macro(struct jinja_value *out, struct jinja_run *r, const struct jinja_macro *macro,
                     const struct jinja_call *call);
/* The depth of nested calls of jinja_eval() and jinja_run_body(), which use the C stack. */
err jinja_enter(struct jinja_run *r);

#endif
