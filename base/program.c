#include "base/program.h"

#include "base/completion.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { PAGE_BYTES_MAX = 4 << 20, SECTIONS = 8, NAME_BYTES = 128 };

/* Copies sections up to the one without a title; `n` are filled. */
static size_t add_sections(struct man_section out[SECTIONS], size_t n,
                           const struct man_section *from)
{
    for (; from && from->title; from++) {
        REQUIRE(n + 1 < SECTIONS);
        out[n++] = *from;
    }
    return n;
}

/* ---- pages ---- */

/* The list of commands is a section of the program's page. */
static err commands_text(struct bytes *out, const struct program *p)
{
    char name[NAME_BYTES];
    for (size_t i = 0; i < p->count; i++) {
        const struct program_command *c = &p->command[i];
        if (!*c->name) continue;
        man_name(name, sizeof name, p->name, c->name);
        TRY(bytes_printf(out, "%s(%d)\t%s.\n", name, p->section, c->purpose));
    }
    return ERR_NONE;
}

static err program_page(struct bytes *out, const struct program *p, const char *date)
{
    struct bytes commands = {.max = PAGE_BYTES_MAX};
    struct man_section after[SECTIONS] = {{0}};
    char synopsis[NAME_BYTES];
    err e = ERR_NONE;
    size_t n = 0;
    TRY_OUT(e, commands_text(&commands, p));
    if (commands.size) after[n++] = (struct man_section){"COMMANDS", (const char *)commands.data};
    n = add_sections(after, n, p->after);
    add_sections(after, n, p->common);
    snprintf(synopsis, sizeof synopsis, "%s COMMAND [options]", p->name);
    struct man_page page = {.name = p->name,
                            .section = p->section,
                            .version = FEDLORA_VERSION,
                            .date = date,
                            .purpose = p->purpose,
                            .synopsis = synopsis,
                            .before = p->before,
                            .after = after,
                            .see = p->see};
    for (size_t i = 0; i < p->count; i++) {
        if (*p->command[i].name) continue;
        page.set = &p->command[i].set;
        page.synopsis = p->command[i].usage;
    }
    e = man_page(out, &page);
out:
    bytes_close(&commands);
    return e;
}

static err command_page(struct bytes *out, const struct program *p, const struct program_command *c,
                        const char *date)
{
    struct bytes details = {.max = PAGE_BYTES_MAX}, synopsis = {.max = PAGE_BYTES_MAX};
    struct bytes see = {.max = PAGE_BYTES_MAX}, example = {.max = PAGE_BYTES_MAX};
    struct man_section after[SECTIONS] = {{0}};
    char name[NAME_BYTES];
    err e = ERR_NONE;
    size_t n = 0;
    if (c->details) {
        TRY_OUT(e, c->details(&details));
        after[n++] = (struct man_section){"DETAILS", (const char *)details.data};
    }
    if (c->example) {
        TRY_OUT(e, bytes_printf(&example, "  %s\n", c->example));
        after[n++] = (struct man_section){"EXAMPLE", (const char *)example.data};
    }
    add_sections(after, n, p->common);
    man_name(name, sizeof name, p->name, c->name);
    TRY_OUT(e, bytes_printf(&synopsis, "%s %s %s", p->name, c->name, c->usage));
    TRY_OUT(e, bytes_printf(&see, "%s(%d), %s", p->name, p->section, p->see));
    e = man_page(out, &(struct man_page){.name = name,
                                         .section = p->section,
                                         .version = FEDLORA_VERSION,
                                         .date = date,
                                         .purpose = c->purpose,
                                         .synopsis = (const char *)synopsis.data,
                                         .set = &c->set,
                                         .after = after,
                                         .see = (const char *)see.data});
out:
    bytes_close(&details);
    bytes_close(&synopsis);
    bytes_close(&see);
    bytes_close(&example);
    return e;
}

/* The page of "" is that of the program. */
static err page_of(struct bytes *out, const struct program *p, const char *command)
{
    const char *known[LIMIT_COMMANDS];
    char near[TEXT_SUGGESTION_BYTES], date[16];
    man_date(date);
    if (!*command) return program_page(out, p, date);
    REQUIRE(p->count <= LIMIT_COMMANDS);
    for (size_t i = 0; i < p->count; i++) {
        if (!strcmp(p->command[i].name, command)) return command_page(out, p, &p->command[i], date);
        known[i] = p->command[i].name;
    }
    return err_make(ERR_INPUT, "--man: unknown command %.60s%s", command,
                    text_suggestion(near, command, known, p->count));
}

/* ---- files ---- */

/* Unlike other output these are for everybody, and replaced without a question: an installation is
 * repeated. */
static err write_file(const char *dir, const char *folder, const char *name,
                      const struct bytes *text)
{
    char parent[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    TRY(file_join(parent, sizeof parent, dir, folder));
    TRY(file_make_public_dirs(parent));
    TRY(file_join(path, sizeof path, parent, name));
    TRY(file_write(path, text->data, text->size, /*replace*/ true));
    return chmod(path, 0644) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
}

static err write_page(const struct program *p, const char *dir, const char *command)
{
    struct bytes text = {.max = PAGE_BYTES_MAX};
    char name[NAME_BYTES], file[NAME_BYTES + 8], folder[32];
    man_name(name, sizeof name, p->name, command);
    snprintf(file, sizeof file, "%s.%d", name, p->section);
    snprintf(folder, sizeof folder, "man/man%d", p->section);
    err e = page_of(&text, p, command);
    if (!err_is(e)) e = write_file(dir, folder, file, &text);
    bytes_close(&text);
    return e;
}

static err write_configuration_page(const struct program *p, const char *dir)
{
    struct bytes text = {.max = PAGE_BYTES_MAX};
    char file[NAME_BYTES], folder[32], date[16];
    struct man_page page = *p->file;
    man_date(date);
    page.date = date;
    page.version = FEDLORA_VERSION;
    snprintf(file, sizeof file, "%s.%d", page.name, page.section);
    snprintf(folder, sizeof folder, "man/man%d", page.section);
    err e = man_page(&text, &page);
    if (!err_is(e)) e = write_file(dir, folder, file, &text);
    bytes_close(&text);
    return e;
}

/* Each shell looks for a file of its own name in its own folder. */
static err write_completion(const struct program *p, const char *dir, enum completion_shell shell)
{
    static const char *const place[][2] = {{"bash-completion/completions", "%s"},
                                           {"zsh/site-functions", "_%s"},
                                           {"fish/vendor_completions.d", "%s.fish"}};
    struct bytes text = {.max = PAGE_BYTES_MAX}, name = {.max = NAME_BYTES};
    err e = completion_script(&text, shell, p);
    const char *mark = strstr(place[shell][1], "%s");
    if (!err_is(e))
        e = bytes_printf(&name, "%.*s%s%s", (int)(mark - place[shell][1]), place[shell][1], p->name,
                         mark + 2);
    if (!err_is(e)) e = write_file(dir, place[shell][0], (const char *)name.data, &text);
    bytes_close(&text);
    bytes_close(&name);
    return e;
}

static err write_all(const struct program *p, const char *dir)
{
    TRY(write_page(p, dir, ""));
    for (size_t i = 0; i < p->count; i++)
        if (*p->command[i].name) TRY(write_page(p, dir, p->command[i].name));
    if (p->file) TRY(write_configuration_page(p, dir));
    for (int shell = 0; completion_shells[shell]; shell++)
        TRY(write_completion(p, dir, (enum completion_shell)shell));
    return ERR_NONE;
}

/* ---- the three options ---- */

bool program_asked(const char *argument)
{
    return !strcmp(argument, "--man") || !strcmp(argument, "--completions") ||
           !strcmp(argument, "--pages");
}

static err find_shell(enum completion_shell *out, const char *name)
{
    for (int i = 0; completion_shells[i]; i++)
        if (!strcmp(completion_shells[i], name)) {
            *out = (enum completion_shell)i;
            return ERR_NONE;
        }
    return err_make(ERR_INPUT, "--completions %.40s: expected bash, zsh or fish", name);
}

err program_answer(const struct program *program, int argc, char **argv)
{
    struct bytes text = {.max = PAGE_BYTES_MAX};
    enum completion_shell shell = COMPLETION_BASH;
    char command[NAME_BYTES] = "";
    bool man = !strcmp(argv[0], "--man");
    err e = ERR_NONE;
    if (argc > (man ? 3 : 2) || (!man && argc < 2))
        return err_make(ERR_INPUT, "%s: expected %s", argv[0],
                        man ? "a command or nothing" : "one argument");
    if (!strcmp(argv[0], "--pages")) {
        umask(022); /* fedlorad keeps its files to itself, but pages are for everybody */
        return write_all(program, argv[1]);
    }
    if (man) {
        snprintf(command, sizeof command, "%.60s%s%.60s", argc > 1 ? argv[1] : "",
                 argc > 2 ? " " : "", argc > 2 ? argv[2] : "");
        TRY_OUT(e, page_of(&text, program, command));
    } else {
        TRY_OUT(e, find_shell(&shell, argv[1]));
        TRY_OUT(e, completion_script(&text, shell, program));
    }
    printf("%s", (const char *)text.data);
out:
    bytes_close(&text);
    return e;
}
