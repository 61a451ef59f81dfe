#include "agg/round/method_options.h"

#include "base/json.h"
#include "base/text.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHOICES = 7, VALUE_BYTES = 64, TEXT_MAX = 4096, TAKERS_BYTES = 160 };
enum kind { CHOICE, NUMBER, WHOLE };

struct row {
    struct method_option shown;
    enum kind kind;
    const char *choice[CHOICES]; /* in the order of the enum */
    double least, most, normal;  /* normal: the default; of a CHOICE its index */
    size_t at;                   /* offset in struct method_options */
};

#define AT(field) offsetof(struct method_options, field)

enum { EVERY = false, OWN = true }; /* methods with the option: all, or those that list its key */

static const struct row rows[] = {
    {{"server", "none|fedavgm|fedadagrad|fedadam|fedyogi", "none", EVERY,
      "optimizer that the coordinator applies to the mean change of each round"},
     CHOICE,
     {"none", "fedavgm", "fedadagrad", "fedadam", "fedyogi"},
     .at = AT(server)},
    {{"server_lr", "above 0", "1 for fedavgm, else 0.01", EVERY,
      "learning rate of the server optimizer"},
     NUMBER,
     .least = 1e-12,
     .most = 1e6,
     .at = AT(server_lr)},
    {{"server_beta1", "0..0.9999", "0.9", EVERY, "decay of the server optimizer's momentum"},
     NUMBER,
     .most = 0.9999,
     .normal = 0.9,
     .at = AT(server_beta1)},
    {{"server_beta2", "0..0.999999", "0.99", EVERY,
      "decay of the server optimizer's second moments"},
     NUMBER,
     .most = 0.999999,
     .normal = 0.99,
     .at = AT(server_beta2)},
    {{"server_tau", "1e-12..1e6", "0.001", EVERY,
      "constant added to the root of the server optimizer's second moments"},
     NUMBER,
     .least = 1e-12,
     .most = 1e6,
     .normal = 1e-3,
     .at = AT(server_tau)},
    {{"robust", "none|norm|krum|median|trimmed|geometric", "none", EVERY,
      "rule that limits the effect of faulty or malicious updates"},
     CHOICE,
     {"none", "norm", "krum", "median", "trimmed", "geometric"},
     .at = AT(robust)},
    {{"robust_norm", "above 0", "the round's median norm", EVERY,
      "largest norm of an update, with robust=norm"},
     NUMBER,
     .least = 1e-30,
     .most = 1e30,
     .at = AT(robust_norm)},
    {{"robust_faulty", "1..5000", "the largest number possible", EVERY,
      "number of faulty members to tolerate, with robust=krum"},
     WHOLE,
     .least = 1,
     .most = LIMIT_MEMBERS / 2,
     .at = AT(robust_faulty)},
    {{"robust_trim", "0.001..0.499", "0.2", EVERY,
      "fraction of the values removed at each end, with robust=trimmed"},
     NUMBER,
     .least = 0.001,
     .most = 0.499,
     .normal = 0.2,
     .at = AT(robust_trim)},
    {{"prox", "0..1e6", "0", EVERY,
      "weight of the FedProx penalty on the distance from the factors at the round's start"},
     NUMBER,
     .most = 1e6,
     .at = AT(prox)},
    {{"prune_gamma", "0.01..1", "0.99", OWN,
      "fraction of the rank that the pruning penalty leaves free"},
     NUMBER,
     .least = 0.01,
     .most = 1,
     .normal = 0.99,
     .at = AT(prune_gamma)},
    {{"prune_lambda", "0..1e6", "0.001", OWN,
      "weight of the penalty by which members reduce their ranks; 0: no pruning"},
     NUMBER,
     .most = 1e6,
     .normal = 1e-3,
     .at = AT(prune_lambda)},
    {{"tail", "drop|carry", "drop", OWN,
      "singular values beyond the rank: drop them, or add them to the frozen carry"},
     CHOICE,
     {"drop", "carry"},
     .at = AT(tail)},
    {{"energy", "0.01..1", "0.99", OWN,
      "fraction of the squared norm of each module's change to keep"},
     NUMBER,
     .least = 0.01,
     .most = 1,
     .normal = 0.99,
     .at = AT(energy)},
    {{"bytes", "1..1e12", "cut by energy", OWN,
      "largest size in bytes of a round's change, all modules together"},
     WHOLE,
     .least = 1,
     .most = 1e12,
     .at = AT(bytes)},
    {{"fair_lambda", "0..1e6", "0.01", OWN,
      "weight of the penalty on the norm of the correction to B"},
     NUMBER,
     .most = 1e6,
     .normal = 0.01,
     .at = AT(fair_lambda)},
    {{"fair_solve", "closed|cosine", "closed", OWN,
      "correction of B: in closed form, or by gradient steps on the cosine"},
     CHOICE,
     {"closed", "cosine"},
     .at = AT(fair_solve)},
    {{"basis", "seeded|weights|gradient", "seeded", OWN,
      "source of the frozen factors: the seed, the base's weights, or the members' gradients"},
     CHOICE,
     {"seeded", "weights", "gradient"},
     .at = AT(basis)},
};
enum { ROWS = sizeof rows / sizeof *rows };

const struct method_option *method_options_table(size_t *count)
{
    static struct method_option shown[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        shown[i] = rows[i].shown;
    *count = ROWS;
    return shown;
}

static const struct row *row_of(const char *key)
{
    size_t i = 0;
    while (strcmp(rows[i].shown.key, key) != 0)
        REQUIRE(++i < ROWS);
    return &rows[i];
}

/* ---- options of some methods ---- */

static bool lists(const struct method *method, const char *key)
{
    for (const char *const *own = method->options; *own; own++)
        if (strcmp(*own, key) == 0) return true;
    return false;
}

void method_options_takers(char *out, size_t size, const char *key)
{
    size_t at = 0;
    REQUIRE(size > 0);
    out[0] = '\0';
    for (const char *const *name = method_names(); *name && at < size; name++)
        if (lists(method_find(*name), key))
            at += (size_t)snprintf(out + at, size - at, "%s%s", at ? ", " : "", *name);
}

const char *method_options_choice(const struct method_options *options, const char *key)
{
    const struct row *row = row_of(key);
    REQUIRE(row->kind == CHOICE);
    return row->choice[*(const uint32_t *)(const void *)((const char *)options + row->at)];
}

/* ---- one value ---- */

static double get(const struct method_options *o, const struct row *row)
{
    const char *field = (const char *)o + row->at;
    if (row->kind == NUMBER) return *(const double *)(const void *)field;
    if (row->at == AT(bytes)) return (double)*(const uint64_t *)(const void *)field;
    return (double)*(const uint32_t *)(const void *)field; /* enums have this size too: see set() */
}

static void set(struct method_options *o, const struct row *row, double value)
{
    char *field = (char *)o + row->at;
    _Static_assert(sizeof(enum method_server) == sizeof(uint32_t), "enums are as wide as int");
    if (row->kind == NUMBER)
        *(double *)(void *)field = value;
    else if (row->at == AT(bytes))
        *(uint64_t *)(void *)field = (uint64_t)value;
    else
        *(uint32_t *)(void *)field = (uint32_t)value;
}

static err value_of(double *out, const struct row *row, const char *text)
{
    int64_t whole = 0;
    err e = ERR_NONE;
    if (row->kind == CHOICE) {
        for (int i = 0; i < CHOICES && row->choice[i]; i++)
            if (strcmp(row->choice[i], text) == 0) {
                *out = i;
                return ERR_NONE;
            }
        return err_make(ERR_INPUT, "option %s=%.40s: expected %s", row->shown.key, text,
                        row->shown.values);
    }
    if (row->kind == NUMBER) e = text_parse_num(out, text, row->least, row->most);
    if (row->kind == WHOLE) {
        e = text_parse_int(&whole, text, (int64_t)row->least, (int64_t)row->most);
        *out = (double)whole;
    }
    return err_is(e) ? err_in(e, "option %s", row->shown.key) : e;
}

static err find_row(const struct row **out, const struct method *method, const char *key)
{
    const char *keys[ROWS];
    for (size_t i = 0; i < ROWS; i++) {
        char takers[TAKERS_BYTES];
        keys[i] = rows[i].shown.key;
        if (strcmp(keys[i], key) != 0) continue;
        *out = &rows[i];
        if (!rows[i].shown.own || lists(method, key)) return ERR_NONE;
        method_options_takers(takers, sizeof takers, key);
        return err_make(ERR_INPUT, "option %s: %s has no such option, only %s", key, method->name,
                        takers);
    }
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "option \"%.40s\" is not known%s", key,
                    text_suggestion(near, key, keys, ROWS));
}

/* ---- all of them ---- */

static bool one_factor(const struct method *method)
{
    unsigned set = method->factors(1);
    return (set & (set - 1)) == 0;
}

/* A method with the option `tail` has a carry only with tail=carry. */
static bool keeps_carry(const struct method_options *o, const struct method *method)
{
    return method->carries && (!lists(method, "tail") || o->tail == METHOD_TAIL_CARRY);
}

static err check_server(const struct method_options *o, const struct method *method)
{
    if (o->server == METHOD_SERVER_NONE || method->averages) return ERR_NONE;
    const char *name = method_options_choice(o, "server");
    if (o->server != METHOD_SERVER_FEDAVGM)
        return err_make(ERR_INPUT,
                        "server=%s keeps a second moment of each trained value, but %s publishes "
                        "products instead of averaged values; expected fedavgm or none",
                        name, method->name);
    if (!keeps_carry(o, method))
        return err_make(ERR_INPUT, "server=%s adds momentum to the carry, but %s%s has no carry",
                        name, method->name, method->carries ? " with tail=drop" : "");
    return ERR_NONE;
}

/* (B Q)(Q^-1 A) = B A for every invertible Q, so single values of A and B can be compared between
 * members only if the other factor is the same for all. */
static err check_robust(const struct method_options *o, const struct method *method)
{
    bool by_value = o->robust == METHOD_ROBUST_MEDIAN || o->robust == METHOD_ROBUST_TRIMMED;
    if (method->keeps && (o->robust == METHOD_ROBUST_NORM || o->robust == METHOD_ROBUST_KRUM ||
                          o->robust == METHOD_ROBUST_GEOMETRIC))
        return err_make(ERR_INPUT,
                        "robust=%s compares members' changes, of which %s sends only one factor; "
                        "expected median or trimmed",
                        method_options_choice(o, "robust"), method->name);
    if (by_value && (!method->averages || !one_factor(method)))
        return err_make(
            ERR_INPUT,
            "robust=%s compares single values of members' factors, which needs a method "
            "that trains only one of A and B; for %s expected norm, krum or geometric",
            method_options_choice(o, "robust"), method->name);
    return ERR_NONE;
}

/* Refuses an option that has no effect without another one, so that no user relies on it. */
static err check_needed(const struct method_options *o, const bool *given)
{
    static const struct {
        const char *key;
        enum method_robust robust; /* NONE: any server */
    } needs[] = {{"server_lr", METHOD_ROBUST_NONE},     {"server_beta1", METHOD_ROBUST_NONE},
                 {"server_beta2", METHOD_ROBUST_NONE},  {"server_tau", METHOD_ROBUST_NONE},
                 {"robust_norm", METHOD_ROBUST_NORM},   {"robust_faulty", METHOD_ROBUST_KRUM},
                 {"robust_trim", METHOD_ROBUST_TRIMMED}};
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++) {
        if (!given[row_of(needs[i].key) - rows]) continue;
        if (needs[i].robust == METHOD_ROBUST_NONE && o->server == METHOD_SERVER_NONE)
            return err_make(ERR_INPUT,
                            "option %s has no effect without a server optimizer (server=...)",
                            needs[i].key);
        if (needs[i].robust != METHOD_ROBUST_NONE && o->robust != needs[i].robust)
            return err_make(ERR_INPUT, "option %s has no effect without robust=%s", needs[i].key,
                            row_of("robust")->choice[needs[i].robust]);
    }
    return ERR_NONE;
}

static void set_defaults(struct method_options *o)
{
    *o = (struct method_options){0};
    for (size_t i = 0; i < ROWS; i++)
        set(o, &rows[i], rows[i].normal);
}

static err set_one(struct method_options *o, bool given[ROWS], const struct method *method,
                   const char *key, const char *text)
{
    const struct row *row = NULL;
    double value = 0;
    TRY(find_row(&row, method, key));
    if (given[row - rows]) return err_make(ERR_INPUT, "option %s is given twice", key);
    TRY(value_of(&value, row, text));
    given[row - rows] = true;
    set(o, row, value);
    return ERR_NONE;
}

/* Checks that need all options together. *out is set only if they pass. server_lr depends on the
 * server, so its default cannot stand in the table. */
static err finish(struct method_options *out, struct method_options *o, const bool *given,
                  const struct method *method)
{
    TRY(check_needed(o, given));
    TRY(check_server(o, method));
    TRY(check_robust(o, method));
    if (o->server != METHOD_SERVER_NONE && o->server_lr == 0)
        o->server_lr = o->server == METHOD_SERVER_FEDAVGM ? 1 : 0.01;
    *out = *o;
    return ERR_NONE;
}

err method_options_parse(struct method_options *out, const struct method *method,
                         const char *const *option, size_t count)
{
    struct method_options o;
    bool given[ROWS] = {0};
    set_defaults(&o);
    for (size_t i = 0; i < count; i++) {
        char key[VALUE_BYTES];
        const char *equals = strchr(option[i], '=');
        size_t n = equals ? (size_t)(equals - option[i]) : 0;
        if (n == 0 || n >= sizeof key)
            return err_make(ERR_INPUT, "option \"%.60s\": expected key=value", option[i]);
        memcpy(key, option[i], n);
        key[n] = '\0';
        TRY(set_one(&o, given, method, key, equals + 1));
    }
    return finish(out, &o, given, method);
}

err method_options_text(const char **out, const struct method_options *options, struct arena *arena)
{
    struct bytes text = {.max = TEXT_MAX};
    json_t *map = json_object();
    bool fine = map != NULL;
    for (size_t i = 0; i < ROWS && fine; i++) {
        double value = get(options, &rows[i]);
        /* Left out at its default, so that a new option does not change the bytes of states. */
        if (value == rows[i].normal) continue;
        json_t *item = rows[i].kind == CHOICE   ? json_string(rows[i].choice[(int)value])
                       : rows[i].kind == NUMBER ? json_real(value)
                                                : json_integer((json_int_t)value);
        fine = json_object_set_new(map, rows[i].shown.key, item) == 0;
    }
    err e = fine ? ERR_NONE : err_make(ERR_MACHINE, "no memory for options");
    if (fine && json_object_size(map)) e = json_write(&text, map);
    if (!err_is(e)) e = arena_text(out, arena, text.size ? (const char *)text.data : "", text.size);
    bytes_close(&text);
    json_decref(map);
    return e;
}

err method_options_read(struct method_options *out, const struct method *method, const char *text)
{
    struct method_options o;
    bool given[ROWS] = {0};
    json_t *map = NULL, *item;
    const char *key;
    err e = ERR_NONE;
    set_defaults(&o);
    if (text && text[0]) TRY(json_parse(&map, text, strlen(text), "fedlora.options"));
    if (map && !json_is_object(map)) {
        e = err_make(ERR_INPUT, "fedlora.options: expected a JSON object");
        goto out;
    }
    json_object_foreach(map, key, item)
    {
        char number[VALUE_BYTES];
        const char *value = json_string_value(item);
        if (!value && !json_is_number(item)) {
            e = err_make(ERR_INPUT, "option %.40s: expected a string or a number", key);
            goto out;
        }
        if (json_is_integer(item)) /* %.17g gives back the same double */
            snprintf(number, sizeof number, "%lld", (long long)json_integer_value(item));
        else
            snprintf(number, sizeof number, "%.17g", json_number_value(item));
        TRY_OUT(e, set_one(&o, given, method, key, value ? value : number));
    }
    e = finish(out, &o, given, method);
out:
    json_decref(map);
    return err_is(e) ? err_in(e, "fedlora.options") : e;
}
