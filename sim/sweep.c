#include "sim/sweep.h"

#include "base/text.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { LABEL_BYTES = 1024, NAME_PART_BYTES = 40 };

/* ---- reading ---- */

struct reading {
    struct sweep *sweep;
    struct arena *arena;
};

/* The words of a text between separators, without the spaces around them. */
static err split(struct option_list *out, const char *text, char separator, struct arena *arena)
{
    const char apart[2] = {separator, 0};
    for (const char *at = text;; at++) {
        at += separator == ' ' ? strspn(at, apart) : 0;
        size_t n = strcspn(at, apart);
        const char *from = at, *end = at + n;
        while (from < end && isspace((unsigned char)*from))
            from++;
        while (end > from && isspace((unsigned char)end[-1]))
            end--;
        if (from == end)
            return err_make(ERR_INPUT, "\"%.80s\": expected values between '%c'", text, separator);
        TRY(option_list_add(out, from, (size_t)(end - from), arena));
        at += n;
        if (!*at) return ERR_NONE;
    }
}

static err count_cells(struct sweep *s)
{
    s->cells = 1;
    for (size_t i = 0; i < s->axes; i++)
        s->cells *= s->axis[i].values;
    if (s->cells > SWEEP_CELLS)
        return err_make(ERR_INPUT, "the sweep has %zu cells, expected at most %d", s->cells,
                        SWEEP_CELLS);
    return ERR_NONE;
}

err sweep_set(struct sweep *s, const char *key, const char *values, struct arena *arena)
{
    size_t n = 0;
    struct option_list list = {0};
    while (n < s->axes && strcmp(s->axis[n].key, key) != 0)
        n++;
    if (n == SWEEP_AXES) return err_make(ERR_INPUT, "[sweep] has more than %d lists", SWEEP_AXES);
    err e = split(&list, values, strchr(values, '|') ? '|' : ',', arena);
    if (err_is(e)) return err_in(e, "%s", key);
    for (size_t i = 0; i < list.count; i++)
        for (size_t k = 0; k < i; k++)
            if (!strcmp(list.item[i], list.item[k]))
                return err_make(ERR_INPUT, "%s: the value %.40s is there twice", key, list.item[i]);
    struct sweep_axis *a = &s->axis[n];
    TRY(arena_text(&a->key, arena, key, strlen(key)));
    const char *dot = strrchr(a->key, '.');
    a->flag = dot ? dot + 1 : a->key;
    a->value = list.item;
    a->values = list.count;
    if (n == s->axes) s->axes++;
    return count_cells(s);
}

bool sweep_has(const struct sweep *s, const char *key)
{
    for (size_t i = 0; i < s->axes; i++)
        if (!strcmp(s->axis[i].key, key)) return true;
    return false;
}

static err take_when(struct reading *r, const char *section, const char *assignment)
{
    struct sweep *s = r->sweep;
    struct sweep_when *w = s->whens ? &s->when[s->whens - 1] : NULL;
    if (!w || strcmp(w->section, section) != 0) {
        if (s->whens == SWEEP_WHENS)
            return err_make(ERR_INPUT, "more than %d sections [when ...]", SWEEP_WHENS);
        w = &s->when[s->whens++];
        TRY(arena_text(&w->section, r->arena, section, strlen(section)));
        TRY(split(&w->condition, section + strlen("when "), ' ', r->arena));
    }
    return option_list_add(&w->assignment, assignment, strlen(assignment), r->arena);
}

static err take_pair(void *context, const char *section, const char *name, const char *value)
{
    struct reading *r = context;
    char assignment[LABEL_BYTES];
    if (!strcmp(section, "sweep")) {
        if (sweep_has(r->sweep, name))
            return err_make(ERR_INPUT, "[sweep] has two lists of %s", name);
        return sweep_set(r->sweep, name, value, r->arena);
    }
    if (strncmp(section, "when ", 5) != 0) return ERR_NONE;
    int n = snprintf(assignment, sizeof assignment, "%s=%s", name, value);
    if (n >= (int)sizeof assignment) return err_make(ERR_INPUT, "%s: the value is too long", name);
    return take_when(r, section, assignment);
}

err sweep_read(struct sweep *out, const char *path, struct arena *arena)
{
    struct reading r = {out, arena};
    *out = (struct sweep){.cells = 1};
    return path ? option_read_pairs(path, &(struct option_reader){take_pair, &r}) : ERR_NONE;
}

/* ---- cells ---- */

/* A part of a folder's name; letters that a name cannot have become '-'. The method needs no key
 * in front. */
static void add_name(char name[LIMIT_NAME_BYTES], const struct sweep_axis *a, const char *value)
{
    char part[NAME_PART_BYTES];
    snprintf(part, sizeof part, "%s%s%s", strcmp(a->key, "run.method") ? a->flag : "",
             strcmp(a->key, "run.method") ? "-" : "", value);
    for (char *c = part; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c)) *c = '-';
    size_t used = strlen(name);
    snprintf(name + used, LIMIT_NAME_BYTES - used, "%s%s", used ? "_" : "", part);
}

static void add_label(char label[LABEL_BYTES], const char *flag, const char *value)
{
    size_t used = strlen(label);
    snprintf(label + used, LABEL_BYTES - used, "%s%s=%.100s", used ? " " : "", flag, value);
}

/* Long values may be cut to the same name, so then the number of the cell is added. */
static void make_unique(struct sweep_cell *cell, size_t n)
{
    char *name = cell[n].name, number[16];
    bool good = text_is_name(name, LIMIT_NAME_BYTES - 1);
    for (size_t i = 0; i < n && good; i++)
        good = strcmp(cell[i].name, name) != 0;
    if (good) return;
    int bytes = snprintf(number, sizeof number, "cell%zu_", n + 1);
    memmove(name + bytes, name, LIMIT_NAME_BYTES - (size_t)bytes);
    memcpy(name, number, (size_t)bytes);
    name[LIMIT_NAME_BYTES - 1] = 0;
}

static err make_cell(struct sweep_cell *cell, const struct sweep *s, size_t n, struct arena *arena)
{
    struct sweep_cell *c = &cell[n];
    char label[LABEL_BYTES] = "", group[LABEL_BYTES] = "", one[LABEL_BYTES];
    size_t block = s->cells, rest = n;
    c->seed = "";
    for (size_t i = 0; i < s->axes; i++) {
        const struct sweep_axis *a = &s->axis[i];
        block /= a->values;
        const char *value = a->value[rest / block];
        rest %= block;
        bool seed = !strcmp(a->key, SWEEP_SEED);
        snprintf(one, sizeof one, "%s=%s", a->key, value);
        TRY(option_list_add(&c->values, one, strlen(one), arena));
        if (seed) c->seed = value;
        add_label(label, a->flag, value);
        if (!seed) add_label(group, a->flag, value);
        add_name(c->name, a, value);
    }
    make_unique(cell, n);
    TRY(arena_text(&c->label, arena, label, strlen(label)));
    return arena_text(&c->group, arena, group, strlen(group));
}

err sweep_cells(struct sweep_cell **out, const struct sweep *s, struct arena *arena)
{
    struct sweep_cell *cell = NULL;
    TRY(arena_take(&cell, arena, s->cells, sizeof *cell));
    for (size_t i = 0; i < s->cells; i++)
        TRY(make_cell(cell, s, i, arena));
    *out = cell;
    return ERR_NONE;
}
