#include "client/session/data_report.h"

#include "base/limits.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A remedy holds a run's name and a sentence. A place holds the 1000 bytes of a path that are shown
 * and a line number. Longer texts are cut, because a report must not fail. */
enum { REMEDY_BYTES = 256, PLACE_BYTES = 1100 };

/* FILE:LINE, or FILE alone for a sum over several files. */
static const char *place_of(char out[PLACE_BYTES], const struct data_report *r, uint32_t line)
{
    if (line && !r->without_lines)
        snprintf(out, PLACE_BYTES, "%.1000s:%" PRIu32, r->path, line);
    else
        snprintf(out, PLACE_BYTES, "%.1000s", r->path);
    return out;
}

static const char *plural(uint64_t n)
{
    return n == 1 ? "row" : "rows";
}

/* "1 of 5 rows has", "2 of 5 rows have": the verb agrees with the first number, the noun with the
 * second. */
static const char *verb(uint64_t n, const char *one, const char *many)
{
    return n == 1 ? one : many;
}

/* The length that would not cut any row. A member cannot change it. */
static void say_longer(char out[REMEDY_BYTES], const struct data_report *r)
{
    if (r->data->longest > LIMIT_SEQUENCE)
        snprintf(out, REMEDY_BYTES, "shorten these rows");
    else if (r->run)
        snprintf(out, REMEDY_BYTES,
                 "run %s reads %" PRIu32
                 " tokens of a row; its operator can create a run with a larger --seq",
                 r->run, r->seq);
    else
        snprintf(out, REMEDY_BYTES, "--seq %" PRIu32 " reads them whole", r->data->longest);
}

/* Rows without a learned token are often those whose answer was cut off. */
static void say_unlearned(char out[REMEDY_BYTES], const struct data_report *r)
{
    char longer[REMEDY_BYTES];
    say_longer(longer, r);
    if (r->data->cut.rows)
        snprintf(out, REMEDY_BYTES, "the answer was cut off, or all labels are -100; %.150s",
                 longer);
    else
        snprintf(out, REMEDY_BYTES, "all labels are -100, or the row ends with the user's turn");
}

static void warn(const struct data_report *r, uint32_t line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void warn(const struct data_report *r, uint32_t line, const char *format, ...)
{
    char place[PLACE_BYTES], text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "warning: %s: %s\n", place_of(place, r, line), text);
}

/* A run decides --boundary for all its members, so a member can only ask for another run. */
static void warn_joined(const struct data_report *r)
{
    const struct data_kind *joined = &r->data->joined;
    char remedy[REMEDY_BYTES];
    if (r->run)
        snprintf(remedy, sizeof remedy, "or ask for a run with --boundary split instead of %s",
                 r->run);
    else
        snprintf(remedy, sizeof remedy, "or use --boundary split");
    warn(r, joined->line,
         "in %zu of %zu %s the completion starts inside a token of the prompt, which is not "
         "learned: move the space at the end of the prompt to the completion, %s",
         joined->rows, r->data->count, plural(r->data->count), remedy);
}

/* Both are the template's own text, which its user may not expect. */
static void warn_templates(const struct data_report *r)
{
    const struct data_kind *rewritten = &r->data->rewritten, *left_out = &r->data->left_out;
    if (rewritten->rows)
        warn(r, rewritten->line,
             "in %zu of %zu %s the chat template changes earlier turns, as by leaving out their "
             "thinking, and they are learned so: give each answer a row that ends with it",
             rewritten->rows, r->data->count, plural(r->data->count));
    if (left_out->rows)
        warn(r, left_out->line,
             "in %zu of %zu %s the chat template leaves out the system text or a message of the "
             "user: put it into another message, or use another --template",
             left_out->rows, r->data->count, plural(r->data->count));
}

/* The warnings are ordered by the loss: rows that teach nothing, rows that were cut, tokens that
 * are not learned, and texts that the template altered. */
void data_report_print(const struct data_report *r)
{
    const struct dataset *d = r->data;
    char remedy[REMEDY_BYTES];
    fprintf(stderr,
            "%s: %zu %s, %" PRIu64 " tokens, %" PRIu64
            " of them learned; the longest row has %" PRIu32 "\n",
            r->path, d->count, plural(d->count), d->tokens, d->learned, d->longest);
    if (d->unlearned.rows) {
        say_unlearned(remedy, r);
        warn(r, d->unlearned.line, "%zu of %zu %s %s no token to learn and %s not count: %s",
             d->unlearned.rows, d->count, plural(d->count), verb(d->unlearned.rows, "has", "have"),
             verb(d->unlearned.rows, "does", "do"), remedy);
    }
    if (d->cut.rows) {
        say_longer(remedy, r);
        warn(r, d->cut.line, "%zu of %zu %s %s cut to %" PRIu32 " tokens: %s", d->cut.rows,
             d->count, plural(d->count), verb(d->cut.rows, "was", "were"),
             r->seq ? r->seq : LIMIT_SEQUENCE, remedy);
    }
    if (d->joined.rows) warn_joined(r);
    warn_templates(r);
}

/* The keys are read by scripts, so every key is present even if its number is 0. */
json_t *data_report_json(const struct dataset *d)
{
    const struct {
        const char *name;
        uint64_t value;
    } all[] = {
        {"rows", d->count},
        {"tokens", d->tokens},
        {"learned", d->learned},
        {"longest", d->longest},
        {"longest_line", d->longest_line},
        {"rows_unlearned", d->unlearned.rows},
        {"rows_unlearned_line", d->unlearned.line},
        {"rows_cut", d->cut.rows},
        {"rows_cut_line", d->cut.line},
        {"rows_joined", d->joined.rows},
        {"rows_joined_line", d->joined.line},
        {"rows_rewritten", d->rewritten.rows},
        {"rows_left_out", d->left_out.rows},
        {"rows_with_eos", d->has_eos.rows},
        {"rows_with_bos", d->has_bos.rows},
    };
    json_t *out = json_object();
    for (size_t i = 0; out && i < sizeof all / sizeof *all; i++)
        json_object_set_new(out, all[i].name, json_integer((json_int_t)all[i].value));
    return out;
}

/* Without a learned token the loss has no term, and the weight of the data is 0 rows. This is an
 * error and not a warning, because training would take its time and change nothing. */
err data_report_check(const struct data_report *r)
{
    const struct dataset *d = r->data;
    char place[PLACE_BYTES], remedy[REMEDY_BYTES];
    if (data_teaching(d)) return ERR_NONE;
    say_unlearned(remedy, r);
    return err_make(ERR_INPUT, "%s: none of the %zu %s has a token to learn: %s",
                    place_of(place, r, d->unlearned.line), d->count, plural(d->count), remedy);
}

/* Lengths are not added, because the longest row of all files decides the --seq that cuts none. A
 * line means nothing without its file, so the sum has no lines. */
void data_report_add(struct dataset *sum, const struct dataset *d)
{
    sum->count += d->count;
    sum->tokens += d->tokens;
    sum->learned += d->learned;
    sum->unlearned.rows += d->unlearned.rows;
    sum->cut.rows += d->cut.rows;
    sum->joined.rows += d->joined.rows;
    sum->rewritten.rows += d->rewritten.rows;
    sum->left_out.rows += d->left_out.rows;
    sum->has_eos.rows += d->has_eos.rows;
    sum->has_bos.rows += d->has_bos.rows;
    if (d->longest > sum->longest) sum->longest = d->longest;
}
