/* Tests of templates: "x is defined". */
#include "engine/tokens/jinja_parts.h"
#include "engine/tokens/jinja_string.h"

#include <math.h>
#include <string.h>

#define TEST(name)                                                                                 \
    static err test_##name(bool *out, struct jinja_run *r, const struct jinja_value *value,        \
                           const struct jinja_call *call)

/* The tests that look only at the kind of a value. */
TEST(kind)
{

    const char *what = call->what;
    enum jinja_kind k = (enum jinja_kind)value->kind;
    TRY(jinja_check(r, call, 0, NULL));
    bool truth = k == JINJA_BOOL && value->truth;
    const struct {
        const char *name;
        bool is;
    } rows[] = {
        {"defined", k != JINJA_UNDEFINED},
        {"undefined", k == JINJA_UNDEFINED},
        {"none", k == JINJA_NONE},
        {"boolean", k == JINJA_BOOL},
        {"true", truth},
        {"false", k == JINJA_BOOL && !truth},
        {"integer", k == JINJA_INT},
        {"float", k == JINJA_FLOAT},
        {"number", jinja_is_number(value)},
        {"string", k == JINJA_TEXT},
        {"mapping", k == JINJA_DICT},
        {"escaped", value->safe},
        {"callable",
         k == JINJA_MACRO || k == JINJA_FUNCTION || k == JINJA_METHOD || k == JINJA_UNDEFINED},
        {"sequence", k == JINJA_TEXT || k == JINJA_LIST || k == JINJA_TUPLE || k == JINJA_RANGE ||
                         k == JINJA_DICT || k == JINJA_UNDEFINED},
        {"iterable", k == JINJA_TEXT || jinja_is_list(value) || k == JINJA_DICT ||
                         k == JINJA_UNDEFINED || k == JINJA_LOOP},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, what) == 0) *out = rows[i].is;
    return ERR_NONE;
}

static err one_argument(const struct jinja_value **out, const struct jinja_run *r,
                        const struct jinja_call *call)
{
    static const char *const names[] = {"num", "other", "seq", NULL};
    TRY(jinja_check(r, call, 1, names));
    if (call->count != 1) return jinja_fail(r, "the test \"%s\" needs one argument", call->what);
    *out = &call->argument[0].value;
    return ERR_NONE;
}

static err remainder_of(struct jinja_value *out, struct jinja_run *r,
                        const struct jinja_value *value, const struct jinja_value *by)
{
    return jinja_binary(out, r, OP_MOD, value, by);
}

/* A float is allowed: 3.0 is odd, and 2.5 is neither odd nor even. */
TEST(odd)
{

    const struct jinja_value two = jinja_int(2), one = jinja_int(call->what[0] == 'o');
    struct jinja_value rest;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(remainder_of(&rest, r, value, &two));
    return jinja_equal(out, r, &rest, &one);
}

TEST(divisible)
{
    const struct jinja_value *by = NULL, zero = jinja_int(0);
    struct jinja_value rest;
    TRY(one_argument(&by, r, call));
    TRY(remainder_of(&rest, r, value, by));
    return jinja_equal(out, r, &rest, &zero);
}

TEST(compare)
{
    static const struct {
        const char *name;
        enum jinja_op op;
    } ops[] = {{"==", OP_EQ},       {"eq", OP_EQ}, {"equalto", OP_EQ}, {"!=", OP_NE},
               {"ne", OP_NE},       {">", OP_GT},  {"gt", OP_GT},      {"greaterthan", OP_GT},
               {">=", OP_GE},       {"ge", OP_GE}, {"<", OP_LT},       {"lt", OP_LT},
               {"lessthan", OP_LT}, {"<=", OP_LE}, {"le", OP_LE},      {"in", OP_IN}};
    const struct jinja_value *other = NULL;
    size_t i = 0;
    TRY(one_argument(&other, r, call));
    while (strcmp(ops[i].name, call->what) != 0)
        i++;
    return jinja_compare(out, r, ops[i].op, value, other);
}

/* Identity of objects is only defined for the constants and for lists and dicts. */
TEST(same)
{
    const struct jinja_value *other = NULL;
    TRY(one_argument(&other, r, call));
    enum jinja_kind k = (enum jinja_kind)value->kind;
    *out = false;
    if (k != other->kind) return ERR_NONE;
    if (k == JINJA_NONE || k == JINJA_BOOL)
        TRY(jinja_equal(out, r, value, other));
    else if (jinja_is_list(value) || k == JINJA_DICT || k == JINJA_NAMESPACE)
        *out = value->list == other->list;
    else
        return jinja_fail(r, "the test \"sameas\" of a %s is not supported", jinja_type(value));
    return ERR_NONE;
}

TEST(letters)
{

    struct jinja_value text;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(&text, r, value));
    return jinja_string_is(out, r, &text, call->what);
}

TEST(known)
{
    struct jinja_value word;
    if (value->kind != JINJA_TEXT) return jinja_fail(r, "%s: expected a name", call->what);
    TRY(jinja_text_copy(&word, r, value->text.data, value->text.size));
    *out = call->what[0] == 'f' ? jinja_filter_find(word.text.data) != NULL
                                : jinja_test_find(word.text.data) != NULL;
    return ERR_NONE;
}

static const struct jinja_test_row rows[] = {
    {"odd", test_odd},
    {"even", test_odd},
    {"divisibleby", test_divisible},
    {"defined", test_kind},
    {"undefined", test_kind},
    {"filter", test_known},
    {"test", test_known},
    {"none", test_kind},
    {"boolean", test_kind},
    {"false", test_kind},
    {"true", test_kind},
    {"integer", test_kind},
    {"float", test_kind},
    {"lower", test_letters},
    {"upper", test_letters},
    {"string", test_kind},
    {"mapping", test_kind},
    {"number", test_kind},
    {"sequence", test_kind},
    {"iterable", test_kind},
    {"callable", test_kind},
    {"sameas", test_same},
    {"escaped", test_kind},
    {"in", test_compare},
    {"==", test_compare},
    {"eq", test_compare},
    {"equalto", test_compare},
    {"!=", test_compare},
    {"ne", test_compare},
    {">", test_compare},
    {"gt", test_compare},
    {"greaterthan", test_compare},
    {"ge", test_compare},
    {">=", test_compare},
    {"<", test_compare},
    {"lt", test_compare},
    {"lessthan", test_compare},
    {"<=", test_compare},
    {"le", test_compare},
};

const struct jinja_test_row *jinja_test_find(const char *name)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}
