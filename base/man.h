/* Manual pages, written from the tables of base/option.h in the language of man(7).
 *
 * A page has NAME and SYNOPSIS, the sections before the options, OPTIONS or the keys of a
 * configuration file, the sections after them, and SEE ALSO. Texts are plain: everything that roff
 * would take as a command is escaped here. */
#ifndef BASE_MAN_H
#define BASE_MAN_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/option.h"

#include <stdbool.h>
#include <stddef.h>

/* Lines of `text`: an empty one begins a paragraph, one that starts with a blank is printed as it
 * is, and "TERM\tTEXT" is an item of a list. */
struct man_section {
    const char *title; /* "EXIT STATUS" */
    const char *text;
};

struct man_page {
    const char *name; /* "fedlora-run-create" */
    int section;      /* of the manual: 1, 5 or 8 */
    const char *version;
    const char *date; /* "2026-11-30" */
    const char *purpose;
    const char *synopsis;         /* "fedlora run create NAME [options]" */
    const struct option_set *set; /* of OPTIONS; NULL: none */
    bool file;                    /* print the keys of a configuration file, not flags */
    const struct man_section *before, *after; /* of the options; end with a NULL title */
    const char *see;                          /* names of other pages, "fedlora(1), fedlorad(8)" */
};

err man_page(struct bytes *out, const struct man_page *page);
/* "fedlora run create" as the name of its page, "fedlora-run-create". */
void man_name(char *out, size_t bytes, const char *program, const char *command);
/* The day that pages made now show. SOURCE_DATE_EPOCH replaces the clock, so that packages made
 * twice from one source are equal. */
void man_date(char out[16]);

#endif
