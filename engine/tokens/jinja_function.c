/* Global functions of templates: those of jinja2, and two of transformers. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* The sandbox of jinja2 has the same bound. */
enum { RANGE_MAX = 100000 };

static err call_range(struct jinja_value *out, struct jinja_run *r, const struct jinja_call *call)
{
    int64_t bound[3] = {0, 0, 1};
    TRY(jinja_check(r, call, 3, NULL));
    if (call->count == 0) return jinja_fail(r, "range expected at least 1 argument, got 0");
    for (size_t i = 0; i < call->count; i++) {
        const struct jinja_value *v = &call->argument[i].value;
        if (v->kind == JINJA_UNDEFINED) return jinja_undefined(r, v);
        if (v->kind != JINJA_INT && v->kind != JINJA_BOOL)
            return jinja_fail(r, "range: '%s' object cannot be interpreted as an integer",
                              jinja_type(v));
        bound[call->count == 1 ? 1 : i] = jinja_whole(v);
    }
    if (bound[2] == 0) return jinja_fail(r, "range() arg 3 must not be zero");
    /* In double, so that bounds far apart cannot overflow; the counts that matter are small. */
    double count = ((double)bound[1] - (double)bound[0]) / (double)bound[2];
    if (count > RANGE_MAX)
        return jinja_fail(r, "range too big: the sandbox blocks ranges larger than %d", RANGE_MAX);
    TRY(jinja_list(out, r, JINJA_RANGE, count > 0 ? (size_t)count + 1 : 0));
    out->list->from = bound[0];
    out->list->by = bound[2];
    for (int64_t i = bound[0]; bound[2] > 0 ? i < bound[1] : i > bound[1];) {
        const struct jinja_value item = jinja_int(i);
        TRY(jinja_push(r, out, &item));
        if (__builtin_add_overflow(i, bound[2], &i)) break;
    }
    return jinja_step(r, out->list->count);
}

/* dict(a=1) and namespace(a=1); either may start with a dict, whose entries come first. */
static err call_dict(struct jinja_value *out, struct jinja_run *r, const struct jinja_call *call)
{
    TRY(jinja_dict(out, r, call->count));
    for (size_t i = 0; i < call->count; i++) {
        const struct jinja_argument *a = &call->argument[i];
        if (a->name != JINJA_NO_NAME) {
            const struct jinja_name *name = &r->program->name[a->name];
            const struct jinja_value key = jinja_text(name->text, name->size);
            TRY(jinja_put(r, out, &key, &a->value));
            continue;
        }
        if (i > 0 || a->value.kind != JINJA_DICT)
            return jinja_fail(r, "%s: expected a dict or name=value", call->what);
        for (size_t k = 0; k < a->value.dict->count; k++)
            TRY(jinja_put(r, out, &a->value.dict->entry[k].key, &a->value.dict->entry[k].value));
    }
    return ERR_NONE;
}

static err call_namespace(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_call *call)
{
    TRY(call_dict(out, r, call));
    out->kind = JINJA_NAMESPACE;
    return ERR_NONE;
}

/* The template refuses the conversation, so its own message is the error. */
static err call_raise(struct jinja_value *out, struct jinja_run *r, const struct jinja_call *call)
{
    struct jinja_value text;
    static const char *const names[] = {"message", NULL};
    const struct jinja_value *message = jinja_given(r, call, 0, "message");
    (void)out;
    TRY(jinja_check(r, call, 1, names));
    if (!message) return jinja_fail(r, "raise_exception: expected a message");
    TRY(jinja_str(&text, r, message));
    return err_make(ERR_INPUT, "the chat template refuses the messages: %.*s",
                    text.text.size < 400 ? (int)text.text.size : 400, text.text.data);
}

/* One directive of strftime() in the C locale; `plain`: without leading zeros. Returns false for a
 * directive that differs between systems or is rare. */
static bool put_date(char *out, size_t size, const struct tm *tm, char directive, bool plain)
{
    static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    const struct {
        char directive;
        int digits, value;
    } numbers[] = {
        {'d', 2, tm->tm_mday},
        {'H', 2, tm->tm_hour},
        {'I', 2, (tm->tm_hour + 11) % 12 + 1},
        {'m', 2, tm->tm_mon + 1},
        {'j', 3, tm->tm_yday + 1},
        {'M', 2, tm->tm_min},
        {'S', 2, tm->tm_sec},
        {'Y', 4, tm->tm_year + 1900},
        {'y', 2, tm->tm_year % 100},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].directive == directive)
            return snprintf(out, size, "%0*d", plain ? 1 : numbers[i].digits, numbers[i].value) > 0;
    const char *name = directive == 'A' || directive == 'a'   ? days[tm->tm_wday % 7]
                       : directive == 'B' || directive == 'b' ? months[tm->tm_mon % 12]
                       : directive == 'p'                     ? (tm->tm_hour < 12 ? "AM" : "PM")
                       : directive == '%'                     ? "%"
                                                              : NULL;
    bool whole = directive == 'A' || directive == 'B';
    return name && !plain && snprintf(out, size, "%.*s", whole ? 20 : 3, name) > 0;
}

/* datetime.now().strftime(). */
static err call_strftime(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_call *call)
{
    static const char *const names[] = {"format", NULL};
    const struct jinja_value *format = jinja_given(r, call, 0, "format");
    char text[32];
    struct tm tm;
    time_t now = (time_t)r->now;
    TRY(jinja_check(r, call, 1, names));
    if (!format || format->kind != JINJA_TEXT)
        return jinja_fail(r, "strftime_now: expected a format");
    if (!gmtime_r(&now, &tm)) return jinja_fail(r, "strftime_now: the date is out of range");
    size_t mark = jinja_capture(r), size = format->text.size;
    const char *f = format->text.data;
    for (size_t i = 0; i < size; i++) {
        if (f[i] != '%') {
            TRY(jinja_say(r, f + i, 1));
            continue;
        }
        bool plain = i + 1 < size && f[i + 1] == '-';
        i += 1 + plain;
        if (i >= size || !put_date(text, sizeof text, &tm, f[i], plain))
            return jinja_fail(r, "strftime_now: the directive %%%s%c is not supported",
                              plain ? "-" : "", i < size ? f[i] : ' ');
        TRY(jinja_say(r, text, strlen(text)));
    }
    return jinja_captured(out, r, mark);
}

static err call_unsupported(struct jinja_value *out, struct jinja_run *r,
                            const struct jinja_call *call)
{
    (void)out;
    return jinja_fail(r, "the function \"%s\" is not supported", call->what);
}

static const struct jinja_function functions[] = {
    {"range", call_range},           {"dict", call_dict},
    {"namespace", call_namespace},   {"raise_exception", call_raise},
    {"strftime_now", call_strftime}, {"lipsum", call_unsupported},
    {"cycler", call_unsupported},    {"joiner", call_unsupported},
};

const struct jinja_function *jinja_function_find(const char *name)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strcmp(functions[i].name, name) == 0) return &functions[i];
    return NULL;
}
