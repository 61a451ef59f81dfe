/* Options as tables, for fedlora's commands and for fedlorad.
 *
 * One row is one option: its flag, its key in a configuration file, default, range and help. The
 * value is written into the caller's struct at the row's offset:
 *
 *   static const struct option_row rows[] = {
 *       {.flag = "rank", .key = "train.rank", .kind = OPTION_INT,
 *        .at = offsetof(struct opts, rank), .fallback = "16", .least = 1, .most = LIMIT_RANK,
 *        .help = "rank of the LoRA factors"},
 *
 * Order of use: option_defaults(), option_read_file() and option_assign(), option_read_args(),
 * option_check(). A later source overrides an earlier one. Errors are ERR_INPUT and name the flag
 * (or the file and line), the value and what was expected; for an unknown name they suggest the
 * nearest known one. A help text must stand alone, because --help prints it on a line by itself. */
#ifndef BASE_OPTION_H
#define BASE_OPTION_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_FLAG,     /* bool                --name, --no-name; in a file yes, no, true, false */
    OPTION_INT,      /* int64_t             in [least, most] */
    OPTION_NUM,      /* double              in [least, most], finite */
    OPTION_SIZE,     /* uint64_t            bytes: 512, 40MB, 2GiB */
    OPTION_DURATION, /* uint64_t            milliseconds: 250ms, 90s, 15m, 2h */
    OPTION_TEXT,     /* const char *        NULL when absent */
    OPTION_CHOICE,   /* int                 index into `choices` */
    OPTION_LIST,     /* struct option_list  may be repeated; values are not split */
};

struct option_list {
    size_t count;
    const char **item;
};
/* Appends a copy of the text to a list that was made by this function, or is zero. */
err option_list_add(struct option_list *list, const char *text, size_t bytes, struct arena *arena);

struct option_row {
    const char *flag;           /* "rank" for --rank; NULL: not on the command line */
    const char *key;            /* "section.key" in a file; NULL: not in files */
    char letter;                /* 'o' for -o; 0: none */
    enum option_kind kind;      /* type of the value */
    bool required;              /* option_check() fails without it; TEXT and LIST only */
    bool sectioned;             /* a second key: option_set.section */
    size_t at;                  /* offsetof the value in the options struct */
    const char *fallback;       /* default as text; NULL: the struct's zero */
    double least, most;         /* inclusive range of INT and NUM; both 0: no bound */
    const char *const *choices; /* words of a CHOICE, NULL-terminated */
    const char *value;          /* name of the value in --help, "FILE"; NULL: chosen by kind */
    const char *help;           /* one line; a flag that is on by default is printed as --no-NAME,
                                   so its help describes --no-NAME */
};

struct option_table {
    const struct option_row *row;
    size_t count;
};

/* The tables of one command (its own and the common ones), all for one options struct. */
struct option_set {
    const struct option_table *table;
    size_t count;
    /* Sections of a file that are for other commands, NULL-terminated; or NULL. Their keys are
     * skipped unless a row has them. A name that ends with a space stands for all sections that
     * begin with it. */
    const char *const *skipped;
    /* True for a key without a row here that another command has: it is skipped in a file, which is
     * one for all commands. NULL: such a key is an error. */
    bool (*others)(const char *key);
    const char *only;    /* the only section that is read from a file; NULL: all */
    const char *section; /* rows with `sectioned` also have the key "section.flag" in a file */
};

/* The n-th row of all tables in order, or NULL past the last. */
const struct option_row *option_row_at(const struct option_set *set, size_t n);
bool option_has_bounds(const struct option_row *row);

/* Sets every row's default. */
err option_defaults(void *options, const struct option_set *set, struct arena *arena);
/* Reads lines `[section]` and `key = value`. */
err option_read_file(void *options, const struct option_set *set, const char *path,
                     struct arena *arena);
/* Calls take() for each `key = value` of a file, in order. Its first error ends the reading, and
 * gets the file and the line in front. */
struct option_reader {
    err (*take)(void *context, const char *section, const char *name, const char *value);
    void *context;
};
err option_read_pairs(const char *path, const struct option_reader *reader);
/* One "section.key=value", the argument of --set; a list grows. */
err option_assign(void *options, const struct option_set *set, const char *assignment,
                  struct arena *arena);
/* Several of them, as one source: the first value of a list replaces an earlier list. */
err option_assign_all(void *options, const struct option_set *set,
                      const struct option_list *assignments, struct arena *arena);
/* argv[0..argc) without program and command. Arguments that are not options go to *rest in order;
 * everything after "--" does too. */
err option_read_args(void *options, const struct option_set *set, int argc, char **argv,
                     struct option_list *rest, struct arena *arena);
/* Fails when a required row has no value; call it after all sources. */
err option_check(const void *options, const struct option_set *set);
/* The options part of --help: flag, value, help, default; wrapped at 100 columns. */
err option_help(struct bytes *out, const struct option_set *set);
/* "--no-" before the name of a flag that is on by default, because that form has an effect; "--"
 * before every other option. */
const char *option_prefix(const struct option_row *row);
/* The value as --help prints it: "FILE", "f32|bf16|auto", "N"; nothing for a flag. */
err option_value_name(struct bytes *out, const struct option_row *row);
/* Length of "section" in the key "section.name"; 0 without a section. */
size_t option_section_size(const char *key);
/* Appends the words of `text` and a newline. The cursor is at `column`; lines are wrapped at 100
 * columns and continued at column `indent`. */
err option_help_wrap(struct bytes *out, const char *text, size_t indent, size_t column);
/* A commented sample configuration file with every key and default. */
err option_sample(struct bytes *out, const struct option_set *set);
/* A configuration file with the values of `options` that are not those of `defaults`, a struct of
 * the same type after option_defaults(). Reading it gives the same values. */
struct option_write {
    const void *options, *defaults;
    const struct option_set *set;
};
err option_write(struct bytes *out, const struct option_write *write);
/* The value of a row as a file would have it, of a list the last item; false: none. */
/* Copies one value between two structs. Not for TEXT and LIST, whose memory belongs to an arena. */
void option_copy(void *to, const void *from, const struct option_row *row);
bool option_text(char *out, size_t bytes, const void *options, const struct option_row *row);
/* The row of a key "section.name", or NULL. */
const struct option_row *option_row_of_key(const struct option_set *set, const char *key);

#endif
