/* Expressions of a running template. */
#include "base/limits.h"
#include "engine/tokens/jinja_run.h"

#include <string.h>

/* A macro may call itself, so depth is counted while running too. */
err jinja_enter(struct jinja_run *r)
{
    if (r->depth >= 2 * LIMIT_TEMPLATE_DEPTH)
        return jinja_fail(r, "calls are nested deeper than supported");
    r->depth++;
    return ERR_NONE;
}

/* Inner scopes hide outer ones. A name that is nowhere is undefined, which is no error yet. */
static void find_name(struct jinja_value *out, const struct jinja_run *r,
                      const struct jinja_scope *scope, uint32_t name)
{
    for (; scope; scope = scope->parent)
        for (const struct jinja_binding *b = scope->first; b; b = b->next)
            if (b->name == name) {
                *out = b->value;
                return;
            }
    const struct jinja_name *n = &r->program->name[name];
    *out = (struct jinja_value){.kind = JINJA_UNDEFINED, .text = {n->text, n->size}};
}

static err eval_list(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    struct jinja_value item;
    TRY(jinja_list(out, r, n->kind == NODE_LIST ? JINJA_LIST : JINJA_TUPLE, 4));
    for (const struct jinja_node *one = n->a; one; one = one->next) {
        TRY(jinja_eval(&item, r, scope, one));
        TRY(jinja_push(r, out, &item));
    }
    return ERR_NONE;
}

/* Keys and values follow each other in the list. */
static err eval_dict(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    struct jinja_value key, value;
    TRY(jinja_dict(out, r, 4));
    for (const struct jinja_node *one = n->a; one; one = one->next->next) {
        TRY(jinja_eval(&key, r, scope, one));
        TRY(jinja_eval(&value, r, scope, one->next));
        TRY(jinja_put(r, out, &key, &value));
    }
    return ERR_NONE;
}

/* ---- members ---- */

/* The name of an attribute is compared with Python's only if the parser found it among them. */
static err eval_attribute(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value object;
    TRY(jinja_eval(&object, r, scope, n->a));
    const struct jinja_name *name = &r->program->name[n->name];
    if (object.kind == JINJA_DICT && !n->uses) {
        TRY(jinja_step(r, object.dict->count / 16));
        const struct jinja_value *found = jinja_find(object.dict, name->text, name->size);
        if (found) {
            *out = *found;
            return ERR_NONE;
        }
    }
    r->line = n->line;
    return jinja_attribute(out, r, &object, name->text, name->size);
}

static err eval_item(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    struct jinja_value object, key, bound[3];
    TRY(jinja_eval(&object, r, scope, n->a));
    if (n->b->kind != NODE_SLICE) {
        TRY(jinja_eval(&key, r, scope, n->b));
        r->line = n->line;
        return jinja_item(out, r, &object, &key);
    }
    const struct jinja_node *part[3] = {n->b->a, n->b->b, n->b->c};
    for (int i = 0; i < 3; i++) {
        bound[i] = (struct jinja_value){.kind = JINJA_NONE};
        if (part[i]) TRY(jinja_eval(&bound[i], r, scope, part[i]));
    }
    r->line = n->line;
    return jinja_slice(out, r, &object, bound);
}

/* ---- calls ---- */

err jinja_eval_arguments(struct jinja_call *out, struct jinja_run *r,
                         const struct jinja_scope *scope, const struct jinja_node *n)
{
    out->count = 0;
    for (; n; n = n->next) {
        struct jinja_argument *a = &out->argument[out->count++];
        bool named = n->kind == NODE_KEYWORD;
        a->name = named ? n->name : JINJA_NO_NAME;
        TRY(jinja_eval(&a->value, r, scope, named ? n->a : n));
    }
    return ERR_NONE;
}

/* The value of a parameter: by position, by name, or its default, which may use the parameters
 * before it. */
static err bind_parameter(struct jinja_run *r, struct jinja_scope *scope,
                          const struct jinja_node *parameter, const struct jinja_call *call,
                          size_t position)
{
    const char *name = r->program->name[parameter->name].text;
    const struct jinja_value *given = jinja_given(r, call, position, name);
    struct jinja_value value = {.kind = JINJA_UNDEFINED,
                                .text = {name, r->program->name[parameter->name].size}};
    if (given)
        value = *given;
    else if (parameter->a)
        TRY(jinja_eval(&value, r, scope, parameter->a));
    return jinja_bind(r, scope, parameter->name, &value);
}

err jinja_call_macro(struct jinja_value *out, struct jinja_run *r, const struct jinja_macro *macro,
                     const struct jinja_call *call)
{
    const struct jinja_node *n = macro->node;
    struct jinja_scope *scope;
    size_t count = 0, known = 0;
    TRY(jinja_take(&scope, r, 1, sizeof *scope));
    *scope = (struct jinja_scope){.parent = macro->scope};
    for (const struct jinja_node *p = n->a; p; p = p->next, count++)
        TRY(bind_parameter(r, scope, p, call, count));
    for (size_t i = 0; i < call->count; i++) {
        const struct jinja_argument *a = &call->argument[i];
        bool caller = a->name != JINJA_NO_NAME && n->uses &&
                      strcmp(r->program->name[a->name].text, "caller") == 0;
        if (caller) TRY(jinja_bind(r, scope, a->name, &a->value));
        known += caller || (a->name == JINJA_NO_NAME && i < count);
        for (const struct jinja_node *p = n->a; p && a->name != JINJA_NO_NAME; p = p->next)
            known += p->name == a->name;
    }
    if (known < call->count)
        return jinja_fail(r, "macro '%.60s' has an argument that it does not take", call->what);
    return jinja_run_captured(out, r, scope, n->body);
}

/* Python calls whatever the expression gives; the kind decides here. */
static err call_value(struct jinja_value *out, struct jinja_run *r,
                      const struct jinja_value *function, const struct jinja_call *call)
{
    switch ((enum jinja_kind)function->kind) {
    case JINJA_MACRO:
        return jinja_call_macro(out, r, function->macro, call);
    case JINJA_FUNCTION:
        return function->function->call(out, r, call);
    case JINJA_METHOD: {
        const struct jinja_method *m = function->method;
        if (m->self.safe)
            return jinja_fail(r, "'%s' of text marked by safe or escape is not supported",
                              m->row->name);
        return m->row->call(out, r, &m->self, call);
    }
    case JINJA_UNDEFINED:
        return jinja_undefined(r, function);
    case JINJA_LOOP:
        return jinja_fail(r, "recursive loops are not supported");
    default:
        return jinja_fail(r, "'%s' object is not callable", jinja_type(function));
    }
}

static err eval_call(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    struct jinja_value function;
    struct jinja_call call;
    TRY(jinja_eval(&function, r, scope, n->a));
    TRY(jinja_eval_arguments(&call, r, scope, n->b));
    bool named = n->a->kind == NODE_ATTRIBUTE || n->a->kind == NODE_NAME;
    call.what = function.kind == JINJA_METHOD ? function.method->row->name
                : named                       ? r->program->name[n->a->name].text
                                              : "call";
    r->line = n->line;
    TRY(jinja_step(r, 1));
    return call_value(out, r, &function, &call);
}

/* ---- filters and tests ---- */

/* The value is evaluated before the arguments, and the arguments from the left. */
static err eval_filter(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value value;
    TRY(jinja_eval(&value, r, scope, n->a));
    struct jinja_call call;
    const struct jinja_filter_row *row = n->row;
    call.what = row->name;
    TRY(jinja_eval_arguments(&call, r, scope, n->b));
    r->line = n->line;
    return jinja_filter_call(out, r, row, &value, &call);
}

/* The tree of "a | f | g" has g at its root, so the inner filters are applied first, by recursion.
 * Blocks have no node for their text, and the innermost filter gets `value` in its place. */
err jinja_eval_filters(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n,
                       const struct jinja_value *value)
{
    struct jinja_value inner = *value;
    struct jinja_call call;
    TRY(jinja_enter(r));
    if (n->a) TRY(jinja_eval_filters(&inner, r, scope, n->a, value));
    const struct jinja_filter_row *row = n->row;
    call.what = row->name;
    TRY(jinja_eval_arguments(&call, r, scope, n->b));
    r->line = n->line;
    r->depth--;
    return jinja_filter_call(out, r, row, &inner, &call);
}

static err eval_test(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    struct jinja_value value;
    struct jinja_call call;
    const struct jinja_test_row *row = n->row;
    bool is = false;
    TRY(jinja_eval(&value, r, scope, n->a));
    call.what = row->name;
    TRY(jinja_eval_arguments(&call, r, scope, n->b));
    r->line = n->line;
    TRY(row->call(&is, r, &value, &call));
    *out = jinja_bool(is);
    return ERR_NONE;
}

/* ---- operators ---- */

/* and, or: the operand itself is the result, as in Python. */
static err eval_logic(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                      const struct jinja_node *n)
{
    bool truth;
    TRY(jinja_eval(out, r, scope, n->a));
    TRY(jinja_truth(&truth, r, out));
    if (truth == (n->kind == NODE_OR)) return ERR_NONE;
    return jinja_eval(out, r, scope, n->b);
}

/* -x is 0 - x for whole numbers, which detects the one overflow, -INT64_MIN. Floats are
 * negated instead, because 0 - 0.0 is 0.0 and not -0.0. */
static err eval_sign(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                     const struct jinja_node *n)
{
    const struct jinja_value zero = jinja_int(0);
    struct jinja_value value;
    TRY(jinja_eval(&value, r, scope, n->a));
    r->line = n->line;
    if (value.kind == JINJA_UNDEFINED) return jinja_undefined(r, &value);
    if (!jinja_is_number(&value))
        return jinja_fail(r, "bad operand type for a sign: '%s'", jinja_type(&value));
    if (n->kind == NODE_POSITIVE) return jinja_binary(out, r, OP_ADD, &value, &zero);
    if (value.kind != JINJA_FLOAT) return jinja_binary(out, r, OP_SUB, &zero, &value);
    *out = jinja_float(-value.real);
    return ERR_NONE;
}

/* `~` joins the texts of any values, unlike +, and the result is never marked as safe. */
static err eval_concat(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value part;
    size_t mark = jinja_capture(r);
    for (const struct jinja_node *one = n->a; one; one = one->next) {
        TRY(jinja_eval(&part, r, scope, one));
        r->line = n->line;
        TRY(jinja_print(r, &part));
    }
    return jinja_captured(out, r, mark);
}

/* a < b < c evaluates b once and stops at the first that is false. */
static err eval_comparison(struct jinja_value *out, struct jinja_run *r,
                           const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value left, right;
    bool is = true;
    TRY(jinja_eval(&left, r, scope, n->a));
    for (const struct jinja_node *one = n->b; one && is; one = one->next) {
        TRY(jinja_eval(&right, r, scope, one->a));
        r->line = n->line;
        TRY(jinja_compare(&is, r, (enum jinja_op)one->op, &left, &right));
        left = right;
    }
    *out = jinja_bool(is);
    return ERR_NONE;
}

static err eval_binary(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value a, b;
    TRY(jinja_eval(&a, r, scope, n->a));
    TRY(jinja_eval(&b, r, scope, n->b));
    r->line = n->line;
    return jinja_binary(out, r, (enum jinja_op)n->op, &a, &b);
}

static err eval_not(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                    const struct jinja_node *n)
{
    struct jinja_value value;
    bool truth;
    TRY(jinja_eval(&value, r, scope, n->a));
    TRY(jinja_truth(&truth, r, &value));
    *out = jinja_bool(!truth);
    return ERR_NONE;
}

/* Only the chosen side is evaluated. */
static err eval_choice(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value test;
    bool truth;
    TRY(jinja_eval(&test, r, scope, n->a));
    TRY(jinja_truth(&truth, r, &test));
    const struct jinja_node *chosen = truth ? n->b : n->c;
    *out = (struct jinja_value){.kind = JINJA_UNDEFINED};
    return chosen ? jinja_eval(out, r, scope, chosen) : ERR_NONE;
}

err jinja_eval(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
               const struct jinja_node *n)
{
    static err (*const evals[])(struct jinja_value * out, struct jinja_run * r,
                                const struct jinja_scope *scope, const struct jinja_node *n) = {
        [NODE_LIST] = eval_list,     [NODE_TUPLE] = eval_list,
        [NODE_DICT] = eval_dict,     [NODE_ATTRIBUTE] = eval_attribute,
        [NODE_ITEM] = eval_item,     [NODE_CALL] = eval_call,
        [NODE_FILTER] = eval_filter, [NODE_TEST] = eval_test,
        [NODE_NOT] = eval_not,       [NODE_NEGATIVE] = eval_sign,
        [NODE_POSITIVE] = eval_sign, [NODE_AND] = eval_logic,
        [NODE_OR] = eval_logic,      [NODE_BINARY] = eval_binary,
        [NODE_CONCAT] = eval_concat, [NODE_COMPARE] = eval_comparison,
        [NODE_CHOICE] = eval_choice,
    };
    if (n->kind == NODE_CONST) {
        *out = n->value;
        return ERR_NONE;
    }
    if (n->kind == NODE_NAME) {
        find_name(out, r, scope, n->name);
        return jinja_step(r, 1);
    }
    r->line = n->line;
    TRY(jinja_step(r, 1));
    TRY(jinja_enter(r));
    TRY(evals[n->kind](out, r, scope, n));
    r->depth--;
    return ERR_NONE;
}
