/* Values, files and the command line of base/option.h; help texts and sample files are in
 * option_help.c. */
#include "base/option.h"

#include "base/file.h"
#include "base/text.h"

#include <ini.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPTION_FILE_BYTES = 16 << 20,
    OPTION_LINE_BYTES = 4 << 20, /* a line of 100,000 members with settings of their own */
    OPTION_NAMES_MAX = 512,
    KEY_BYTES = 256
};

/* ---- one value ---- */

static void *value_at(void *options, const struct option_row *row)
{
    return (uint8_t *)options + row->at;
}

bool option_has_bounds(const struct option_row *row)
{
    return row->least != 0 || row->most != 0;
}

static err parse_flag(bool *out, const char *text)
{
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false",
                                                                                "off", "0"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (strcmp(text, yes[i]) != 0 && strcmp(text, no[i]) != 0) continue;
        *out = strcmp(text, yes[i]) == 0;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "\"%.60s\": expected yes or no", text);
}

/* The error lists the words, which are few, and suggests the nearest one. */
static err parse_choice(int *out, const struct option_row *row, const char *text)
{
    char known[256];
    size_t used = 0, count = 0;
    for (; row->choices[count]; count++) {
        if (strcmp(text, row->choices[count]) == 0) {
            *out = (int)count;
            return ERR_NONE;
        }
        int n = snprintf(known + used, sizeof known - used, "%s%s", count ? ", " : "",
                         row->choices[count]);
        used += n > 0 && (size_t)n < sizeof known - used ? (size_t)n : 0;
    }
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "\"%.60s\": expected %s%s%s", text, count > 1 ? "one of " : "",
                    known, text_suggestion(near, text, row->choices, count));
}

/* The list grows by doubling inside the arena; old lists are wasted, but they are short and few. */
err option_list_add(struct option_list *list, const char *text, size_t bytes, struct arena *arena)
{
    if ((list->count & (list->count - 1)) == 0) { /* 0, 1, 2, 4, ...: full */
        const char **item = NULL;
        TRY(arena_take(&item, arena, list->count ? list->count * 2 : 1, sizeof *item));
        if (list->count) memcpy(item, list->item, list->count * sizeof *item);
        list->item = item;
    }
    const char *copy = NULL;
    TRY(arena_text(&copy, arena, text, bytes));
    list->item[list->count++] = copy;
    return ERR_NONE;
}

static err value_set(void *options, const struct option_row *row, const char *text,
                     struct arena *arena)
{
    void *at = value_at(options, row);
    bool bounds = option_has_bounds(row);
    switch (row->kind) {
    case OPTION_FLAG:
        return parse_flag(at, text);
    case OPTION_INT:
        return text_parse_int(at, text, bounds ? (int64_t)row->least : INT64_MIN,
                              bounds ? (int64_t)row->most : INT64_MAX);
    case OPTION_NUM:
        return text_parse_num(at, text, bounds ? row->least : -1e300, bounds ? row->most : 1e300);
    case OPTION_SIZE:
        return text_parse_size(at, text);
    case OPTION_DURATION:
        return text_parse_duration_ms(at, text);
    case OPTION_TEXT:
        return arena_text(at, arena, text, strlen(text));
    case OPTION_CHOICE:
        return parse_choice(at, row, text);
    case OPTION_LIST:
        return option_list_add(at, text, strlen(text), arena);
    }
    REQUIRE(!"an option of unknown kind");
    return ERR_NONE;
}

/* ---- finding rows ---- */

const struct option_row *option_row_at(const struct option_set *set, size_t n)
{
    for (size_t t = 0; t < set->count; t++) {
        if (n < set->table[t].count) return &set->table[t].row[n];
        n -= set->table[t].count;
    }
    return NULL;
}

/* Only whole names, because an abbreviation that is unique today would become ambiguous with a new
 * option. */
static const struct option_row *row_of_flag(const struct option_set *set, const char *name,
                                            size_t size)
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)); i++)
        if (row->flag && strlen(row->flag) == size && memcmp(row->flag, name, size) == 0)
            return row;
    return NULL;
}

static const struct option_row *row_of_letter(const struct option_set *set, char letter)
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)); i++)
        if (row->letter == letter) return row;
    return NULL;
}

static bool is_second_key(const struct option_set *set, const struct option_row *row,
                          const char *key)
{
    size_t n = set->section ? strlen(set->section) : 0;
    return n && row->sectioned && strncmp(key, set->section, n) == 0 && key[n] == '.' &&
           strcmp(key + n + 1, row->flag) == 0;
}

const struct option_row *option_row_of_key(const struct option_set *set, const char *key)
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)); i++)
        if ((row->key && strcmp(row->key, key) == 0) || is_second_key(set, row, key)) return row;
    return NULL;
}

static const char *nearest_flag(const struct option_set *set, const char *name)
{
    const char *known[OPTION_NAMES_MAX];
    size_t count = 0;
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)) && count < OPTION_NAMES_MAX; i++)
        if (row->flag) known[count++] = row->flag;
    return text_nearest(name, known, count);
}

static err unknown_key(const struct option_set *set, const char *key)
{
    const char *known[OPTION_NAMES_MAX];
    size_t count = 0;
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)) && count < OPTION_NAMES_MAX; i++)
        if (row->key) known[count++] = row->key;
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "unknown key %.80s%s", key,
                    text_suggestion(near, key, known, count));
}

/* A list in a later source replaces the list of an earlier one, so the first value in each call
 * clears the list. Rows are remembered by address; one call names few lists. */
struct seen {
    const struct option_row *row[64];
    size_t count;
};

static err seen_list(struct seen *seen, void *options, const struct option_row *row)
{
    if (row->kind != OPTION_LIST) return ERR_NONE;
    for (size_t i = 0; i < seen->count; i++)
        if (seen->row[i] == row) return ERR_NONE;
    if (seen->count == sizeof seen->row / sizeof *seen->row)
        return err_make(ERR_INPUT, "too many different list options: expected at most %zu",
                        sizeof seen->row / sizeof *seen->row);
    seen->row[seen->count++] = row;
    *(struct option_list *)value_at(options, row) = (struct option_list){0};
    return ERR_NONE;
}

/* Two rows of the same name would hide each other. Such a mistake in a table is found here at the
 * first start of the program, before a user sees its effect. */
static void require_unique(const struct option_set *set)
{
    const struct option_row *a, *b;
    for (size_t i = 0; (a = option_row_at(set, i)); i++) {
        REQUIRE(a->help && (a->flag || a->key));
        for (size_t j = 0; j < i; j++) {
            b = option_row_at(set, j);
            REQUIRE(!a->flag || !b->flag || strcmp(a->flag, b->flag) != 0);
            REQUIRE(!a->key || !b->key || strcmp(a->key, b->key) != 0);
            REQUIRE(!a->letter || a->letter != b->letter);
        }
    }
}

err option_defaults(void *options, const struct option_set *set, struct arena *arena)
{
    const struct option_row *row;
    require_unique(set);
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        if (!row->fallback) continue;
        err e = value_set(options, row, row->fallback, arena);
        if (err_is(e)) return err_in(e, "default value of %s", row->flag ? row->flag : row->key);
    }
    return ERR_NONE;
}

/* ---- files ---- */

/* State of one file being read; `e` is the first error, at which reading stops. */
struct reading {
    const struct option_reader *reader;
    const char *path, *next; /* the rest of the text */
    int line;
    err e;
};

/* inih asks for one line at a time, so this function can count the lines for error messages. */
static char *read_line(char *out, int room, void *context)
{
    struct reading *r = context;
    if (!*r->next || err_is(r->e)) return NULL;
    r->line++;
    size_t size = strcspn(r->next, "\n");
    if (size + 2 > (size_t)room) {
        r->e = err_make(ERR_INPUT, "%s:%d: the line is too long: expected at most %d bytes",
                        r->path, r->line, room - 2);
        return NULL;
    }
    memcpy(out, r->next, size);
    out[size] = '\n';
    out[size + 1] = 0;
    r->next += size + (r->next[size] == '\n');
    return out;
}

/* Called by inih for each pair; 0 stops it. inih cuts longer names of sections and keys off. */
static int read_pair(void *context, const char *section, const char *name, const char *value)
{
    enum { INIH_NAME_BYTES = 50 };
    struct reading *r = context;
    if (err_is(r->e)) return 0;
    err e = strlen(section) + 1 < INIH_NAME_BYTES && strlen(name) + 1 < INIH_NAME_BYTES
                ? r->reader->take(r->reader->context, section, name, value)
                : err_make(ERR_INPUT, "%s.%s: expected names of less than %d bytes", section, name,
                           INIH_NAME_BYTES - 1);
    if (!err_is(e)) return 1;
    r->e = err_in(e, "%s:%d", r->path, r->line);
    return 0;
}

/* inih would cut a line at a zero byte silently, so such a file is refused. Its global settings
 * are set before each use; multi-line values are off because an indented line is more often a
 * mistake. */
err option_read_pairs(const char *path, const struct option_reader *reader)
{
    char *text = NULL;
    size_t size = 0;
    TRY(file_read_all(&text, &size, path, OPTION_FILE_BYTES));
    struct reading r = {.reader = reader, .path = path, .next = text};
    err e = ERR_NONE;
    if (strlen(text) != size) {
        e = err_make(ERR_INPUT, "%s: contains a zero byte: expected a text file", path);
        goto out;
    }
    ini_use_stack = false; /* a line (paths, lists of members) may exceed its stack buffer */
    ini_max_line = OPTION_LINE_BYTES;
    ini_initial_alloc = OPTION_LINE_BYTES;
    ini_allow_realloc = false;
    ini_allow_multiline = false;
    ini_stop_on_first_error = true;
    int result = ini_parse_stream(read_line, &r, read_pair, &r);
    if (err_is(r.e))
        e = r.e;
    else if (result < 0)
        e = err_make(ERR_MACHINE, "%s: no memory to read the file", path);
    else if (result > 0)
        e = err_make(ERR_INPUT, "%s:%d: expected [section] or key = value", path, r.line);
out:
    free(text);
    return e;
}

/* The struct that gets the values of a source. */
struct taking {
    void *options;
    const struct option_set *set;
    struct arena *arena;
    struct seen seen;
};

/* A name that ends with a space stands for all sections that begin with it. */
static bool is_skipped(const struct option_set *set, const char *section)
{
    for (const char *const *one = set->skipped; one && *one; one++) {
        size_t n = strlen(*one);
        if (n && (*one)[n - 1] == ' ' ? !strncmp(*one, section, n) : !strcmp(*one, section))
            return true;
    }
    return false;
}

static err take_value(struct taking *t, const char *key, const char *value)
{
    const struct option_row *row = option_row_of_key(t->set, key);
    if (!row) return unknown_key(t->set, key);
    TRY(seen_list(&t->seen, t->options, row));
    err e = value_set(t->options, row, value, t->arena);
    return err_is(e) ? err_in(e, "%s", key) : e;
}

static err take_pair(void *context, const char *section, const char *name, const char *value)
{
    struct taking *t = context;
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%.120s%s%.120s", section, *section ? "." : "", name);
    bool theirs = is_skipped(t->set, section) || (t->set->others && t->set->others(key));
    if (t->set->only && strcmp(t->set->only, section) != 0) return ERR_NONE;
    if (theirs && !option_row_of_key(t->set, key)) return ERR_NONE;
    return take_value(t, key, value);
}

err option_read_file(void *options, const struct option_set *set, const char *path,
                     struct arena *arena)
{
    struct taking taking = {.options = options, .set = set, .arena = arena};
    return option_read_pairs(path, &(struct option_reader){take_pair, &taking});
}

/* The key of "section.key=value", and the start of the value. */
static err split_assignment(char key[KEY_BYTES], const char **value, const char *assignment)
{
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment || equals - assignment >= KEY_BYTES)
        return err_make(ERR_INPUT, "\"%.80s\": expected section.key=value", assignment);
    snprintf(key, KEY_BYTES, "%.*s", (int)(equals - assignment), assignment);
    *value = equals + 1;
    return ERR_NONE;
}

err option_assign_all(void *options, const struct option_set *set,
                      const struct option_list *assignments, struct arena *arena)
{
    struct taking taking = {.options = options, .set = set, .arena = arena};
    char key[KEY_BYTES];
    const char *value = NULL;
    for (size_t i = 0; i < assignments->count; i++) {
        TRY(split_assignment(key, &value, assignments->item[i]));
        TRY(take_value(&taking, key, value));
    }
    return ERR_NONE;
}

err option_assign(void *options, const struct option_set *set, const char *assignment,
                  struct arena *arena)
{
    char key[KEY_BYTES];
    const char *value = NULL;
    TRY(split_assignment(key, &value, assignment));
    const struct option_row *row = option_row_of_key(set, key);
    if (!row) return unknown_key(set, key);
    err e = value_set(options, row, value, arena);
    return err_is(e) ? err_in(e, "%s", key) : e;
}

/* ---- the command line ---- */

/* State of one command line being read. */
struct args {
    void *options;
    const struct option_set *set;
    struct arena *arena;
    int argc, at;
    char **argv;
    struct seen seen;
};

/* `text` is the value after '=', or NULL if it is the next argument. */
static err args_set(struct args *a, const struct option_row *row, const char *shown,
                    const char *text)
{
    if (!text) {
        if (a->at + 1 >= a->argc)
            return err_make(ERR_INPUT, "%s needs a value: %s", shown, row->help ? row->help : "");
        text = a->argv[++a->at];
    }
    TRY(seen_list(&a->seen, a->options, row));
    err e = value_set(a->options, row, text, a->arena);
    return err_is(e) ? err_in(e, "%s", shown) : e;
}

/* "--no-name" is tried only after the whole name, so that an option may begin with "no-". */
static err args_long(struct args *a, const char *arg)
{
    const char *name = arg + 2, *equals = strchr(name, '=');
    size_t size = equals ? (size_t)(equals - name) : strlen(name);
    char shown[80];
    snprintf(shown, sizeof shown, "--%.*s", size > 70 ? 70 : (int)size, name);
    const struct option_row *row = row_of_flag(a->set, name, size);
    if (row && row->kind == OPTION_FLAG)
        return args_set(a, row, shown, equals ? equals + 1 : "yes");
    if (row) return args_set(a, row, shown, equals ? equals + 1 : NULL);
    if (size > 3 && !equals && strncmp(name, "no-", 3) == 0) {
        row = row_of_flag(a->set, name + 3, size - 3);
        if (row && row->kind == OPTION_FLAG) return args_set(a, row, shown, "no");
    }
    const char *nearest = nearest_flag(a->set, shown + 2);
    return err_make(ERR_INPUT, "unknown option %s%s%s%s", shown, nearest ? "; did you mean --" : "",
                    nearest ? nearest : "", nearest ? "?" : "");
}

/* "-o FILE" and "-oFILE". Letters are not combined ("-qv"), because the second one could be a
 * value. */
static err args_short(struct args *a, const char *arg)
{
    char shown[3] = {'-', arg[1], 0};
    const struct option_row *row = row_of_letter(a->set, arg[1]);
    if (!row) return err_make(ERR_INPUT, "unknown option %.40s", arg);
    if (row->kind == OPTION_FLAG) {
        if (arg[2]) return err_make(ERR_INPUT, "%s takes no value", shown);
        return args_set(a, row, shown, "yes");
    }
    return args_set(a, row, shown, arg[2] ? arg + 2 : NULL);
}

/* A lone "-" is an argument, as many programs use it for standard input. */
err option_read_args(void *options, const struct option_set *set, int argc, char **argv,
                     struct option_list *rest, struct arena *arena)
{
    struct args a = {.options = options, .set = set, .arena = arena, .argc = argc, .argv = argv};
    struct option_list others = {0};
    bool ended = false;
    for (; a.at < argc; a.at++) {
        const char *arg = argv[a.at];
        if (ended || arg[0] != '-' || !arg[1])
            TRY(option_list_add(&others, arg, strlen(arg), arena));
        else if (strcmp(arg, "--") == 0)
            ended = true;
        else if (arg[1] == '-')
            TRY(args_long(&a, arg));
        else
            TRY(args_short(&a, arg));
    }
    *rest = others;
    return ERR_NONE;
}

err option_check(const void *options, const struct option_set *set)
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        if (!row->required) continue;
        /* Only texts and lists can tell "absent" from a value. */
        REQUIRE(row->kind == OPTION_TEXT || row->kind == OPTION_LIST);
        const uint8_t *at = (const uint8_t *)options + row->at;
        const char *text;
        memcpy(&text, at, sizeof text);
        bool present = row->kind == OPTION_TEXT
                           ? text != NULL
                           : ((const struct option_list *)(const void *)at)->count > 0;
        if (present) continue;
        return err_make(ERR_INPUT, "%s%s is missing: %s", row->flag ? "--" : "",
                        row->flag ? row->flag : row->key, row->help);
    }
    return ERR_NONE;
}
