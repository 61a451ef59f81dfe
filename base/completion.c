#include "base/completion.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

const char *const completion_shells[] = {"bash", "zsh", "fish", NULL};

/* ---- parts that all shells need ---- */

/* A value can be completed by one of a few words, a file or a folder, or not at all. */
enum value_kind { VALUE_NONE, VALUE_WORDS, VALUE_FILE, VALUE_DIR };

static enum value_kind value_kind(const struct option_row *row)
{
    if (row->kind == OPTION_CHOICE) return VALUE_WORDS;
    if (!row->value) return VALUE_NONE;
    if (!strcmp(row->value, "DIR")) return VALUE_DIR;
    bool file = !strncmp(row->value, "FILE", 4) || !strcmp(row->value, "PATH");
    return file ? VALUE_FILE : VALUE_NONE;
}

/* The length of the first word of "run create" and of "run"; *second is NULL for one word. */
static size_t first_word(const char **second, const char *name)
{
    size_t size = strcspn(name, " ");
    *second = name[size] ? name + size + 1 : NULL;
    return size;
}

static bool same_first(const char *a, const char *b)
{
    size_t size = strcspn(a, " ");
    return strcspn(b, " ") == size && memcmp(a, b, size) == 0;
}

/* True for the first command of a group, so that its word is offered once. */
static bool is_first(const struct program *c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (same_first(c->command[i].name, c->command[n].name)) return false;
    return true;
}

static bool has_group(const struct program *c, size_t n)
{
    const char *second;
    for (size_t i = 0; i < c->count; i++)
        if (same_first(c->command[i].name, c->command[n].name)) {
            first_word(&second, c->command[i].name);
            if (second) return true;
        }
    return false;
}

/* Text between single quotes. A quote in it ends them, adds itself and begins them again; in fish a
 * backslash also has a meaning there. `also` are characters that the shell's own tables would take
 * as signs, and that get a backslash. */
static err quoted(struct bytes *out, const char *text, const char *also)
{
    for (; *text; text++) {
        if (*text == '\'') {
            TRY(bytes_printf(out, "'\\''"));
            continue;
        }
        if (strchr(also, *text)) TRY(bytes_append(out, "\\", 1));
        TRY(bytes_append(out, text, 1));
    }
    return ERR_NONE;
}

static err choices(struct bytes *out, const struct option_row *row)
{
    for (size_t i = 0; row->choices[i]; i++)
        TRY(bytes_printf(out, "%s%s", i ? " " : "", row->choices[i]));
    return ERR_NONE;
}

/* Calls put() for each option of the command that has a flag. */
static err each_option(struct bytes *out, const struct program_command *command,
                       err (*put)(struct bytes *, const struct option_row *))
{
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(&command->set, i)); i++)
        if (row->flag) TRY(put(out, row));
    return ERR_NONE;
}

/* ---- bash ---- */

static err bash_flag(struct bytes *out, const struct option_row *row)
{
    return bytes_printf(out, " %s%s", option_prefix(row), row->flag);
}

/* In the words of the script's function: "file", "dir" or "words f32 bf16". A value that cannot be
 * completed is "none", because files would be offered otherwise. */
static err bash_value(struct bytes *out, const struct option_row *row)
{
    static const char *const words[] = {"none", "words ", "file", "dir"};
    if (row->kind == OPTION_FLAG) return ERR_NONE;
    enum value_kind kind = value_kind(row);
    TRY(bytes_printf(out, "        --%s", row->flag));
    if (row->letter) TRY(bytes_printf(out, "|-%c", row->letter));
    TRY(bytes_printf(out, ") kind='%s", words[kind]));
    if (kind == VALUE_WORDS) TRY(choices(out, row));
    return bytes_printf(out, "' ;;\n");
}

static err bash_tables(struct bytes *out, const struct program *c)
{
    TRY(bytes_printf(out, "    case $command in\n"));
    for (size_t i = 0; i < c->count; i++) {
        const struct program_command *command = &c->command[i];
        TRY(bytes_printf(out, "    '%s')\n        options='", command->name));
        TRY(each_option(out, command, bash_flag));
        TRY(bytes_printf(out, "'\n        case $before in\n"));
        TRY(each_option(out, command, bash_value));
        TRY(bytes_printf(out, "        esac ;;\n"));
    }
    return bytes_printf(out, "    esac\n");
}

/* The words that may follow: of all groups, then those of each group. */
static err bash_words(struct bytes *out, const struct program *c)
{
    const char *second;
    TRY(bytes_printf(out, "    local first='"));
    for (size_t i = 0; i < c->count; i++)
        if (*c->command[i].name && is_first(c, i))
            TRY(bytes_printf(out, "%.*s ", (int)first_word(&second, c->command[i].name),
                             c->command[i].name));
    TRY(bytes_printf(out, "' second=''\n    case ${COMP_WORDS[1]} in\n"));
    for (size_t i = 0; i < c->count; i++) {
        if (!is_first(c, i) || !has_group(c, i)) continue;
        TRY(bytes_printf(out, "    %.*s) second='", (int)first_word(&second, c->command[i].name),
                         c->command[i].name));
        for (size_t j = i; j < c->count; j++) {
            first_word(&second, c->command[j].name);
            if (second && same_first(c->command[i].name, c->command[j].name))
                TRY(bytes_printf(out, "%s ", second));
        }
        TRY(bytes_printf(out, "' ;;\n"));
    }
    return bytes_printf(out, "    esac\n");
}

/* bash breaks words at "=", so "--name=value" arrives as three words. */
static err bash(struct bytes *out, const struct program *c)
{
    TRY(bytes_printf(out,
                     "# bash completion of %s\n_%s() {\n"
                     "    local now=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
                     "    local command='' options='' kind=''\n"
                     "    if [[ $now == '=' ]]; then now=''\n"
                     "    elif [[ $before == '=' ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
                     "    COMPREPLY=()\n",
                     c->name, c->name));
    TRY(bash_words(out, c));
    TRY(bytes_printf(
        out, "    if (( COMP_CWORD > 1 )) && [[ \" $first \" == *\" ${COMP_WORDS[1]} \"* ]]; then\n"
             "        command=${COMP_WORDS[1]}\n"
             "        if (( COMP_CWORD > 2 )) && [[ \" $second \" == *\" ${COMP_WORDS[2]} \"* ]]; "
             "then command+=\" ${COMP_WORDS[2]}\"; fi\n    fi\n"));
    TRY(bash_tables(out, c));
    return bytes_printf(
        out,
        "    case $kind in\n"
        "    words*) COMPREPLY=($(compgen -W \"${kind#words}\" -- \"$now\")); return ;;\n"
        "    file) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$now\")); return ;;\n"
        "    dir) compopt -o filenames; COMPREPLY=($(compgen -d -- \"$now\")); return ;;\n"
        "    none) return ;;\n"
        "    esac\n"
        "    if [[ $now == -* ]]; then COMPREPLY=($(compgen -W \"$options\" -- \"$now\"))\n"
        "    elif (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W \"$first\" -- \"$now\"))\n"
        "    elif (( COMP_CWORD == 2 )) && [[ $second ]]; then COMPREPLY=($(compgen -W \"$second\" "
        "-- \"$now\")); fi\n"
        "    if [[ $now != -* && -z $COMPREPLY ]] && (( COMP_CWORD > 1 )); then\n"
        "        compopt -o filenames; COMPREPLY=($(compgen -f -- \"$now\"))\n    fi\n"
        "}\ncomplete -F _%s %s\n",
        c->name, c->name);
}

/* ---- zsh ---- */

/* An argument of _arguments, '--rank[help]:N:'. An option that may be repeated has a star. */
static err zsh_option(struct bytes *out, const struct option_row *row)
{
    static const char *const signs = "[]:\\";
    for (int letter = row->letter != 0; letter >= 0; letter--) {
        TRY(bytes_printf(out, " \\\n            '%s", row->kind == OPTION_LIST ? "*" : ""));
        TRY(letter ? bytes_printf(out, "-%c", row->letter)
                   : bytes_printf(out, "%s%s", option_prefix(row), row->flag));
        TRY(bytes_printf(out, "["));
        TRY(quoted(out, row->help ? row->help : "", signs));
        TRY(bytes_printf(out, "]"));
        if (row->kind != OPTION_FLAG) {
            enum value_kind kind = value_kind(row);
            TRY(bytes_printf(out, ":value:"));
            if (kind == VALUE_FILE) TRY(bytes_printf(out, "_files"));
            if (kind == VALUE_DIR) TRY(bytes_printf(out, "_files -/"));
            if (kind == VALUE_WORDS) {
                TRY(bytes_printf(out, "("));
                TRY(choices(out, row));
                TRY(bytes_printf(out, ")"));
            }
        }
        TRY(bytes_printf(out, "'"));
    }
    return ERR_NONE;
}

static err zsh_word(struct bytes *out, const char *word, size_t size, const char *purpose)
{
    TRY(bytes_printf(out, " \\\n            '%.*s:", (int)size, word));
    TRY(quoted(out, purpose, ":\\"));
    return bytes_printf(out, "'");
}

/* The words of one level: all first words (group NULL), or the second words of one group. */
static err zsh_words(struct bytes *out, const struct program *c, const char *group)
{
    TRY(bytes_printf(out, "        words_here=("));
    for (size_t i = 0; i < c->count; i++) {
        const struct program_command *command = &c->command[i];
        const char *second;
        size_t size = first_word(&second, command->name);
        if (!group && *command->name && is_first(c, i))
            TRY(zsh_word(out, command->name, size,
                         second ? "a group of commands" : command->purpose));
        if (group && second && same_first(group, command->name))
            TRY(zsh_word(out, second, strlen(second), command->purpose));
    }
    return bytes_printf(out, ")\n        _describe command words_here; return\n");
}

static err zsh(struct bytes *out, const struct program *c)
{
    TRY(bytes_printf(out,
                     "#compdef %s\n_%s() {\n    local command=''\n    local -a words_here\n"
                     "    if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then\n",
                     c->name, c->name));
    TRY(zsh_words(out, c, NULL));
    TRY(bytes_printf(out, "    fi\n    (( CURRENT > 2 )) && command=$words[2]\n"));
    for (size_t i = 0; i < c->count; i++) {
        const char *second, *name = c->command[i].name;
        int size = (int)first_word(&second, name);
        if (!is_first(c, i) || !has_group(c, i)) continue;
        TRY(bytes_printf(out,
                         "    if [[ $command == '%.*s' ]] && (( CURRENT == 3 )) && "
                         "[[ $PREFIX != -* ]]; then\n",
                         size, name));
        TRY(zsh_words(out, c, name));
        TRY(bytes_printf(out, "    fi\n"));
    }
    /* A second word of a command is taken away, so that _arguments sees options alone. */
    for (size_t i = 0; i < c->count; i++) {
        if (!strchr(c->command[i].name, ' ')) continue;
        TRY(bytes_printf(out,
                         "    [[ \"$words[2] $words[3]\" == '%s' ]] && (( CURRENT > 3 )) && "
                         "{ command='%s'; shift words; (( CURRENT-- )) }\n",
                         c->command[i].name, c->command[i].name));
    }
    TRY(bytes_printf(out, "    [[ -n $command ]] && { shift words; (( CURRENT-- )) }\n"
                          "    case $command in\n"));
    for (size_t i = 0; i < c->count; i++) {
        TRY(bytes_printf(out, "    '%s')\n        _arguments -s", c->command[i].name));
        TRY(each_option(out, &c->command[i], zsh_option));
        TRY(bytes_printf(out, " \\\n            '*:file:_files' ;;\n"));
    }
    return bytes_printf(out, "    esac\n}\n_%s \"$@\"\n", c->name);
}

/* ---- fish ---- */

/* $at is the condition that the cursor is behind this command. */
static err fish_option(struct bytes *out, const struct option_row *row)
{
    static const char *const values[] = {"-x", "-x -a '", "-r -F",
                                         "-x -a '(__fish_complete_directories)'"};
    TRY(bytes_printf(out, "complete -c $program -n $at -l %s%s", option_prefix(row) + 2,
                     row->flag));
    if (row->letter) TRY(bytes_printf(out, " -s %c", row->letter));
    if (row->kind != OPTION_FLAG) {
        enum value_kind kind = value_kind(row);
        TRY(bytes_printf(out, " %s", values[kind]));
        if (kind == VALUE_WORDS) TRY(choices(out, row));
        if (kind == VALUE_WORDS) TRY(bytes_printf(out, "'"));
    }
    TRY(bytes_printf(out, " -d '"));
    TRY(quoted(out, row->help ? row->help : "", "\\"));
    return bytes_printf(out, "'\n");
}

static err fish_word(struct bytes *out, const struct program *c, size_t n)
{
    const char *second, *name = c->command[n].name;
    int size = (int)first_word(&second, name);
    if (*name && is_first(c, n)) {
        TRY(bytes_printf(out, "complete -c %s -n '__%s_at' -f -a %.*s -d '", c->name, c->name, size,
                         name));
        TRY(quoted(out, second ? "a group of commands" : c->command[n].purpose, "\\"));
        TRY(bytes_printf(out, "'\n"));
    }
    if (!second) return ERR_NONE;
    TRY(bytes_printf(out, "complete -c %s -n '__%s_at %.*s' -f -a %s -d '", c->name, c->name, size,
                     name, second));
    TRY(quoted(out, c->command[n].purpose, "\\"));
    return bytes_printf(out, "'\n");
}

static err fish(struct bytes *out, const struct program *c)
{
    TRY(bytes_printf(out,
                     "# fish completion of %s\n"
                     "function __%s_at --description 'true at the command of these words'\n"
                     "    set -l words (commandline -opc)[2..-1]\n"
                     "    set -l known",
                     c->name, c->name));
    for (size_t i = 0; i < c->count; i++)
        if (*c->command[i].name) TRY(bytes_printf(out, " '%s'", c->command[i].name));
    TRY(bytes_printf(out, "\n    set -l here \"$words[1]\"\n"
                          "    contains -- \"$words[1..2]\" $known; and set here \"$words[1..2]\"\n"
                          "    test \"$here\" = \"$argv\"\nend\n"));
    for (size_t i = 0; i < c->count; i++)
        TRY(fish_word(out, c, i));
    TRY(bytes_printf(out, "set -l program %s\n", c->name));
    for (size_t i = 0; i < c->count; i++) {
        TRY(bytes_printf(out, "set -l at '__%s_at %s'\n", c->name, c->command[i].name));
        TRY(each_option(out, &c->command[i], fish_option));
    }
    return ERR_NONE;
}

err completion_script(struct bytes *out, enum completion_shell shell, const struct program *program)
{
    static err (*const made[])(struct bytes *, const struct program *) = {bash, zsh, fish};
    return made[shell](out, program);
}
