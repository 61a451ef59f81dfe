/* Parses the expressions of a template, with the precedence of jinja2's parser. */
#include "base/limits.h"
#include "engine/tokens/jinja_read.h"

#include <string.h>

/* Makes `out` the parent of up to two children. */
static err join(struct jinja_node **out, struct jinja_reading *p, enum jinja_node_kind kind,
                struct jinja_node *a, struct jinja_node *b)
{
    struct jinja_node *n;
    TRY(jinja_node_make(&n, p, kind));
    n->a = a;
    n->b = b;
    TRY(jinja_node_over(n, a));
    TRY(jinja_node_over(n, b));
    *out = n;
    return ERR_NONE;
}

/* ---- primary expressions ---- */

/* A text that may be the name of a member is interned, for jinja_mentions(). */
static err read_text(struct jinja_node *n, struct jinja_reading *p)
{
    const struct jinja_token *t = p->at;
    uint32_t name;
    size_t size = 0, used = 0;
    n->value = t->value;
    if (t->value.text.size > 0 && t->value.text.size <= 64)
        TRY(jinja_intern(&name, p, t->value.text.data, t->value.text.size));
    p->at = t->next;
    if (p->at->kind != TOKEN_TEXT) return ERR_NONE;
    for (const struct jinja_token *one = t; one->kind == TOKEN_TEXT; one = one->next)
        size += one->value.text.size;
    char *text;
    TRY(arena_take(&text, &p->j->arena, size + 1, 1));
    for (p->at = t; p->at->kind == TOKEN_TEXT; p->at = p->at->next) {
        memcpy(text + used, p->at->value.text.data, p->at->value.text.size);
        used += p->at->value.text.size;
    }
    n->value = jinja_text(text, size);
    return ERR_NONE;
}

/* Items up to the closing bracket; for a dict keys and values in turn. */
static err read_items(struct jinja_node *n, struct jinja_reading *p, const char *close, bool pairs)
{
    struct jinja_node **link = &n->a;
    while (!jinja_accept_op(p, close)) {
        if (n->a) {
            TRY(jinja_expect_op(p, ","));
            if (jinja_accept_op(p, close)) break;
        }
        for (int part = 0; part <= pairs; part++) {
            if (part) TRY(jinja_expect_op(p, ":"));
            TRY(jinja_read_expression(link, p));
            TRY(jinja_node_over(n, *link));
            link = &(*link)->next;
        }
    }
    return ERR_NONE;
}

static err read_name(struct jinja_node *n, struct jinja_reading *p)
{
    static const struct {
        const char *name;
        enum jinja_kind kind;
        bool truth;
    } constants[] = {{"true", JINJA_BOOL, true},   {"True", JINJA_BOOL, true},
                     {"false", JINJA_BOOL, false}, {"False", JINJA_BOOL, false},
                     {"none", JINJA_NONE, false},  {"None", JINJA_NONE, false}};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (!jinja_accept_name(p, constants[i].name)) continue;
        n->kind = NODE_CONST;
        n->value.kind = (uint8_t)constants[i].kind;
        n->value.truth = constants[i].truth;
        return ERR_NONE;
    }
    n->kind = NODE_NAME;
    if (jinja_at_name(p, "varargs") || jinja_at_name(p, "kwargs") || jinja_at_name(p, "self"))
        return err_make(ERR_INPUT, "line %u: \"%.*s\" is not supported", p->at->line,
                        (int)p->at->value.text.size, p->at->value.text.data);
    TRY(jinja_take_name(&n->name, p, "a name"));
    p->j->name[n->name].uses++;
    return ERR_NONE;
}

static err read_primary(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *n;
    TRY(jinja_node_make(&n, p, NODE_CONST));
    enum jinja_token_kind kind = p->at->kind;
    if (jinja_accept_op(p, "(")) {
        if (jinja_accept_op(p, ")")) {
            n->kind = NODE_TUPLE;
        } else {
            TRY(jinja_read_tuple(&n, p, /*choice*/ true, NULL));
            TRY(jinja_expect_op(p, ")"));
        }
    } else if (jinja_accept_op(p, "[")) {
        n->kind = NODE_LIST;
        TRY(read_items(n, p, "]", false));
    } else if (jinja_accept_op(p, "{")) {
        n->kind = NODE_DICT;
        TRY(read_items(n, p, "}", true));
    } else if (kind == TOKEN_NAME) {
        TRY(read_name(n, p));
    } else if (kind == TOKEN_TEXT) {
        TRY(read_text(n, p));
    } else if (kind == TOKEN_INT || kind == TOKEN_FLOAT) {
        n->value = p->at->value;
        p->at = p->at->next;
    } else {
        return jinja_unexpected(p, "an expression");
    }
    *out = n;
    return ERR_NONE;
}

/* ---- calls and members ---- */

/* (a, b, name=c) into a list in which arguments with a name are NODE_KEYWORD. */
static err read_arguments(struct jinja_node *owner, struct jinja_reading *p)
{
    struct jinja_node **link = &owner->b;
    bool named = false;
    size_t count = 0;
    TRY(jinja_expect_op(p, "("));
    while (!jinja_accept_op(p, ")")) {
        if (owner->b) {
            TRY(jinja_expect_op(p, ","));
            if (jinja_accept_op(p, ")")) break;
        }
        if (jinja_at_op(p, "*") || jinja_at_op(p, "**"))
            return err_make(ERR_INPUT, "line %u: arguments with * are not supported", p->at->line);
        if (++count > JINJA_ARGUMENTS)
            return err_make(ERR_INPUT, "line %u: more than %d arguments", p->at->line,
                            JINJA_ARGUMENTS);
        const struct jinja_token *next = p->at->next;
        if (p->at->kind == TOKEN_NAME && next->kind == TOKEN_OP && next->value.text.size == 1 &&
            *next->value.text.data == '=') {
            struct jinja_node *word;
            named = true;
            TRY(jinja_node_make(&word, p, NODE_KEYWORD));
            TRY(jinja_take_name(&word->name, p, "a name"));
            p->at = p->at->next;
            TRY(jinja_read_expression(&word->a, p));
            TRY(jinja_node_over(word, word->a));
            *link = word;
        } else if (named) {
            return jinja_unexpected(p, "an argument with a name, because an earlier one has one");
        } else {
            TRY(jinja_read_expression(link, p));
        }
        TRY(jinja_node_over(owner, *link));
        link = &(*link)->next;
    }
    return ERR_NONE;
}

/* Whether the slice continues with a bound. */
static bool at_bound(const struct jinja_reading *p)
{
    return !jinja_at_op(p, ":") && !jinja_at_op(p, "]") && !jinja_at_op(p, ",");
}

/* [key] or [start:stop:step], behind the "[". */
static err read_subscript(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *first = NULL, *slice;
    if (!jinja_at_op(p, ":")) TRY(jinja_read_expression(&first, p));
    if (jinja_accept_op(p, ":")) {
        TRY(join(&slice, p, NODE_SLICE, first, NULL));
        if (at_bound(p)) TRY(jinja_read_expression(&slice->b, p));
        if (jinja_accept_op(p, ":") && at_bound(p)) TRY(jinja_read_expression(&slice->c, p));
        TRY(jinja_node_over(slice, slice->b));
        TRY(jinja_node_over(slice, slice->c));
        first = slice;
    }
    *out = first;
    if (jinja_at_op(p, ",")) return jinja_unexpected(p, "one key only");
    return jinja_expect_op(p, "]");
}

static err read_member(struct jinja_node **n, struct jinja_reading *p)
{
    struct jinja_node *key;
    if (p->at->kind == TOKEN_INT) {
        TRY(jinja_node_make(&key, p, NODE_CONST));
        key->value = p->at->value;
        p->at = p->at->next;
        return join(n, p, NODE_ITEM, *n, key);
    }
    TRY(join(n, p, NODE_ATTRIBUTE, *n, NULL));
    TRY(jinja_take_name(&(*n)->name, p, "the name of a member"));
    const struct jinja_name *name = &p->j->name[(*n)->name];
    for (uint8_t kind = 0; kind <= JINJA_METHOD && !(*n)->uses; kind++)
        (*n)->uses = jinja_method_find(name->text, name->size, kind) != NULL;
    return ERR_NONE;
}

/* Arguments are a list in `b`, as those of filters and tests. */
static err read_call(struct jinja_node **n, struct jinja_reading *p)
{
    TRY(join(n, p, NODE_CALL, *n, NULL));
    return read_arguments(*n, p);
}

/* Members, keys and calls bind closer than any operator. */
static err read_postfix(struct jinja_node **n, struct jinja_reading *p)
{
    for (;;) {
        if (jinja_accept_op(p, ".")) {
            TRY(read_member(n, p));
        } else if (jinja_accept_op(p, "[")) {
            struct jinja_node *key;
            TRY(read_subscript(&key, p));
            TRY(join(n, p, NODE_ITEM, *n, key));
        } else if (jinja_at_op(p, "(")) {
            TRY(read_call(n, p));
        } else {
            return ERR_NONE;
        }
    }
}

/* ---- filters and tests ---- */

/* A dotted name is none of ours, and neither is any of jinja2's. */
static err read_filter(struct jinja_node **n, struct jinja_reading *p)
{
    struct jinja_node *filter;
    TRY(join(&filter, p, NODE_FILTER, *n, NULL));
    TRY(jinja_take_name(&filter->name, p, "the name of a filter"));
    filter->row = jinja_filter_find(p->j->name[filter->name].text);
    if (!filter->row)
        return err_make(ERR_INPUT, "line %u: there is no filter \"%.60s\"", filter->line,
                        p->j->name[filter->name].text);
    if (jinja_at_op(p, "(")) TRY(read_arguments(filter, p));
    *n = filter;
    return ERR_NONE;
}

err jinja_read_filters(struct jinja_node **out, struct jinja_reading *p, struct jinja_node *value,
                       bool inside)
{
    while (inside || jinja_accept_op(p, "|")) {
        inside = false;
        TRY(read_filter(&value, p));
    }
    *out = value;
    return ERR_NONE;
}

/* "is not in [1, 2]": a test takes one argument without parentheses, unless a word follows that
 * continues the expression. */
static err read_test(struct jinja_node **n, struct jinja_reading *p)
{
    struct jinja_node *test;
    bool negative = jinja_accept_name(p, "not");
    TRY(join(&test, p, NODE_TEST, *n, NULL));
    TRY(jinja_take_name(&test->name, p, "the name of a test"));
    test->row = jinja_test_find(p->j->name[test->name].text);
    if (!test->row)
        return err_make(ERR_INPUT, "line %u: there is no test \"%.60s\"", test->line,
                        p->j->name[test->name].text);
    enum jinja_token_kind kind = p->at->kind;
    bool value = kind == TOKEN_TEXT || kind == TOKEN_INT || kind == TOKEN_FLOAT ||
                 jinja_at_op(p, "[") || jinja_at_op(p, "{");
    bool word = kind == TOKEN_NAME && !jinja_at_name(p, "else") && !jinja_at_name(p, "or") &&
                !jinja_at_name(p, "and");
    if (jinja_at_op(p, "(")) {
        TRY(read_arguments(test, p));
    } else if (value || word) {
        if (jinja_at_name(p, "is")) return jinja_unexpected(p, "no second \"is\"");
        TRY(read_primary(&test->b, p));
        TRY(read_postfix(&test->b, p));
        TRY(jinja_node_over(test, test->b));
    }
    *n = test;
    return negative ? join(n, p, NODE_NOT, test, NULL) : ERR_NONE;
}

/* ---- operators ---- */

/* A sign binds closer than a filter: -1|abs is (-1)|abs. */
static err read_unary(struct jinja_node **out, struct jinja_reading *p, bool filters)
{
    struct jinja_node *n = NULL;
    bool minus = jinja_accept_op(p, "-"), plus = !minus && jinja_accept_op(p, "+");
    if (++p->depth > LIMIT_TEMPLATE_DEPTH) return jinja_unexpected(p, "less nesting");
    if (minus || plus) {
        TRY(read_unary(&n, p, false));
        TRY(join(&n, p, minus ? NODE_NEGATIVE : NODE_POSITIVE, n, NULL));
    } else {
        TRY(read_primary(&n, p));
    }
    TRY(read_postfix(&n, p));
    while (filters) {
        if (jinja_at_op(p, "|"))
            TRY(jinja_read_filters(&n, p, n, false));
        else if (jinja_accept_name(p, "is"))
            TRY(read_test(&n, p));
        else if (jinja_at_op(p, "("))
            TRY(read_call(&n, p));
        else
            break;
    }
    p->depth--;
    *out = n;
    return ERR_NONE;
}

/* Levels from the loosest: + -, ~, * / // %, **. All of them group from the left, as in jinja2. */
enum { LEVEL_SUM, LEVEL_CONCAT, LEVEL_PRODUCT, LEVEL_POWER, LEVEL_UNARY };
static const struct {
    const char *text;
    int level;
    enum jinja_op op;
} arithmetic[] = {
    {"+", LEVEL_SUM, OP_ADD},     {"-", LEVEL_SUM, OP_SUB},     {"~", LEVEL_CONCAT, OP_ADD},
    {"*", LEVEL_PRODUCT, OP_MUL}, {"/", LEVEL_PRODUCT, OP_DIV}, {"//", LEVEL_PRODUCT, OP_FLOORDIV},
    {"%", LEVEL_PRODUCT, OP_MOD}, {"**", LEVEL_POWER, OP_POW},
};

static err read_arithmetic(struct jinja_node **out, struct jinja_reading *p, int level)
{
    struct jinja_node *left, *right, **link = NULL;
    if (level == LEVEL_UNARY) return read_unary(out, p, true);
    TRY(read_arithmetic(&left, p, level + 1));
    for (size_t i = 0; i < sizeof arithmetic / sizeof *arithmetic;) {
        if (arithmetic[i].level != level || !jinja_accept_op(p, arithmetic[i].text)) {
            i++;
            continue;
        }
        TRY(read_arithmetic(&right, p, level + 1));
        if (level == LEVEL_CONCAT && link) { /* a ~ b ~ c is one node */
            *link = right;
            TRY(jinja_node_over(left, right));
        } else if (level == LEVEL_CONCAT) {
            struct jinja_node *first = left;
            first->next = right;
            TRY(join(&left, p, NODE_CONCAT, first, NULL));
            TRY(jinja_node_over(left, right));
        } else {
            TRY(join(&left, p, NODE_BINARY, left, right));
            left->op = (uint8_t)arithmetic[i].op;
        }
        link = &right->next;
        i = 0;
    }
    *out = left;
    return ERR_NONE;
}

/* Whether a comparison follows; its operator is read. */
static bool accept_comparison(enum jinja_op *out, struct jinja_reading *p)
{
    static const struct {
        const char *text;
        enum jinja_op op;
    } ops[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE},
               {">=", OP_GE}, {"<", OP_LT},  {">", OP_GT}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (jinja_accept_op(p, ops[i].text)) return *out = ops[i].op, true;
    if (jinja_accept_name(p, "in")) return *out = OP_IN, true;
    const struct jinja_token *next = p->at->next;
    if (!jinja_at_name(p, "not") || next->kind != TOKEN_NAME || next->value.text.size != 2 ||
        memcmp(next->value.text.data, "in", 2) != 0)
        return false;
    p->at = next->next;
    return *out = OP_NOT_IN, true;
}

static err read_comparison(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *n, *operand, **link = NULL;
    enum jinja_op op;
    TRY(read_arithmetic(&n, p, LEVEL_SUM));
    while (accept_comparison(&op, p)) {
        if (!link) {
            TRY(join(&n, p, NODE_COMPARE, n, NULL));
            link = &n->b;
        }
        TRY(jinja_node_make(&operand, p, NODE_OPERAND));
        operand->op = (uint8_t)op;
        TRY(read_arithmetic(&operand->a, p, LEVEL_SUM));
        TRY(jinja_node_over(n, operand->a));
        *link = operand;
        link = &operand->next;
    }
    *out = n;
    return ERR_NONE;
}

/* Counted instead of nested, so that the parser needs no deep stack for them. */
static err read_not(struct jinja_node **out, struct jinja_reading *p)
{
    size_t count = 0;
    while (jinja_accept_name(p, "not"))
        count++;
    TRY(read_comparison(out, p));
    for (; count > 0; count--)
        TRY(join(out, p, NODE_NOT, *out, NULL));
    return ERR_NONE;
}

/* The right operand of `and` and `or` is evaluated only if it decides. */
static err read_and(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *right;
    TRY(read_not(out, p));
    while (jinja_accept_name(p, "and")) {
        TRY(read_not(&right, p));
        TRY(join(out, p, NODE_AND, *out, right));
    }
    return ERR_NONE;
}

static err read_or(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *right;
    TRY(read_and(out, p));
    while (jinja_accept_name(p, "or")) {
        TRY(read_and(&right, p));
        TRY(join(out, p, NODE_OR, *out, right));
    }
    return ERR_NONE;
}

/* "a if b else c" groups from the right; without else the value is undefined. */
err jinja_read_expression(struct jinja_node **out, struct jinja_reading *p)
{
    struct jinja_node *n, *test;
    if (++p->depth > LIMIT_TEMPLATE_DEPTH) return jinja_unexpected(p, "less nesting");
    TRY(read_or(&n, p));
    while (jinja_accept_name(p, "if")) {
        TRY(read_or(&test, p));
        TRY(join(&n, p, NODE_CHOICE, test, n));
        if (jinja_accept_name(p, "else")) TRY(jinja_read_expression(&n->c, p));
        TRY(jinja_node_over(n, n->c));
    }
    p->depth--;
    *out = n;
    return ERR_NONE;
}

/* Whether a tuple ends here, so that a comma before was its last character. */
static bool at_tuple_end(const struct jinja_reading *p, const char *end)
{
    return p->at->kind == TOKEN_PRINT_END || p->at->kind == TOKEN_BLOCK_END ||
           jinja_at_op(p, ")") || (end && jinja_at_name(p, end));
}

err jinja_read_tuple(struct jinja_node **out, struct jinja_reading *p, bool choice, const char *end)
{
    struct jinja_node *first, *tuple, **link;
    TRY(choice ? jinja_read_expression(&first, p) : read_or(&first, p));
    if (jinja_at_op(p, ",")) {
        TRY(join(&tuple, p, NODE_TUPLE, first, NULL));
        link = &first->next;
        while (jinja_accept_op(p, ",") && !at_tuple_end(p, end)) {
            TRY(choice ? jinja_read_expression(link, p) : read_or(link, p));
            TRY(jinja_node_over(tuple, *link));
            link = &(*link)->next;
        }
        first = tuple;
    }
    *out = first;
    return ERR_NONE;
}
