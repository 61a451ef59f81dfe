/* Statements of a running template. Names are looked up through a chain of scopes: a loop body, a
 * macro, a captured block and {% with %} have their own, {% if %} has none. */
#include "engine/tokens/jinja_run.h"

#include "base/limits.h"
#include "base/list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Binds in the given scope even if an outer one has the name: {% set %} in a loop does not change
 * the variable outside, and templates use namespace() for that. */
err jinja_bind(struct jinja_run *r, struct jinja_scope *scope, uint32_t name,
               const struct jinja_value *value)
{
    struct jinja_binding *b = scope->first;
    while (b && b->name != name)
        b = b->next;
    if (!b) {
        TRY(jinja_take(&b, r, 1, sizeof *b));
        b->name = name;
        b->next = scope->first;
        scope->first = b;
    }
    b->value = *value;
    return ERR_NONE;
}

static err new_scope(struct jinja_scope **out, struct jinja_run *r,
                     const struct jinja_scope *parent)
{
    TRY(jinja_take(out, r, 1, sizeof **out));
    **out = (struct jinja_scope){.parent = parent};
    return ERR_NONE;
}

err jinja_run_captured(struct jinja_value *out, struct jinja_run *r, struct jinja_scope *scope,
                       const struct jinja_node *body)
{
    size_t mark = jinja_capture(r);
    TRY(jinja_run_body(r, scope, body));
    return jinja_captured(out, r, mark);
}

/* ---- assignments ---- */

static const struct jinja_value *find_bound(const struct jinja_scope *scope, uint32_t name)
{
    for (; scope; scope = scope->parent)
        for (const struct jinja_binding *b = scope->first; b; b = b->next)
            if (b->name == name) return &b->value;
    return NULL;
}

/* A tuple of targets takes as many values; a target "a.b" changes a namespace. */
static err assign(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *target,
                  const struct jinja_value *value)
{
    if (target->kind == NODE_NAME) return jinja_bind(r, scope, target->name, value);
    if (target->kind == NODE_MEMBER) {
        const struct jinja_value *object = find_bound(scope, target->name);
        r->line = target->line;
        if (!object || object->kind != JINJA_NAMESPACE)
            return jinja_fail(r, "cannot assign attribute on non-namespace object '%.60s'",
                              r->program->name[target->name].text);
        return jinja_put(r, object, &target->value, value);
    }
    struct jinja_list *items;
    size_t count = 0, i = 0;
    r->line = target->line;
    if (value->kind == JINJA_UNDEFINED) return jinja_undefined(r, value);
    TRY(jinja_items(&items, r, value));
    for (const struct jinja_node *one = target->a; one; one = one->next)
        count++;
    if (count != items->count)
        return jinja_fail(r, "%zu values to unpack, expected %zu", items->count, count);
    for (const struct jinja_node *one = target->a; one; one = one->next)
        TRY(assign(r, scope, one, &items->item[i++]));
    return ERR_NONE;
}

static err run_set(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value value;
    TRY(jinja_eval(&value, r, scope, n->b));
    return assign(r, scope, n->a, &value);
}

/* Variables set inside of the block end with it. */
static err run_set_block(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value value, filtered;
    struct jinja_scope *inside;
    TRY(new_scope(&inside, r, scope));
    TRY(jinja_run_captured(&value, r, inside, n->body));
    if (n->b) {
        TRY(jinja_eval_filters(&filtered, r, scope, n->b, &value));
        value = filtered;
    }
    return assign(r, scope, n->a, &value);
}

static err run_filter_block(struct jinja_run *r, struct jinja_scope *scope,
                            const struct jinja_node *n)
{
    struct jinja_value value, filtered;
    struct jinja_scope *inside;
    TRY(new_scope(&inside, r, scope));
    TRY(jinja_run_captured(&value, r, inside, n->body));
    TRY(jinja_eval_filters(&filtered, r, scope, n->b, &value));
    return jinja_print(r, &filtered);
}

/* The values are evaluated outside of the new scope. */
static err run_with(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_scope *inside;
    struct jinja_value value;
    const struct jinja_node *target = n->a;
    TRY(new_scope(&inside, r, scope));
    for (const struct jinja_node *one = n->b; one; one = one->next, target = target->next) {
        TRY(jinja_eval(&value, r, scope, one));
        TRY(assign(r, inside, target, &value));
    }
    return jinja_run_body(r, inside, n->body);
}

/* ---- loops ---- */

struct for_run {
    const struct jinja_node *n;
    struct jinja_scope *outer;
    struct jinja_loop loop;
    uint32_t loop_name;
    bool ran;
};

static err passes(bool *out, struct jinja_run *r, struct jinja_scope *inside,
                  const struct jinja_node *test)
{
    struct jinja_value value;
    *out = true;
    if (!test) return ERR_NONE;
    TRY(jinja_eval(&value, r, inside, test));
    return jinja_truth(out, r, &value);
}

/* With a `loop` variable the filter runs over all items first, because loop.length counts those
 * that pass. */
static err filtered_items(struct jinja_list **items, struct jinja_run *r, const struct for_run *f)
{
    struct jinja_value kept;
    struct jinja_list *all = *items;
    TRY(jinja_list(&kept, r, JINJA_LIST, all->count));
    for (size_t i = 0; i < all->count; i++) {
        struct jinja_scope *inside;
        bool pass;
        TRY(new_scope(&inside, r, f->outer));
        TRY(assign(r, inside, f->n->a, &all->item[i]));
        TRY(passes(&pass, r, inside, f->n->c));
        if (pass) TRY(jinja_push(r, &kept, &all->item[i]));
    }
    *items = kept.list;
    return ERR_NONE;
}

/* Variables of one turn are gone in the next. */
static err run_turn(struct jinja_run *r, struct for_run *f, const struct jinja_value *item)
{
    struct jinja_scope *inside;
    bool pass = true;
    TRY(new_scope(&inside, r, f->outer));
    TRY(assign(r, inside, f->n->a, item));
    if (f->n->uses) {
        const struct jinja_value loop = {.kind = JINJA_LOOP, .loop = &f->loop};
        TRY(jinja_bind(r, inside, f->loop_name, &loop));
    } else {
        TRY(passes(&pass, r, inside, f->n->c));
    }
    if (!pass) return ERR_NONE;
    TRY(jinja_run_body(r, inside, f->n->body));
    if (r->flow == FLOW_NEXT) f->ran = true; /* jinja2 counts no turn that continue or break cut */
    if (r->flow == FLOW_CONTINUE) r->flow = FLOW_NEXT;
    return ERR_NONE;
}

static uint32_t name_of(const struct jinja_run *r, const char *name)
{
    for (uint32_t i = 0; i < r->program->names; i++)
        if (strcmp(r->program->name[i].text, name) == 0) return i;
    return JINJA_NO_NAME;
}

static err run_for(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value iterable;
    struct for_run *f; /* a macro may keep `loop`, so it lives as long as the rendering */
    TRY(jinja_take(&f, r, 1, sizeof *f));
    *f = (struct for_run){.n = n, .outer = scope};
    if (n->uses) f->loop_name = name_of(r, "loop");
    TRY(jinja_eval(&iterable, r, scope, n->b));
    r->line = n->line;
    struct jinja_list *items;
    TRY(jinja_items(&items, r, &iterable));
    if (n->uses && n->c) TRY(filtered_items(&items, r, f));
    f->loop.items = items;
    for (f->loop.index = 0; f->loop.index < items->count; f->loop.index++) {
        TRY(run_turn(r, f, &items->item[f->loop.index]));
        if (r->flow == FLOW_BREAK) break;
    }
    r->flow = FLOW_NEXT;
    if (f->ran || !n->other) return ERR_NONE;
    struct jinja_scope *inside;
    TRY(new_scope(&inside, r, scope));
    return jinja_run_body(r, inside, n->other);
}

/* ---- the other statements ---- */

/* An elif is an `if` alone in `other`. The loop follows such a chain without recursion. {% if %}
 * opens no scope, so a variable that is set inside of it lasts beyond its end. */
static err run_if(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    for (;;) {
        bool truth;
        struct jinja_value test;
        TRY(jinja_eval(&test, r, scope, n->a));
        TRY(jinja_truth(&truth, r, &test));
        if (truth) return jinja_run_body(r, scope, n->body);
        if (!n->other) return ERR_NONE;
        bool chain = n->other->kind == NODE_IF && !n->other->next;
        if (!chain) return jinja_run_body(r, scope, n->other);
        n = n->other;
    }
}

/* The macro keeps a pointer to its scope. Scopes live as long as the rendering, so a macro may be
 * called after the block that defined it has ended. */
static err make_macro(struct jinja_value *out, struct jinja_run *r, const struct jinja_scope *scope,
                      const struct jinja_node *n)
{
    struct jinja_macro *macro;
    TRY(jinja_take(&macro, r, 1, sizeof *macro));
    *macro = (struct jinja_macro){n, scope};
    *out = (struct jinja_value){.kind = JINJA_MACRO, .macro = macro};
    return ERR_NONE;
}

/* A macro sees the variables around its definition, with the values they have when it runs. */
static err run_macro(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value macro;
    TRY(make_macro(&macro, r, scope, n));
    return jinja_bind(r, scope, n->name, &macro);
}

/* The block becomes the macro `caller` of the macro that is called. */
static err run_call_block(struct jinja_run *r, struct jinja_scope *scope,
                          const struct jinja_node *n)
{
    struct jinja_value function, caller, text;
    struct jinja_call call;
    TRY(jinja_eval(&function, r, scope, n->b->a));
    TRY(jinja_eval_arguments(&call, r, scope, n->b->b));
    TRY(make_macro(&caller, r, scope, n));
    r->line = n->line;
    if (function.kind != JINJA_MACRO) return jinja_fail(r, "{%% call %%} needs a macro");
    if (call.count == JINJA_ARGUMENTS) return jinja_fail(r, "{%% call %%}: too many arguments");
    call.what = "call";
    call.argument[call.count++] = (struct jinja_argument){name_of(r, "caller"), caller};
    TRY(jinja_call_macro(&text, r, function.macro, &call));
    return jinja_print(r, &text);
}

/* Inside a macro or a captured block the place in the final text is not known yet. */
static err run_generation(struct jinja_run *r, struct jinja_scope *scope,
                          const struct jinja_node *n)
{
    struct jinja_scope *inside;
    size_t begin = r->out->size;
    if (r->spans && r->captures > 0)
        return jinja_fail(r, "{%% generation %%} inside a macro, a call or a block that is "
                             "captured is not supported");
    TRY(new_scope(&inside, r, scope));
    TRY(jinja_run_body(r, inside, n->body));
    return r->spans ? jinja_spans_add(r->spans, begin, r->out->size) : ERR_NONE;
}

static err run_print(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    struct jinja_value value;
    TRY(jinja_eval(&value, r, scope, n->a));
    r->line = n->line;
    return jinja_print(r, &value);
}

static err run_statement(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *n)
{
    TRY(jinja_step(r, 1));
    r->line = n->line;
    switch ((enum jinja_node_kind)n->kind) {
    case NODE_DATA:
        return jinja_say(r, n->value.text.data, n->value.text.size);
    case NODE_PRINT:
        return run_print(r, scope, n);
    case NODE_FOR:
        return run_for(r, scope, n);
    case NODE_IF:
        return run_if(r, scope, n);
    case NODE_SET:
        return run_set(r, scope, n);
    case NODE_SET_BLOCK:
        return run_set_block(r, scope, n);
    case NODE_MACRO:
        return run_macro(r, scope, n);
    case NODE_CALL_BLOCK:
        return run_call_block(r, scope, n);
    case NODE_FILTER_BLOCK:
        return run_filter_block(r, scope, n);
    case NODE_WITH:
        return run_with(r, scope, n);
    case NODE_GENERATION:
        return run_generation(r, scope, n);
    case NODE_BREAK:
        r->flow = FLOW_BREAK;
        break;
    case NODE_CONTINUE:
        r->flow = FLOW_CONTINUE;
        break;
    default:
        REQUIRE(false);
    }
    return ERR_NONE;
}

/* Stops at break and continue, which the loop around it handles. */
err jinja_run_body(struct jinja_run *r, struct jinja_scope *scope, const struct jinja_node *body)
{
    TRY(jinja_enter(r));
    for (; body && r->flow == FLOW_NEXT; body = body->next)
        TRY(run_statement(r, scope, body));
    r->depth--;
    return ERR_NONE;
}

/* ---- the whole template ---- */

/* Variables and functions that the template mentions. Only these are converted from JSON. */
static err bind_globals(struct jinja_run *r, struct jinja_scope *scope, const json_t *variables)
{
    for (uint32_t i = 0; i < r->program->names; i++) {
        const struct jinja_name *name = &r->program->name[i];
        if (name->uses == 0) continue;
        const json_t *json = json_object_get(variables, name->text);
        const struct jinja_function *function = jinja_function_find(name->text);
        struct jinja_value value = {.kind = JINJA_FUNCTION, .function = function};
        if (json)
            TRY(jinja_import(&value, r, json));
        else if (!function)
            continue;
        TRY(jinja_bind(r, scope, i, &value));
    }
    return ERR_NONE;
}

err jinja_render(struct bytes *out, struct jinja_spans *spans, const struct jinja *j,
                 const json_t *variables, const struct jinja_options *options)
{
    struct jinja_run r = {.program = j,
                          .out = out,
                          .spans = spans,
                          .own_steps = LIMIT_TEMPLATE_STEPS,
                          .now = options->now};
    size_t size = out->size, had = spans ? spans->count : 0;
    struct jinja_scope globals = {0}, top = {.parent = &globals};
    r.steps = options->steps_left ? options->steps_left : &r.own_steps;
    err e = bytes_append(out, "", 0); /* so that out->data is not NULL */
    if (!err_is(e)) e = bind_globals(&r, &globals, variables);
    if (!err_is(e)) e = jinja_run_body(&r, &top, j->body);
    jinja_free(&r);
    if (!err_is(e)) return e;
    out->size = size;
    if (spans) spans->count = had;
    return e;
}

void jinja_spans_close(struct jinja_spans *spans)
{
    free(spans->span);
    *spans = (struct jinja_spans){0};
}

/* Not in the memory of a rendering, because the caller keeps the spans after it. */
err jinja_spans_add(struct jinja_spans *spans, size_t begin, size_t end)
{
    TRY(list_grow(&spans->span, &spans->capacity, spans->count + 1, sizeof *spans->span));
    spans->span[spans->count++] = (struct jinja_span){begin, end};
    return ERR_NONE;
}
