#include "base/man.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* roff gives these characters another look or a meaning of its own. A hyphen stays one that can be
 * copied into a shell only as "\-". */
static const char *escaped(char c)
{
    switch (c) {
    case '\\':
        return "\\e";
    case '-':
        return "\\-";
    case '\'':
        return "\\(aq";
    case '`':
        return "\\(ga";
    case '^':
        return "\\(ha";
    case '~':
        return "\\(ti";
    case '"':
        return "\\(dq";
    default:
        return NULL;
    }
}

/* A dot or a quote at the start of a line would be a command, so callers start lines with "\&"
 * where the text decides about the first character. */
static err put(struct bytes *out, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        const char *as = escaped(text[i]);
        TRY(as ? bytes_printf(out, "%s", as) : bytes_append(out, &text[i], 1));
    }
    return ERR_NONE;
}

static err put_text(struct bytes *out, const char *text)
{
    return put(out, text, strlen(text));
}

/* One word in bold or italics; `font` is a letter of roff. */
static err put_font(struct bytes *out, char font, const char *text)
{
    TRY(bytes_printf(out, "\\f%c", font));
    TRY(put_text(out, text));
    return bytes_printf(out, "\\fR");
}

/* ---- sections of text ---- */

static err item(struct bytes *out, const char *line, size_t size, const char *tab)
{
    TRY(bytes_printf(out, ".TP\n\\fB"));
    TRY(put(out, line, (size_t)(tab - line)));
    TRY(bytes_printf(out, "\\fR\n\\&"));
    TRY(put(out, tab + 1, size - (size_t)(tab + 1 - line)));
    return bytes_printf(out, "\n");
}

/* A paragraph follows an empty line and the end of a list or of lines printed as they are. */
static err section_text(struct bytes *out, const char *text)
{
    bool as_is = false, begin = false, first = true;
    while (*text) {
        size_t size = strcspn(text, "\n");
        const char *tab = memchr(text, '\t', size);
        bool now = *text == ' ';
        if (as_is && !now && size) TRY(bytes_printf(out, ".EE\n.RE\n"));
        if (now && !as_is) TRY(bytes_printf(out, "%s.RS 4\n.EX\n", first ? "" : ".PP\n"));
        if (size) as_is = now;
        if (size && tab && !now) {
            TRY(item(out, text, size, tab));
        } else if (size) {
            if (begin && !now && !first) TRY(bytes_printf(out, ".PP\n"));
            TRY(bytes_printf(out, "\\&"));
            TRY(put(out, text, size));
            TRY(bytes_printf(out, "\n"));
        } else if (as_is && text[1] == ' ') {
            TRY(bytes_printf(out, "\\&\n")); /* an empty line inside an example */
        }
        begin = !size;
        first = false;
        text += size + (text[size] == '\n');
    }
    return as_is ? bytes_printf(out, ".EE\n.RE\n") : ERR_NONE;
}

static err sections(struct bytes *out, const struct man_section *section)
{
    for (; section && section->title; section++) {
        TRY(bytes_printf(out, ".SH %s\n", section->title));
        TRY(section_text(out, section->text));
    }
    return ERR_NONE;
}

/* ---- options ---- */

static err help_sentence(struct bytes *out, const struct option_row *row)
{
    const char *help = row->help ? row->help : "";
    TRY(bytes_printf(out, "\\&"));
    if (*help) {
        char first = (char)toupper((unsigned char)*help);
        /* The name of a thing that starts small, such as "gRPC", keeps its letters. */
        bool keep = isupper((unsigned char)help[1]);
        TRY(put(out, keep ? help : &first, 1));
        TRY(put_text(out, help + 1));
    }
    size_t end = out->size ? out->size - 1 : 0;
    return bytes_printf(out, "%s\n", out->data[end] == '.' ? "" : ".");
}

static err facts(struct bytes *out, const struct option_set *set, const struct option_row *row,
                 bool file)
{
    bool bounds = option_has_bounds(row);
    if (row->fallback && *row->fallback && row->kind != OPTION_FLAG) {
        TRY(bytes_printf(out, "Default: "));
        TRY(put_font(out, 'B', row->fallback));
        TRY(bytes_printf(out, ".\n"));
    }
    if (bounds) {
        char text[80];
        snprintf(text, sizeof text,
                 row->kind == OPTION_INT ? "From %.0f to %.0f.\n" : "From %.15g to %.15g.\n",
                 row->least, row->most);
        TRY(put_text(out, text));
    }
    if (row->required) TRY(bytes_printf(out, "Required.\n"));
    const char *other = file ? row->flag : row->key;
    bool second = !file && row->sectioned && set->section;
    if (second) {
        TRY(bytes_printf(out, "In a configuration file: \\fB"));
        TRY(put_text(out, set->section));
        TRY(bytes_printf(out, "."));
        TRY(put_text(out, row->flag));
        TRY(bytes_printf(out, "\\fR.\n"));
    }
    if (!other || second) return ERR_NONE;
    TRY(bytes_printf(out, file ? "On the command line: " : "In a configuration file: "));
    TRY(bytes_printf(out, "\\fB"));
    if (file) TRY(put_text(out, option_prefix(row)));
    TRY(put_text(out, other));
    return bytes_printf(out, "\\fR.\n");
}

/* "-o, --output DIR", or "key = DIR" of a file. */
static err head(struct bytes *out, const struct option_row *row, bool file)
{
    struct bytes value = {.max = 4096};
    err e = ERR_NONE;
    TRY(bytes_printf(out, ".TP\n\\fB"));
    if (file) {
        size_t section = option_section_size(row->key);
        TRY(put_text(out, row->key + section + (section > 0)));
    } else {
        if (row->letter) TRY(bytes_printf(out, "\\-%c\\fR, \\fB", row->letter));
        TRY(put_text(out, option_prefix(row)));
        TRY(put_text(out, row->flag));
    }
    TRY(bytes_printf(out, "\\fR"));
    TRY_OUT(e, option_value_name(&value, row));
    if (file && row->kind == OPTION_FLAG) TRY_OUT(e, bytes_printf(&value, "yes|no"));
    if (value.size) {
        TRY_OUT(e, bytes_printf(out, file ? " = " : " "));
        TRY_OUT(e, put_font(out, 'I', (const char *)value.data));
    }
    TRY_OUT(e, bytes_printf(out, "\n"));
out:
    bytes_close(&value);
    return e;
}

static err option(struct bytes *out, const struct option_set *set, const struct option_row *row,
                  bool file)
{
    TRY(head(out, row, file));
    TRY(help_sentence(out, row));
    return facts(out, set, row, file);
}

/* The keys of a file under the heading of their section, which stands where its first key is. */
static err keys(struct bytes *out, const struct option_set *set)
{
    const struct option_row *row, *before = NULL;
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        if (!row->key) continue;
        size_t size = option_section_size(row->key);
        bool same = before && option_section_size(before->key) == size &&
                    memcmp(before->key, row->key, size) == 0;
        if (!same && size) TRY(bytes_printf(out, ".SS [%.*s]\n", (int)size, row->key));
        TRY(option(out, set, row, true));
        before = row;
    }
    return ERR_NONE;
}

static err options(struct bytes *out, const struct man_page *page)
{
    const struct option_row *row;
    TRY(bytes_printf(out, ".SH %s\n", page->file ? "KEYS" : "OPTIONS"));
    if (page->file) return keys(out, page->set);
    for (size_t i = 0; (row = option_row_at(page->set, i)); i++)
        if (row->flag) TRY(option(out, page->set, row, false));
    return ERR_NONE;
}

/* ---- the page ---- */

err man_page(struct bytes *out, const struct man_page *page)
{
    char title[128];
    snprintf(title, sizeof title, "%s", page->name);
    for (char *p = title; *p; p++)
        *p = (char)toupper((unsigned char)*p);
    TRY(bytes_printf(out, ".TH %s %d %s \"Fedlora %s\" \"Fedlora\"\n", title, page->section,
                     page->date, page->version));
    /* Left alignment and no hyphenation, because pages are full of names that must stay whole. */
    TRY(bytes_printf(out, ".ad l\n.nh\n.SH NAME\n"));
    TRY(put_text(out, page->name));
    TRY(bytes_printf(out, " \\- "));
    TRY(put_text(out, page->purpose));
    TRY(bytes_printf(out, "\n.SH SYNOPSIS\n"));
    TRY(put_font(out, 'B', page->synopsis));
    TRY(bytes_printf(out, "\n"));
    TRY(sections(out, page->before));
    if (page->set) TRY(options(out, page));
    TRY(sections(out, page->after));
    TRY(bytes_printf(out, ".SH SEE ALSO\n"));
    TRY(put_text(out, page->see));
    return bytes_printf(out, "\n");
}

void man_name(char *out, size_t bytes, const char *program, const char *command)
{
    snprintf(out, bytes, "%s%s%s", program, *command ? "-" : "", command);
    for (char *p = out; *p; p++)
        if (*p == ' ') *p = '-';
}

void man_date(char out[16])
{
    const char *fixed = getenv("SOURCE_DATE_EPOCH");
    time_t now = fixed && *fixed ? (time_t)strtoll(fixed, NULL, 10) : time(NULL);
    struct tm day;
    if (!gmtime_r(&now, &day) || !strftime(out, 16, "%Y-%m-%d", &day)) snprintf(out, 16, "unknown");
}
