#include "sim/fairness.h"

#include "base/file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 64 << 20 };
static const char header[] = "member,rows,loss,accuracy\n";

static err path_of(char path[LIMIT_PATH_BYTES], const char *dir)
{
    return file_join(path, LIMIT_PATH_BYTES, dir, "members.csv");
}

/* A member's model has the factors that it keeps, with a method whose members keep some. */
static err measure_one(struct bytes *out, struct pool *pool, const struct federation *f, size_t n)
{
    const struct fleet_member *m = &f->fleet->member[n];
    struct federation_paths paths;
    struct member_round round;
    struct member_evaluation found = {0};
    if (!m->held_out.count) return ERR_NONE;
    federation_model(&paths, &round, f, n);
    err e = pool_evaluate(&found, pool, &round, &m->held_out, 0);
    if (err_is(e)) return err_in(e, "the held-out rows of %s", m->id);
    TRY(bytes_printf(out, "%s,%zu,%.9g,", m->id, m->held_out.count, found.loss));
    if (found.accuracy >= 0) TRY(bytes_printf(out, "%.9g", found.accuracy));
    return bytes_printf(out, "\n");
}

err fairness_measure(const char *dir, struct pool *pool, const struct federation *f)
{
    char path[LIMIT_PATH_BYTES];
    struct bytes text = {.max = FILE_BYTES_MAX};
    TRY(path_of(path, dir));
    err e = bytes_printf(&text, "%s", header);
    for (size_t i = 0; i < f->fleet->members && !err_is(e); i++)
        e = measure_one(&text, pool, f, i);
    if (!err_is(e)) e = file_write(path, text.data, text.size, true);
    bytes_close(&text);
    return e;
}

bool fairness_measured(const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    return !err_is(path_of(path, dir)) && file_exists(path);
}

void fairness_forget(const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    if (!err_is(path_of(path, dir)) && file_exists(path)) file_disk.unlink(path);
}

/* ---- reading ---- */

static err read_line(struct fairness_member *m, const char *line, struct arena *arena)
{
    char id[LIMIT_NAME_BYTES];
    m->accuracy = -1;
    if (sscanf(line, "%127[^,],%" SCNu64 ",%lf,%lf", id, &m->rows, &m->loss, &m->accuracy) < 3)
        return err_make(ERR_INPUT, "members.csv: \"%.40s\": expected member, rows and loss", line);
    return arena_text(&m->id, arena, id, strlen(id));
}

err fairness_read(struct fairness_member **out, size_t *count, const char *dir, struct arena *arena)
{
    char path[LIMIT_PATH_BYTES], *text = NULL, *next;
    size_t size = 0, lines = 0;
    *count = 0;
    TRY(path_of(path, dir));
    if (!file_exists(path)) return ERR_NONE;
    TRY(file_read_all(&text, &size, path, FILE_BYTES_MAX));
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    err e = arena_take(out, arena, lines + 1, sizeof **out);
    char *line = strchr(text, '\n');
    for (line = line ? line + 1 : text; !err_is(e) && (next = strchr(line, '\n'));
         line = next + 1) {
        *next = 0;
        e = read_line(&(*out)[(*count)++], line, arena);
    }
    free(text);
    return e;
}

/* ---- spread ---- */

static int by_loss(const void *a, const void *b)
{
    const struct fairness_member *x = a, *y = b;
    return x->loss > y->loss ? -1 : x->loss < y->loss ? 1 : strcmp(x->id, y->id);
}
static int by_accuracy(const void *a, const void *b)
{
    const struct fairness_member *x = a, *y = b;
    return x->accuracy < y->accuracy ? -1 : x->accuracy > y->accuracy ? 1 : strcmp(x->id, y->id);
}

/* The values come with the worst first; those of members without one are NaN. */
static void spread(struct fairness_spread *out, const struct fairness_member *member, size_t count,
                   bool accuracy)
{
    struct fairness_spread s = {0};
    double sum = 0, squares = 0, worst = 0;
    for (size_t i = 0; i < count; i++)
        s.members += !accuracy || member[i].accuracy >= 0;
    size_t tenth = (s.members + 9) / 10, seen = 0;
    for (size_t i = 0; i < count; i++) {
        double value = accuracy ? member[i].accuracy : member[i].loss;
        if (accuracy && value < 0) continue;
        sum += value;
        squares += value * value;
        if (seen++ < tenth) worst += value;
    }
    double n = (double)s.members;
    s.mean = sum / n;
    s.worst = worst / (double)tenth;
    s.sd = s.members > 1 ? sqrt(fmax(0, (squares - n * s.mean * s.mean) / (n - 1))) : 0;
    *out = s;
}

void fairness_loss(struct fairness_spread *out, struct fairness_member *member, size_t count)
{
    if (count) qsort(member, count, sizeof *member, by_loss);
    spread(out, member, count, false);
}

void fairness_accuracy(struct fairness_spread *out, struct fairness_member *member, size_t count)
{
    if (count) qsort(member, count, sizeof *member, by_accuracy);
    spread(out, member, count, true);
}
