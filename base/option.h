/* One table row an option: it makes the flag, the configuration file's key, the default, the range
 * check and the help, for fedlora's commands and for fedlorad. Values land in the caller's struct
 * by offset.
 *
 *   static const struct option_row rows[] = {
 *       {.flag = "rank", .key = "train.rank", .kind = OPTION_INT, .at = offsetof(struct opts,
 * rank), .fallback = "16", .least = 1, .most = LIMIT_RANK, .help = "rank of the LoRA factors"},
 *
 * Precedence: the command line over the file over the defaults. Errors name the flag, or the file
 * and line, the value, and what was expected; unknown names suggest the nearest known one. */
#ifndef BASE_OPTION_H
#define BASE_OPTION_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_FLAG,     /* bool: --name, --no-name; in a file yes/no/true/false */
    OPTION_INT,      /* int64_t in [least, most] */
    OPTION_NUM,      /* double in [least, most] */
    OPTION_SIZE,     /* uint64_t bytes */
    OPTION_DURATION, /* uint64_t milliseconds */
    OPTION_TEXT,     /* const char *, NULL when absent */
    OPTION_CHOICE,   /* int: index into `choices` */
    OPTION_LIST,     /* struct option_list: the option may be repeated; each value kept whole */
};

struct option_list {
    size_t count;
    const char **item;
};

struct option_row {
    const char *flag; /* "rank": --rank; NULL: file only */
    const char *key;  /* "section.key" in a file; NULL: command line only */
    char letter;      /* 'o': -o too; 0: none */
    enum option_kind kind;
    bool required;
    size_t at;                  /* offsetof in the options struct */
    const char *fallback;       /* default as text; NULL: zero */
    double least, most;         /* for INT and NUM, inclusive; both 0: no bound */
    const char *const *choices; /* NULL-terminated */
    const char *value;          /* the value's name in the help: "FILE", "N" */
    const char *help;
};

struct option_table {
    const struct option_row *row;
    size_t count;
};

/* The tables (a command's own and the common ones) share one options struct. */
struct option_set {
    const struct option_table *table;
    size_t count;
};

/* The n-th row over all tables, or NULL past the last. */
const struct option_row *option_row_at(const struct option_set *set, size_t n);
bool option_has_bounds(const struct option_row *row);

/* Sets every row's default. */
err option_defaults(void *options, const struct option_set *set, struct arena *arena);
/* Reads `[section]` / `key = value`; unknown key, bad value: ERR_INPUT "file.ini:12: ...". */
err option_read_file(void *options, const struct option_set *set, const char *path,
                     struct arena *arena);
/* One "section.key=value", as of --set. */
err option_assign(void *options, const struct option_set *set, const char *assignment,
                  struct arena *arena);
/* argv[0..argc) without program and command. What is no option goes to *rest in order; "--" ends
 * options. */
err option_read_args(void *options, const struct option_set *set, int argc, char **argv,
                     struct option_list *rest, struct arena *arena);
/* After all sources: required rows are present. */
err option_check(const void *options, const struct option_set *set);
/* The options part of --help: flag, value, help, default; wrapped at 100 columns. */
err option_help(struct bytes *out, const struct option_set *set);
/* Words of `text` from column `column` on, wrapped at 100 columns to column `indent`, and a
 * newline.
 */
err option_help_wrap(struct bytes *out, const char *text, size_t indent, size_t column);
/* A commented sample configuration file with every key and default. */
err option_sample(struct bytes *out, const struct option_set *set);

#endif
