#include "sim/fleet.h"

#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS_MAX = 4096, HISTOGRAM_MEMBERS = 20 };

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* ---- labels ---- */

/* The labels of the rows of one file, numbered in ascending order of their texts. */
struct labels {
    uint32_t *row; /* (rows) */
    const char **name;
    size_t count;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The start of line number n (from 1); lines are asked in ascending order. */
struct lines {
    const char *at, *end;
    uint32_t number;
};

static const char *line_at(size_t *size, struct lines *l, uint32_t number)
{
    for (; l->number < number; l->number++) {
        const char *next = memchr(l->at, '\n', (size_t)(l->end - l->at));
        l->at = next ? next + 1 : l->end;
    }
    const char *next = memchr(l->at, '\n', (size_t)(l->end - l->at));
    *size = (size_t)((next ? next : l->end) - l->at);
    return l->at;
}

static size_t find_label(const struct labels *l, const char *text)
{
    const char **found = bsearch(&text, l->name, l->count, sizeof *l->name, by_text);
    return (size_t)(found - l->name);
}

static err open_labels(struct labels *out, const struct fleet_options *o,
                       const struct dataset *data, struct arena *arena)
{
    struct labels l = {0};
    TRY(arena_take(&l.row, arena, data->count + 1, sizeof *l.row));
    TRY(arena_take(&l.name, arena, data->count + 1, sizeof *l.name));
    for (size_t i = 0; i < data->count; i++)
        l.name[i] = o->by ? data->row[i].by : "";
    qsort(l.name, data->count, sizeof *l.name, by_text);
    for (size_t i = 0; i < data->count; i++)
        if (!l.count || strcmp(l.name[l.count - 1], l.name[i]) != 0) l.name[l.count++] = l.name[i];
    if (l.count > LABELS_MAX)
        return err_make(ERR_INPUT, "%s: the field \"%s\" has %zu values, expected at most %d",
                        o->train, o->by, l.count, LABELS_MAX);
    for (size_t i = 0; i < data->count; i++)
        l.row[i] = (uint32_t)find_label(&l, o->by ? data->row[i].by : "");
    *out = l;
    return ERR_NONE;
}

/* ---- members ---- */

/* A member's view of rows that a data set of the fleet owns. */
static err view(struct dataset *out, const struct dataset *all, const uint32_t *row, size_t count)
{
    struct dataset d = {.row = malloc((count + 1) * sizeof *d.row), .count = count};
    if (!d.row) return err_sys(ENOMEM, "members");
    for (size_t i = 0; i < count; i++) {
        d.row[i] = all->row[row ? row[i] : i];
        data_count(&d, &d.row[i], d.row[i].count);
    }
    *out = d;
    return ERR_NONE;
}

static err take_members(struct fleet *f, size_t members)
{
    f->member = calloc(members + 1, sizeof *f->member);
    if (!f->member) return err_sys(ENOMEM, "%zu members", members);
    f->members = members;
    return ERR_NONE;
}

/* Ids have as many digits as the last one needs, so that their order is that of the numbers, which
 * the sums over members follow. A label that is a name becomes the id itself. */
static void name_members(struct fleet *f, const struct fleet_options *o, const struct labels *l)
{
    int digits = snprintf(NULL, 0, "%zu", f->members);
    for (size_t i = 0; i < f->members; i++) {
        char *id = f->member[i].id;
        if (o->split.kind == DEAL_FIELD && text_is_name(l->name[i], LIMIT_NAME_BYTES - 1))
            snprintf(id, LIMIT_NAME_BYTES, "%s", l->name[i]);
        else
            snprintf(id, LIMIT_NAME_BYTES, "m%0*zu", digits, i + 1);
    }
}

static err write_histogram(struct fleet *f, const struct deal *s, const struct deal_rows *rows,
                           const struct labels *l)
{
    struct bytes text = {.max = 1 << 20};
    const char **id = NULL;
    TRY(arena_take(&id, &f->arena, f->members, sizeof *id));
    for (size_t i = 0; i < f->members; i++)
        id[i] = f->member[i].id;
    err e = deal_print(&text, s, rows, l->name, id, HISTOGRAM_MEMBERS);
    if (!err_is(e)) e = arena_text(&f->histogram, &f->arena, (const char *)text.data, text.size);
    bytes_close(&text);
    return e;
}

static err deal(struct fleet *f, const struct fleet_options *o)
{
    struct dataset *all = &f->file[0];
    struct labels l = {0};
    struct deal split = {0};
    struct deal_options how = o->split;
    TRY(open_labels(&l, o, all, &f->arena));
    const struct deal_rows rows = {all->count, l.count, l.row};
    if (how.kind == DEAL_FIELD) how.members = l.count;
    TRY(deal_make(&split, &how, &rows));
    err e = take_members(f, split.members);
    for (size_t i = 0; i < f->members && !err_is(e); i++)
        e = view(&f->member[i].data, all, split.row + split.first[i],
                 split.first[i + 1] - split.first[i]);
    if (!err_is(e)) name_members(f, o, &l);
    if (!err_is(e) && o->by) e = write_histogram(f, &split, &rows, &l);
    deal_close(&split);
    return e;
}

/* ---- files ---- */

static err open_rows(struct dataset *out, const struct fleet *f, const struct fleet_options *o,
                     const char *path, const char *by)
{
    const struct data_options how = {.tokenizer = f->tokenizer,
                                     .vocab = f->model.arch.vocab,
                                     .seq = o->seq,
                                     .no_eos = !o->eos,
                                     .bos = o->bos,
                                     .split = o->split_rows,
                                     .template = o->template,
                                     .by = by};
    return data_open(out, path, &how);
}

/* The members' names: all JSON Lines files of the folder but test and val. */
static err list_files(const char ***out, size_t *count, const char *dir, struct arena *arena)
{
    const char **name = NULL;
    DIR *folder = opendir(dir);
    if (!folder) return err_sys(errno, "%s", dir);
    err e = arena_take(&name, arena, LIMIT_POPULATION, sizeof *name);
    for (struct dirent *d; !err_is(e) && (d = readdir(folder));) {
        size_t n = strlen(d->d_name);
        if (n < 7 || strcmp(d->d_name + n - 6, ".jsonl") != 0) continue;
        if (!strcmp(d->d_name, "test.jsonl") || !strcmp(d->d_name, "val.jsonl")) continue;
        if (*count == LIMIT_POPULATION)
            e = err_make(ERR_INPUT, "%s: more than %d members", dir, LIMIT_POPULATION);
        else
            e = arena_text(&name[(*count)++], arena, d->d_name, n - 6);
    }
    closedir(folder);
    if (!err_is(e) && !*count) e = err_make(ERR_INPUT, "%s: no file ID.jsonl of a member", dir);
    if (!err_is(e)) qsort(name, *count, sizeof *name, by_text);
    *out = name;
    return e;
}

/* DIR/ID.jsonl */
static err member_path(char path[LIMIT_PATH_BYTES], const char *dir, const char *id)
{
    char name[LIMIT_NAME_BYTES + 8];
    snprintf(name, sizeof name, "%s.jsonl", id);
    return file_join(path, LIMIT_PATH_BYTES, dir, name);
}

static err open_folder(struct fleet *f, const struct fleet_options *o)
{
    const char **name = NULL;
    size_t count = 0;
    char path[LIMIT_PATH_BYTES];
    TRY(list_files(&name, &count, o->train, &f->arena));
    TRY(take_members(f, count));
    if (f->borrows && f->files != count)
        return err_make(ERR_INPUT, "%s: members were added or removed", o->train);
    if (!f->borrows && !(f->file = calloc(count, sizeof *f->file)))
        return err_sys(ENOMEM, "members");
    for (size_t i = 0; i < count; i++) {
        if (!text_is_name(name[i], LIMIT_NAME_BYTES - 1))
            return err_make(ERR_INPUT, "%s/%.80s.jsonl: the name is not that of a member", o->train,
                            name[i]);
        snprintf(f->member[i].id, LIMIT_NAME_BYTES, "%s", name[i]);
        TRY(member_path(path, o->train, f->member[i].id));
        if (!f->borrows) {
            TRY(open_rows(&f->file[i], f, o, path, NULL));
            f->files++;
        }
        TRY(view(&f->member[i].data, &f->file[i], NULL, f->file[i].count));
    }
    return ERR_NONE;
}

static err open_file(struct fleet *f, const struct fleet_options *o)
{
    if (f->borrows) return deal(f, o);
    if (!(f->file = calloc(1, sizeof *f->file))) return err_sys(ENOMEM, "members");
    TRY(open_rows(&f->file[0], f, o, o->train, o->by));
    f->files = 1;
    return deal(f, o);
}

/* At least one row is held out of two or more, and at least one is left. */
static err hold_out(struct fleet_member *m, const struct fleet_options *o)
{
    size_t count = m->data.count, n = (size_t)(o->held_out * (double)count + 0.5);
    if (o->held_out <= 0 || count < 2) return ERR_NONE;
    n = n < 1 ? 1 : n > count - 1 ? count - 1 : n;
    uint32_t *order = malloc(count * sizeof *order);
    struct dataset kept = {0};
    struct rng rng;
    if (!order) return err_sys(ENOMEM, "members");
    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    rng_init(&rng, "held out", o->split.seed, m->id, 0);
    rng_shuffle(&rng, order, count);
    qsort(order, n, sizeof *order, by_number);
    qsort(order + n, count - n, sizeof *order, by_number);
    err e = view(&m->held_out, &m->data, order, n);
    if (!err_is(e)) e = view(&kept, &m->data, order + n, count - n);
    free(order);
    if (err_is(e)) return e;
    free(m->data.row);
    m->data = kept;
    return ERR_NONE;
}

/* Found now and not in the middle of a simulation. A member of a plan may have no rows. */
static err check_teaches(const struct fleet_member *m)
{
    if (!m->data.count || data_teaching(&m->data)) return ERR_NONE;
    return err_make(ERR_INPUT, "client %s: none of its %zu rows has a token to learn", m->id,
                    m->data.count);
}

/* A rank of its class counts more than one of the list. */
static err equip(struct fleet *f, const struct fleet_options *o)
{
    uint32_t *class = NULL;
    TRY(arena_take(&class, &f->arena, f->members, sizeof *class));
    devices_deal(class, &f->devices, f->members);
    for (size_t i = 0; i < f->members; i++) {
        uint32_t own = f->devices.class[class[i]].rank;
        f->member[i].device = class[i];
        TRY(hold_out(&f->member[i], o));
        TRY(check_teaches(&f->member[i]));
        f->member[i].rank = own ? own : o->ranks ? o->rank[i % o->ranks] : 0;
    }
    return ERR_NONE;
}

uint64_t fleet_task_tokens(const struct training_options *t, double sampling, uint64_t rows,
                           uint64_t tokens)
{
    double read = (double)rows * t->epochs, step = (double)t->batch * (double)t->accumulate;
    if (sampling > 0) step = sampling * (double)rows;
    if (t->steps) read = (double)t->steps * step;
    return (uint64_t)fmin(read * (double)tokens / (double)rows, 0x1p62);
}

/* Members of whom only the number is known. */
static err open_rowless(struct fleet *f, const struct fleet_options *o)
{
    const struct labels none = {0};
    struct fleet_options unnamed = *o;
    if (o->split.kind == DEAL_FIELD)
        return err_make(ERR_INPUT, "--split field: the number of clients follows from the rows, "
                                   "so --data is needed");
    unnamed.split.kind = DEAL_IID;
    TRY(take_members(f, o->split.members));
    name_members(f, &unnamed, &none);
    return ERR_NONE;
}

static err open_members(struct fleet *f, const struct fleet_options *o)
{
    if (o->shapes && !(o->train && *o->train)) return open_rowless(f, o);
    err e = file_is_dir(o->train) ? open_folder(f, o) : open_file(f, o);
    if (!o->shapes || f->tokenizer || e.kind != ERR_INPUT) return e;
    return err_in(e, "%s has no tokenizer (--data \"\" plans without rows)", o->base);
}

/* The tokenizer of a config.json is looked for beside it. */
static err open_tokenizer(struct fleet *f, const struct fleet_options *o)
{
    char folder[LIMIT_PATH_BYTES];
    size_t n = strlen(o->base);
    if (!o->shapes || n < 5 || strcmp(o->base + n - 5, ".json") != 0)
        return tokenizer_open_if_any(&f->tokenizer, o->base);
    const char *slash = strrchr(o->base, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - o->base) : 1,
             slash ? o->base : ".");
    return tokenizer_open_if_any(&f->tokenizer, folder);
}

static err open_base(struct fleet *f, const struct fleet_options *o)
{
    if (o->shapes) return model_open_shapes(&f->model, &f->untrainable, o->base);
    TRY(model_open(&f->model, o->base));
    return model_digest(&f->base, &f->model);
}

static void borrow(struct fleet *f, const struct fleet *from)
{
    f->borrows = true;
    f->model = from->model;
    f->base = from->base;
    f->tokenizer = from->tokenizer;
    f->test = from->test;
    f->file = from->file;
    f->files = from->files;
}

err fleet_open(struct fleet *out, const struct fleet_options *o)
{
    struct fleet f = {.devices = o->devices, .histogram = "", .frozen = o->frozen};
    err e = ERR_NONE;
    if (o->from)
        borrow(&f, o->from);
    else
        TRY_OUT(e, open_base(&f, o));
    digest_text(f.base_text, &f.base);
    if (!f.borrows) TRY_OUT(e, open_tokenizer(&f, o));
    TRY_OUT(e, open_members(&f, o));
    if (o->test && !f.borrows) TRY_OUT(e, open_rows(&f.test, &f, o, o->test, NULL));
    TRY_OUT(e, equip(&f, o));
    *out = f;
    return ERR_NONE;
out:
    fleet_close(&f);
    return e;
}

void fleet_close(struct fleet *f)
{
    for (size_t i = 0; i < f->members; i++) {
        free(f->member[i].data.row);
        free(f->member[i].held_out.row);
    }
    free(f->member);
    for (size_t i = 0; i < f->files && !f->borrows; i++)
        data_close(&f->file[i]);
    if (!f->borrows) {
        free(f->file);
        data_close(&f->test);
        tokenizer_close(f->tokenizer);
        model_close(&f->model);
    }
    arena_close(&f->arena);
    *f = (struct fleet){0};
}

static err write_member(const struct fleet_member *m, const struct file_map *map, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    struct file_out out = {0};
    struct lines lines = {(const char *)map->data, (const char *)map->data + map->size, 1};
    TRY(member_path(path, dir, m->id));
    TRY(file_out_open(&out, path, false));
    err e = ERR_NONE;
    for (size_t i = 0; i < m->data.count && !err_is(e); i++) {
        size_t size;
        const char *line = line_at(&size, &lines, m->data.row[i].line);
        e = file_out_append(&out, line, size);
        if (!err_is(e)) e = file_out_append(&out, "\n", 1);
    }
    if (!err_is(e)) e = file_out_commit(&out);
    file_out_close(&out);
    return e;
}

/* The members' files are made of the lines of the file, so it must have one row in each. */
static err check_lines(const struct file_map *map, const char *path)
{
    const unsigned char *at = map->data, *end = at + map->size;
    if (map->size >= 3 && memcmp(at, "\xEF\xBB\xBF", 3) == 0) at += 3;
    while (at < end && strchr(" \t\r\n", *at) && *at)
        at++;
    if (at == end || (*at != '[' && *at != 0x1f)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: is %s, expected JSON Lines to split", path,
                    *at == '[' ? "one JSON list" : "compressed");
}

err fleet_write(const struct fleet *f, const struct fleet_options *o, const char *dir)
{
    struct file_map map = {0};
    if (file_is_dir(o->train))
        return err_make(ERR_INPUT, "%s: already has one file for each member", o->train);
    TRY(file_make_dirs(dir));
    TRY(file_map_open(&map, o->train));
    err e = check_lines(&map, o->train);
    for (size_t i = 0; i < f->members && !err_is(e); i++)
        e = write_member(&f->member[i], &map, dir);
    file_map_close(&map);
    return e;
}
