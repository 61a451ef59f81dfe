/* Parses the statements of a template. Expressions are in jinja_expression.c.
 *
 * A statement of jinja2 that a chat template has no use for (include, block, import, ...) is
 * refused by name. */
#include "engine/tokens/jinja_read.h"

#include "base/limits.h"
#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tokens ---- */

bool jinja_at_op(const struct jinja_reading *p, const char *op)
{
    const struct jinja_token *t = p->at;
    return t->kind == TOKEN_OP && t->value.text.size == strlen(op) &&
           memcmp(t->value.text.data, op, t->value.text.size) == 0;
}

bool jinja_at_name(const struct jinja_reading *p, const char *name)
{
    const struct jinja_token *t = p->at;
    return t->kind == TOKEN_NAME && t->value.text.size == strlen(name) &&
           memcmp(t->value.text.data, name, t->value.text.size) == 0;
}

bool jinja_accept_op(struct jinja_reading *p, const char *op)
{
    if (!jinja_at_op(p, op)) return false;
    p->at = p->at->next;
    return true;
}

bool jinja_accept_name(struct jinja_reading *p, const char *name)
{
    if (!jinja_at_name(p, name)) return false;
    p->at = p->at->next;
    return true;
}

err jinja_unexpected(const struct jinja_reading *p, const char *expected)
{
    const struct jinja_token *t = p->at;
    bool shown = t->kind == TOKEN_NAME || t->kind == TOKEN_OP || t->kind == TOKEN_TEXT;
    int size = shown && t->value.text.size < 60 ? (int)t->value.text.size : 0;
    const char *what = t->kind == TOKEN_END     ? "the end of the template"
                       : t->kind == TOKEN_INT   ? "a number"
                       : t->kind == TOKEN_FLOAT ? "a number"
                       : t->kind == TOKEN_TEXT  ? "a string"
                       : size > 0               ? ""
                                                : "the end of the tag";
    return err_make(ERR_INPUT, "line %u: found %s%s%.*s%s, expected %s", t->line, what,
                    size > 0 ? "\"" : "", size, size > 0 ? t->value.text.data : "",
                    size > 0 ? "\"" : "", expected);
}

err jinja_expect_op(struct jinja_reading *p, const char *op)
{
    return jinja_accept_op(p, op) ? ERR_NONE : jinja_unexpected(p, op);
}

/* ---- the tree ---- */

err jinja_node_make(struct jinja_node **out, struct jinja_reading *p, enum jinja_node_kind kind)
{
    struct jinja_node *n;
    TRY(arena_take(&n, &p->j->arena, 1, sizeof *n));
    n->kind = (uint8_t)kind;
    n->line = p->at->line;
    n->depth = 1;
    *out = n;
    return ERR_NONE;
}

/* The depth of a tree is bounded, because the interpreter visits it by recursion. */
err jinja_node_over(struct jinja_node *n, const struct jinja_node *child)
{
    if (!child || child->depth < n->depth) return ERR_NONE;
    n->depth = (uint16_t)(child->depth + 1);
    return n->depth <= LIMIT_TEMPLATE_DEPTH ? ERR_NONE
                                            : err_make(ERR_INPUT, "line %u: nested deeper than %d",
                                                       n->line, LIMIT_TEMPLATE_DEPTH);
}

/* Names become numbers, so that a running template compares no texts to find a variable. A linear
 * search is enough for LIMIT_TEMPLATE_NAMES, because each token is looked up once. */
err jinja_intern(uint32_t *out, struct jinja_reading *p, const char *text, size_t size)
{
    struct jinja *j = p->j;
    for (uint32_t i = 0; i < j->names; i++)
        if (j->name[i].size == size && memcmp(j->name[i].text, text, size) == 0) {
            *out = i;
            return ERR_NONE;
        }
    if (j->names == LIMIT_TEMPLATE_NAMES)
        return err_make(ERR_INPUT, "line %u: more than %d names", p->at->line,
                        LIMIT_TEMPLATE_NAMES);
    if (j->names == j->name_capacity) {
        uint32_t capacity = j->name_capacity ? 2 * j->name_capacity : 64;
        struct jinja_name *grown;
        TRY(arena_take(&grown, &j->arena, capacity, sizeof *grown));
        if (j->names) memcpy(grown, j->name, j->names * sizeof *grown);
        j->name = grown;
        j->name_capacity = capacity;
    }
    struct jinja_name *name = &j->name[j->names];
    *name = (struct jinja_name){.size = size};
    TRY(arena_text(&name->text, &j->arena, text, size));
    *out = j->names++;
    return ERR_NONE;
}

err jinja_take_name(uint32_t *out, struct jinja_reading *p, const char *expected)
{
    if (p->at->kind != TOKEN_NAME) return jinja_unexpected(p, expected);
    TRY(jinja_intern(out, p, p->at->value.text.data, p->at->value.text.size));
    p->at = p->at->next;
    return ERR_NONE;
}

/* ---- targets of assignments ---- */

static err read_target_part(struct jinja_node **out, struct jinja_reading *p, bool member);

/* "a", "a, b" or "(a, b)". `end`: the name behind a list without parentheses, or NULL. */
static err read_target(struct jinja_node **out, struct jinja_reading *p, bool member,
                       const char *end)
{
    struct jinja_node *first, **link, *tuple;
    TRY(read_target_part(&first, p, member));
    if (!jinja_at_op(p, ",")) {
        *out = first;
        return ERR_NONE;
    }
    TRY(jinja_node_make(&tuple, p, NODE_TUPLE));
    tuple->a = first;
    TRY(jinja_node_over(tuple, first));
    link = &first->next;
    while (jinja_accept_op(p, ",")) {
        if (jinja_at_op(p, ")") || jinja_at_op(p, "=") || (end && jinja_at_name(p, end))) break;
        TRY(read_target_part(link, p, member));
        TRY(jinja_node_over(tuple, *link));
        link = &(*link)->next;
    }
    *out = tuple;
    return ERR_NONE;
}

static err read_target_part(struct jinja_node **out, struct jinja_reading *p, bool member)
{
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    struct jinja_node *n;
    if (jinja_accept_op(p, "(")) {
        if (++p->depth > LIMIT_TEMPLATE_DEPTH) return jinja_unexpected(p, "less nesting");
        TRY(read_target(out, p, member, NULL));
        p->depth--;
        return jinja_expect_op(p, ")");
    }
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (jinja_at_name(p, constants[i])) return jinja_unexpected(p, "a variable");
    TRY(jinja_node_make(&n, p, NODE_NAME));
    TRY(jinja_take_name(&n->name, p, "a variable"));
    p->j->name[n->name].stored = true;
    if (member && jinja_accept_op(p, ".")) {
        n->kind = NODE_MEMBER;
        uint32_t name;
        TRY(jinja_take_name(&name, p, "a member"));
        n->value = jinja_text(p->j->name[name].text, p->j->name[name].size);
    }
    *out = n;
    return ERR_NONE;
}

/* ---- statements ---- */

static err read_body(struct jinja_node **out, struct jinja_reading *p, struct jinja_node *owner,
                     const char *const *ends);

static err end_tag(struct jinja_reading *p)
{
    if (p->at->kind != TOKEN_BLOCK_END) return jinja_unexpected(p, "%}");
    p->at = p->at->next;
    return ERR_NONE;
}

/* The body of a statement up to its end tag, which is read too. */
static err read_rest(struct jinja_reading *p, struct jinja_node *owner, const char *end)
{
    const char *const ends[] = {end, NULL};
    jinja_accept_op(p, ":");
    TRY(end_tag(p));
    TRY(read_body(&owner->body, p, owner, ends));
    p->at = p->at->next;
    return ERR_NONE;
}

/* A body uses a name if this count grows while the body is read. */
static uint32_t uses_of(const struct jinja_reading *p, uint32_t name)
{
    return p->j->name[name].uses;
}

static err read_for(struct jinja_node *n, struct jinja_reading *p)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    uint32_t loop;
    TRY(read_target(&n->a, p, false, "in"));
    if (!jinja_accept_name(p, "in")) return jinja_unexpected(p, "in");
    TRY(jinja_read_tuple(&n->b, p, /*choice*/ false, "recursive"));
    TRY(jinja_node_over(n, n->b));
    if (jinja_accept_name(p, "if")) {
        TRY(jinja_read_expression(&n->c, p));
        TRY(jinja_node_over(n, n->c));
    }
    if (jinja_at_name(p, "recursive"))
        return err_make(ERR_INPUT, "line %u: \"recursive\" loops are not supported", n->line);
    TRY(jinja_intern(&loop, p, "loop", 4));
    uint32_t before = uses_of(p, loop);
    jinja_accept_op(p, ":");
    TRY(end_tag(p));
    p->loops++;
    TRY(read_body(&n->body, p, n, ends));
    p->loops--;
    n->uses = uses_of(p, loop) > before;
    if (jinja_accept_name(p, "else")) {
        jinja_accept_op(p, ":");
        TRY(end_tag(p));
        TRY(read_body(&n->other, p, n, last));
    }
    p->at = p->at->next;
    return ERR_NONE;
}

/* An elif is an if inside of `other`. They are chained in a loop, so that a long chain needs no
 * deep stack. */
static err read_if(struct jinja_node *n, struct jinja_reading *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif",
                                                                                        NULL};
    for (struct jinja_node *at = n;;) {
        TRY(jinja_read_tuple(&at->a, p, /*choice*/ false, NULL));
        TRY(jinja_node_over(at, at->a));
        jinja_accept_op(p, ":");
        TRY(end_tag(p));
        TRY(read_body(&at->body, p, at, ends));
        if (at->depth > n->depth) n->depth = at->depth;
        if (jinja_accept_name(p, "elif")) {
            TRY(jinja_node_make(&at->other, p, NODE_IF));
            at = at->other;
            continue;
        }
        if (jinja_accept_name(p, "else")) {
            jinja_accept_op(p, ":");
            TRY(end_tag(p));
            TRY(read_body(&at->other, p, n, last));
        }
        p->at = p->at->next;
        return ERR_NONE;
    }
}

/* Without "=" the value is the text up to {% endset %}, through filters if some are given. */
static err read_set(struct jinja_node *n, struct jinja_reading *p)
{
    TRY(read_target(&n->a, p, true, NULL));
    if (jinja_accept_op(p, "=")) {
        TRY(jinja_read_tuple(&n->b, p, /*choice*/ true, NULL));
        return jinja_node_over(n, n->b);
    }
    n->kind = NODE_SET_BLOCK;
    if (jinja_at_op(p, "|")) TRY(jinja_read_filters(&n->b, p, NULL, /*inside*/ false));
    TRY(jinja_node_over(n, n->b));
    return read_rest(p, n, "endset");
}

/* (a, b=1) */
static err read_parameters(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node **link = out;
    bool defaults = false;
    TRY(jinja_expect_op(p, "("));
    while (!jinja_accept_op(p, ")")) {
        if (link != out) TRY(jinja_expect_op(p, ","));
        struct jinja_node *one;
        TRY(jinja_node_make(&one, p, NODE_PARAMETER));
        TRY(jinja_take_name(&one->name, p, "a parameter"));
        p->j->name[one->name].stored = true;
        if (jinja_accept_op(p, "=")) {
            TRY(jinja_read_expression(&one->a, p));
            defaults = true;
        } else if (defaults) {
            return jinja_unexpected(p, "a default value, because an earlier parameter has one");
        }
        *link = one;
        link = &one->next;
    }
    return ERR_NONE;
}

/* The body of a macro cannot break a loop around it. */
static err read_function(struct jinja_reading *p, struct jinja_node *n, const char *end)
{
    uint32_t caller, loops = p->loops;
    TRY(jinja_intern(&caller, p, "caller", 6));
    uint32_t before = uses_of(p, caller);
    p->loops = 0;
    TRY(read_rest(p, n, end));
    p->loops = loops;
    n->uses = uses_of(p, caller) > before;
    return ERR_NONE;
}

static err read_macro(struct jinja_node *n, struct jinja_reading *p)
{
    TRY(jinja_take_name(&n->name, p, "the name of the macro"));
    p->j->name[n->name].stored = true;
    TRY(read_parameters(&n->a, p));
    return read_function(p, n, "endmacro");
}

static err read_call(struct jinja_node *n, struct jinja_reading *p)
{
    if (jinja_at_op(p, "(")) TRY(read_parameters(&n->a, p));
    TRY(jinja_read_expression(&n->b, p));
    if (n->b->kind != NODE_CALL) return jinja_unexpected(p, "a call of a macro");
    TRY(jinja_node_over(n, n->b));
    return read_function(p, n, "endcall");
}

static err read_filter_block(struct jinja_node *n, struct jinja_reading *p)
{
    TRY(jinja_read_filters(&n->b, p, NULL, /*inside*/ true));
    return read_rest(p, n, "endfilter");
}

/* Targets and values are two lists of the same length. */
static err read_with(struct jinja_node *n, struct jinja_reading *p)
{
    struct jinja_node **target = &n->a, **value = &n->b;
    while (p->at->kind != TOKEN_BLOCK_END && !jinja_at_op(p, ":")) {
        if (n->a) TRY(jinja_expect_op(p, ","));
        TRY(read_target_part(target, p, false));
        TRY(jinja_expect_op(p, "="));
        TRY(jinja_read_expression(value, p));
        TRY(jinja_node_over(n, *value));
        target = &(*target)->next;
        value = &(*value)->next;
    }
    return read_rest(p, n, "endwith");
}

/* The flag decides how learned text is found, also if the tag is in a branch that never runs. */
static err read_generation(struct jinja_node *n, struct jinja_reading *p)
{
    p->j->generation = true;
    return read_rest(p, n, "endgeneration");
}

static err read_jump(struct jinja_node *n, struct jinja_reading *p)
{
    if (p->loops == 0)
        return err_make(ERR_INPUT, "line %u: \"%s\" outside of a loop", n->line,
                        n->kind == NODE_BREAK ? "break" : "continue");
    return ERR_NONE;
}

static const struct statement {
    const char *name;
    enum jinja_node_kind kind;
    err (*read)(struct jinja_node *n, struct jinja_reading *p);
} statements[] = {
    {"for", NODE_FOR, read_for},          {"if", NODE_IF, read_if},
    {"set", NODE_SET, read_set},          {"macro", NODE_MACRO, read_macro},
    {"call", NODE_CALL_BLOCK, read_call}, {"filter", NODE_FILTER_BLOCK, read_filter_block},
    {"with", NODE_WITH, read_with},       {"generation", NODE_GENERATION, read_generation},
    {"break", NODE_BREAK, read_jump},     {"continue", NODE_CONTINUE, read_jump},
};

static err read_statement(struct jinja_node **out, struct jinja_reading *p)
{
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (!jinja_accept_name(p, statements[i].name)) continue;
        TRY(jinja_node_make(out, p, statements[i].kind));
        return statements[i].read(*out, p);
    }
    if (p->at->kind != TOKEN_NAME) return jinja_unexpected(p, "a statement");
    return err_make(ERR_INPUT, "line %u: the statement \"%.*s\" is not supported here", p->at->line,
                    (int)(p->at->value.text.size < 40 ? p->at->value.text.size : 40),
                    p->at->value.text.data);
}

static bool at_any(const struct jinja_reading *p, const char *const *names)
{
    for (; *names; names++)
        if (jinja_at_name(p, *names)) return true;
    return false;
}

/* Names the line where the statement starts, because the end of the template is no help. */
static err missing_end(const struct jinja_reading *p, const struct jinja_node *owner,
                       const char *const *ends)
{
    const char *const *last = ends;
    while (last[1] && strncmp(*last, "end", 3) != 0)
        last++;
    return err_make(ERR_INPUT, "line %u: a statement has no end: expected {%% %s %%}",
                    owner ? owner->line : p->at->line, *last);
}

/* Text and statements up to a tag with one of the names in `ends`, whose name is then the current
 * token; without `ends` up to the end of the template. */
static err read_body(struct jinja_node **out, struct jinja_reading *p, struct jinja_node *owner,
                     const char *const *ends)
{
    struct jinja_node **link = out;
    if (++p->depth > LIMIT_TEMPLATE_DEPTH) return jinja_unexpected(p, "less nesting");
    for (;;) {
        struct jinja_node *n = NULL;
        enum jinja_token_kind kind = p->at->kind;
        if (kind == TOKEN_END) {
            if (ends) return missing_end(p, owner, ends);
            break;
        }
        if (kind == TOKEN_DATA) {
            TRY(jinja_node_make(&n, p, NODE_DATA));
            n->value = p->at->value;
            p->at = p->at->next;
        } else if (kind == TOKEN_PRINT_BEGIN) {
            p->at = p->at->next;
            TRY(jinja_node_make(&n, p, NODE_PRINT));
            TRY(jinja_read_tuple(&n->a, p, /*choice*/ true, NULL));
            TRY(jinja_node_over(n, n->a));
            if (p->at->kind != TOKEN_PRINT_END) return jinja_unexpected(p, "}}");
            p->at = p->at->next;
        } else {
            p->at = p->at->next;
            if (ends && at_any(p, ends)) break;
            TRY(read_statement(&n, p));
            /* The end tag of a statement with a body is already read up to its "%}". */
            TRY(end_tag(p));
        }
        if (owner) TRY(jinja_node_over(owner, n));
        *link = n;
        link = &n->next;
    }
    p->depth--;
    return ERR_NONE;
}

err jinja_open(struct jinja **out, const char *text, size_t size)
{
    struct arena tokens = {0};
    if (size > LIMIT_TEMPLATE_BYTES)
        return err_make(ERR_INPUT, "the template has %zu bytes, at most %d are supported", size,
                        LIMIT_TEMPLATE_BYTES);
    if (!text_is_utf8(text, size)) return err_make(ERR_INPUT, "the template is not UTF-8");
    struct jinja *j = calloc(1, sizeof *j);
    if (!j) return err_make(ERR_MACHINE, "no memory for a chat template");
    struct jinja_reading p = {.j = j};
    struct jinja_token *first = NULL;
    err e;
    TRY_OUT(e, jinja_lex(&first, &tokens, &j->arena, text, size));
    p.at = first;
    TRY_OUT(e, read_body(&j->body, &p, NULL, NULL));
    *out = j;
    j = NULL;
out:
    arena_close(&tokens);
    jinja_close(j);
    return e;
}

void jinja_close(struct jinja *j)
{
    if (!j) return;
    arena_close(&j->arena);
    free(j);
}

bool jinja_has_generation(const struct jinja *j)
{
    return j->generation;
}

bool jinja_mentions(const struct jinja *j, const char *name)
{
    for (uint32_t i = 0; i < j->names; i++)
        if (strcmp(j->name[i].text, name) == 0) return true;
    return false;
}
