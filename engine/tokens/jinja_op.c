/* Operators, members and slices with Python's meaning. A whole number that needs more than 64 bits
 * is refused. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"
#include "engine/tokens/jinja_string.h"

#include <math.h>
#include <string.h>

static err too_large(const struct jinja_run *r)
{
    return jinja_fail(r, "a whole number needs more than 64 bits");
}

static err by_zero(const struct jinja_run *r)
{
    return jinja_fail(r, "division by zero");
}

/* ---- numbers ---- */

/* Squares `a` for each bit of the exponent. The last square is computed but not multiplied, so an
 * overflow of a square counts only when a later bit uses it. A negative exponent gives a float, as
 * in Python. */
static err power(struct jinja_value *out, const struct jinja_run *r, int64_t a, int64_t b)
{
    int64_t result = 1;
    if (b < 0) {
        if (a == 0) return by_zero(r);
        *out = jinja_float(pow((double)a, (double)b));
        return ERR_NONE;
    }
    for (bool over = false; b > 0; b >>= 1) {
        if (b & 1 && (over || __builtin_mul_overflow(result, a, &result))) return too_large(r);
        over = over || __builtin_mul_overflow(a, a, &a);
    }
    *out = jinja_int(result);
    return ERR_NONE;
}

/* Division of Python rounds down, and the remainder has the sign of the divisor. */
static err divide(struct jinja_value *out, const struct jinja_run *r, enum jinja_op op, int64_t a,
                  int64_t b)
{
    if (b == 0) return by_zero(r);
    if (b == -1) { /* INT64_MIN / -1 overflows */
        int64_t negative;
        if (__builtin_sub_overflow(0, a, &negative)) return too_large(r);
        *out = jinja_int(op == OP_MOD ? 0 : negative);
        return ERR_NONE;
    }
    int64_t quotient = a / b, rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) quotient--, rest += b;
    *out = jinja_int(op == OP_MOD ? rest : quotient);
    return ERR_NONE;
}

static err of_integers(struct jinja_value *out, const struct jinja_run *r, enum jinja_op op,
                       int64_t a, int64_t b)
{
    int64_t result = 0;
    bool over = false;
    switch (op) {
    case OP_ADD:
        over = __builtin_add_overflow(a, b, &result);
        break;
    case OP_SUB:
        over = __builtin_sub_overflow(a, b, &result);
        break;
    case OP_MUL:
        over = __builtin_mul_overflow(a, b, &result);
        break;
    case OP_POW:
        return power(out, r, a, b);
    default:
        return divide(out, r, op, a, b);
    }
    if (over) return too_large(r);
    *out = jinja_int(result);
    return ERR_NONE;
}

static err of_floats(struct jinja_value *out, const struct jinja_run *r, enum jinja_op op, double a,
                     double b)
{
    double result = 0;
    if ((op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) && b == 0) return by_zero(r);
    switch (op) {
    case OP_ADD:
        result = a + b;
        break;
    case OP_SUB:
        result = a - b;
        break;
    case OP_MUL:
        result = a * b;
        break;
    case OP_DIV:
        result = a / b;
        break;
    case OP_POW:
        if (a < 0 && b != floor(b)) return jinja_fail(r, "complex numbers are not supported");
        result = pow(a, b);
        if (isinf(result) && isfinite(a) && isfinite(b))
            return jinja_fail(r, "the power is too large"); /* Python raises an error too */
        break;
    default: { /* as float_divmod() of Python */
        double rest = fmod(a, b), quotient = (a - rest) / b;
        if (rest != 0) {
            if ((b < 0) != (rest < 0)) rest += b, quotient -= 1;
        } else {
            rest = copysign(0, b);
        }
        double down = floor(quotient);
        if (quotient - down > 0.5) down += 1;
        if (quotient == 0) down = copysign(0, a / b);
        result = op == OP_MOD ? rest : down;
    }
    }
    *out = jinja_float(result);
    return ERR_NONE;
}

/* Division with / gives a float even for whole numbers, as in Python 3. */
static err of_numbers(struct jinja_value *out, const struct jinja_run *r, enum jinja_op op,
                      const struct jinja_value *a, const struct jinja_value *b)
{
    if (a->kind != JINJA_FLOAT && b->kind != JINJA_FLOAT && op != OP_DIV)
        return of_integers(out, r, op, jinja_whole(a), jinja_whole(b));
    return of_floats(out, r, op, jinja_real(a), jinja_real(b));
}

/* ---- texts and lists ---- */

/* A text that is added to a safe one is escaped, as Markup does. */
static err join(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *a,
                const struct jinja_value *b)
{
    char *text;
    struct jinja_value left = *a, right = *b;
    bool safe = a->safe || b->safe;
    if (safe) {
        TRY(jinja_string_escape(&left, r, a));
        TRY(jinja_string_escape(&right, r, b));
    }
    size_t size = left.text.size + right.text.size;
    TRY(jinja_take(&text, r, size + 1, 1));
    memcpy(text, left.text.data, left.text.size);
    memcpy(text + left.text.size, right.text.data, right.text.size);
    text[size] = 0;
    *out = jinja_text(text, size);
    out->safe = safe;
    return ERR_NONE;
}

/* A new list, because the operands may be used elsewhere. */
static err join_lists(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *a,
                      const struct jinja_value *b)
{
    TRY(jinja_step(r, a->list->count + b->list->count));
    TRY(jinja_list(out, r, (enum jinja_kind)a->kind, a->list->count + b->list->count));
    for (size_t i = 0; i < a->list->count; i++)
        TRY(jinja_push(r, out, &a->list->item[i]));
    for (size_t i = 0; i < b->list->count; i++)
        TRY(jinja_push(r, out, &b->list->item[i]));
    return ERR_NONE;
}

/* "ab" * 3 and [1] * 3; a count below 1 gives nothing. */
static err repeat(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                  int64_t times)
{
    size_t count = times > 0 ? (size_t)times : 0, size;
    if (v->kind != JINJA_TEXT) {
        if (!size_mul(&size, v->list->count, count)) return too_large(r);
        TRY(jinja_step(r, size));
        TRY(jinja_list(out, r, (enum jinja_kind)v->kind, size));
        for (size_t i = 0; i < size; i++)
            TRY(jinja_push(r, out, &v->list->item[i % v->list->count]));
        return ERR_NONE;
    }
    char *text;
    if (!size_mul(&size, v->text.size, count) || size > LIMIT_TEMPLATE_MEMORY) return too_large(r);
    TRY(jinja_take(&text, r, size + 1, 1));
    if (v->text.size > 0)
        for (size_t i = 0; i < count; i++)
            memcpy(text + i * v->text.size, v->text.data, v->text.size);
    text[size] = 0;
    *out = jinja_text(text, size);
    return ERR_NONE;
}

static bool can_repeat(const struct jinja_value *v)
{
    return (v->kind == JINJA_TEXT && !v->safe) || v->kind == JINJA_LIST || v->kind == JINJA_TUPLE;
}

/* Undefined operands are tested first, because each operator of jinja2's Undefined raises an error
 * that names the variable, whatever the other operand is. */
err jinja_binary(struct jinja_value *out, struct jinja_run *r, enum jinja_op op,
                 const struct jinja_value *a, const struct jinja_value *b)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    bool whole_a = a->kind == JINJA_INT || a->kind == JINJA_BOOL;
    bool whole_b = b->kind == JINJA_INT || b->kind == JINJA_BOOL;
    if (a->kind == JINJA_UNDEFINED) return jinja_undefined(r, a);
    if (b->kind == JINJA_UNDEFINED) return jinja_undefined(r, b);
    if (jinja_is_number(a) && jinja_is_number(b)) return of_numbers(out, r, op, a, b);
    if (op == OP_ADD && a->kind == b->kind) {
        if (a->kind == JINJA_TEXT) return join(out, r, a, b);
        if (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE) return join_lists(out, r, a, b);
    }
    if (op == OP_MUL && can_repeat(a) && whole_b) return repeat(out, r, a, jinja_whole(b));
    if (op == OP_MUL && can_repeat(b) && whole_a) return repeat(out, r, b, jinja_whole(a));
    if (op == OP_MOD && a->kind == JINJA_TEXT)
        return jinja_fail(r, "formatting with %% is not supported");
    return jinja_fail(r, "unsupported operand types for %s: '%s' and '%s'", signs[op],
                      jinja_type(a), jinja_type(b));
}

err jinja_compare(bool *out, struct jinja_run *r, enum jinja_op op, const struct jinja_value *a,
                  const struct jinja_value *b)
{
    int order = 0;
    TRY(jinja_step(r, 1));
    if (op == OP_EQ || op == OP_NE) {
        TRY(jinja_equal(out, r, a, b));
        *out = *out == (op == OP_EQ);
        return ERR_NONE;
    }
    if (op == OP_IN || op == OP_NOT_IN) {
        bool in;
        TRY(jinja_contains(&in, r, b, a));
        *out = in == (op == OP_IN);
        return ERR_NONE;
    }
    TRY(jinja_order(&order, r, a, b));
    *out = op == OP_LT   ? order < 0
           : op == OP_LE ? order <= 0
           : op == OP_GT ? order > 0
                         : order >= 0;
    return ERR_NONE;
}

/* ---- members ---- */

/* jinja2 gives an undefined value for an absent member; only its use is an error, which names the
 * member. */
static void absent(struct jinja_value *out, const struct jinja_value *object, const char *name,
                   size_t size)
{
    *out = (struct jinja_value){.kind = JINJA_UNDEFINED, .of = object->kind, .text = {name, size}};
}

/* The neighbours at the ends of a loop are undefined. The depth counts recursive loops only. */
static err loop_member(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                       const char *name, size_t size)
{
    const struct jinja_loop *l = v->loop;
    size_t count = l->items->count, i = l->index;
    const struct {
        const char *name;
        size_t value;
    } numbers[] = {
        {"index", i + 1},  {"index0", i}, {"revindex", count - i},
        {"length", count}, {"depth", 1},  {"revindex0", count - i - 1},
        {"depth0", 0},
    };
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
        if (strlen(numbers[k].name) != size || memcmp(name, numbers[k].name, size) != 0) continue;
        *out = jinja_int((int64_t)numbers[k].value);
        return ERR_NONE;
    }
    if (size == 5 && memcmp(name, "first", 5) == 0) {
        *out = jinja_bool(i == 0);
    } else if (size == 4 && memcmp(name, "last", 4) == 0) {
        *out = jinja_bool(i + 1 == count);
    } else if (size == 8 && memcmp(name, "previtem", 8) == 0) {
        absent(out, v, name, size);
        if (i > 0) *out = l->items->item[i - 1];
    } else if (size == 8 && memcmp(name, "nextitem", 8) == 0) {
        absent(out, v, name, size);
        if (i + 1 < count) *out = l->items->item[i + 1];
    } else {
        return jinja_fail(r, "loop.%.*s is not supported", size < 40 ? (int)size : 40, name);
    }
    return ERR_NONE;
}

/* A method is a value of its own: {% set f = text.strip %} is allowed. */
static err bind_method(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_value *object, const struct jinja_method_row *row)
{
    struct jinja_method *method;
    if (!row->call)
        return jinja_fail(r, "'%s' of a %s is not supported", row->name, jinja_type(object));
    TRY(jinja_take(&method, r, 1, sizeof *method));
    *method = (struct jinja_method){*object, row};
    *out = (struct jinja_value){.kind = JINJA_METHOD, .method = method};
    return ERR_NONE;
}

/* jinja2 looks for a Python attribute first and for a key of a dict second. */
err jinja_attribute(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
                    const char *name, size_t size)
{
    const struct jinja_method_row *row = jinja_method_find(name, size, object->kind);
    if (object->kind == JINJA_UNDEFINED) return jinja_undefined(r, object);
    if (row) return bind_method(out, r, object, row);
    if (object->kind == JINJA_LOOP) return loop_member(out, r, object, name, size);
    absent(out, object, name, size);
    if (object->kind == JINJA_DICT || object->kind == JINJA_NAMESPACE) {
        const struct jinja_value *found = jinja_find(object->dict, name, size);
        TRY(jinja_step(r, object->dict->count / 16));
        if (found) *out = *found;
    } else if (size > 0 && name[0] == '_') {
        return ERR_NONE; /* internals of Python, which the sandbox makes undefined */
    } else if (object->kind >= JINJA_MACRO || object->kind == JINJA_RANGE) {
        return jinja_fail(r, "attribute '%.*s' of a %s is not supported",
                          size < 80 ? (int)size : 80, name, jinja_type(object));
    }
    return ERR_NONE;
}

/* The index counts code points. */
static err text_at(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
                   int64_t at)
{
    size_t count;
    TRY(jinja_length(&count, r, object));
    if (at < 0) at += (int64_t)count;
    if (at < 0 || (size_t)at >= count) return ERR_NONE;
    size_t begin = jinja_offset(object->text.data, object->text.size, (size_t)at);
    size_t n = jinja_offset(object->text.data + begin, object->text.size - begin, 1);
    *out = jinja_text(object->text.data + begin, n);
    out->safe = object->safe;
    return ERR_NONE;
}

/* jinja2 looks for a key first and for a Python attribute second. Absent is undefined. */
err jinja_item(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
               const struct jinja_value *key)
{
    bool whole = key->kind == JINJA_INT || key->kind == JINJA_BOOL;
    if (object->kind == JINJA_UNDEFINED) return jinja_undefined(r, object);
    absent(out, object, NULL, 0);
    if (key->kind == JINJA_TEXT) absent(out, object, key->text.data, key->text.size);
    if (object->kind == JINJA_DICT) {
        struct jinja_value *found;
        if (key->kind == JINJA_LIST || key->kind == JINJA_DICT) return ERR_NONE;
        TRY(jinja_get(&found, r, object, key));
        if (found) {
            *out = *found;
            return ERR_NONE;
        }
    } else if (whole && object->kind == JINJA_TEXT) {
        return text_at(out, r, object, jinja_whole(key));
    } else if (whole && (object->kind == JINJA_LIST || object->kind == JINJA_TUPLE ||
                         object->kind == JINJA_RANGE)) {
        int64_t at = jinja_whole(key), count = (int64_t)object->list->count;
        if (at < 0) at += count;
        if (at >= 0 && at < count) *out = object->list->item[at];
        return ERR_NONE;
    }
    if (key->kind != JINJA_TEXT) return ERR_NONE;
    return jinja_attribute(out, r, object, key->text.data, key->text.size);
}

/* ---- slices ---- */

static err bound_of(int64_t *out, bool *given, struct jinja_run *r, const struct jinja_value *v)
{
    if (v->kind == JINJA_UNDEFINED) return jinja_undefined(r, v);
    *given = v->kind != JINJA_NONE;
    if (!*given) return ERR_NONE;
    if (v->kind != JINJA_INT && v->kind != JINJA_BOOL)
        return jinja_fail(r, "slice indices must be integers or None");
    *out = jinja_whole(v);
    return ERR_NONE;
}

/* PySlice_AdjustIndices(): a bound counts from the end if negative and is moved into the list. */
static int64_t adjust(int64_t at, int64_t count, bool backwards)
{
    int64_t least = backwards ? -1 : 0, most = backwards ? count - 1 : count;
    if (at < 0) at = at < -count ? least : at + count;
    return at < least ? least : at > most ? most : at;
}

/* Steps of one are cut from the text; others visit each code point. */
static err slice_text(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v,
                      const int64_t bound[3])
{
    if (bound[2] == 1) {
        size_t n = bound[1] > bound[0] ? (size_t)(bound[1] - bound[0]) : 0;
        size_t begin = jinja_offset(v->text.data, v->text.size, (size_t)bound[0]);
        size_t size = jinja_offset(v->text.data + begin, v->text.size - begin, n);
        *out = jinja_text(v->text.data + begin, size);
        return ERR_NONE;
    }
    struct jinja_list *items;
    TRY(jinja_items(&items, r, v));
    size_t mark = jinja_capture(r);
    for (int64_t i = bound[0]; bound[2] > 0 ? i < bound[1] : i > bound[1]; i += bound[2])
        TRY(jinja_print(r, &items->item[i]));
    return jinja_captured(out, r, mark);
}

err jinja_slice(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
                const struct jinja_value bound[3])
{
    int64_t b[3] = {0, 0, 1};
    bool given[3];
    if (object->kind == JINJA_UNDEFINED) return jinja_undefined(r, object);
    absent(out, object, NULL, 0);
    if (object->kind != JINJA_TEXT && object->kind != JINJA_LIST && object->kind != JINJA_TUPLE) {
        if (object->kind == JINJA_DICT) return jinja_fail(r, "unhashable type: 'slice'");
        if (object->kind == JINJA_RANGE)
            return jinja_fail(r, "slices of a range are not supported; use | list");
        return jinja_fail(r, "'%s' object is not subscriptable", jinja_type(object));
    }
    for (int i = 0; i < 3; i++)
        TRY(bound_of(&b[i], &given[i], r, &bound[i]));
    if (b[2] == 0) return jinja_fail(r, "slice step cannot be zero");
    size_t length;
    TRY(jinja_length(&length, r, object));
    int64_t count = (int64_t)length;
    bool backwards = b[2] < 0;
    if (b[2] > count + 1) b[2] = count + 1; /* so that i + step cannot overflow */
    if (b[2] < -count - 1) b[2] = -count - 1;
    b[0] = given[0] ? adjust(b[0], count, backwards) : backwards ? count - 1 : 0;
    b[1] = given[1] ? adjust(b[1], count, backwards) : backwards ? -1 : count;
    if (object->kind == JINJA_TEXT) {
        TRY(slice_text(out, r, object, b));
        out->safe = object->safe;
        return ERR_NONE;
    }
    TRY(jinja_list(out, r, (enum jinja_kind)object->kind, 0));
    if (b[2] == 1) { /* shares the items, which are immutable */
        *out->list = *object->list;
        out->list->item = object->list->item + b[0];
        out->list->count = out->list->capacity = b[1] > b[0] ? (size_t)(b[1] - b[0]) : 0;
        return ERR_NONE;
    }
    for (int64_t i = b[0]; backwards ? i > b[1] : i < b[1]; i += b[2])
        TRY(jinja_push(r, out, &object->list->item[i]));
    return jinja_step(r, out->list->count);
}
