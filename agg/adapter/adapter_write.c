/* Writing of adapter files; contract in adapter_file.h. */
#include "agg/adapter/adapter_config.h"
#include "agg/adapter/adapter_file.h"
#include "agg/adapter/adapter_names.h"
#include "agg/adapter/adapter_saved.h"
#include "base/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { METADATA_MAX = 16, NUMBER_BYTES = 32, CONFIG_MAX = 16 << 20, GATHER_BYTES = 1 << 20 };

struct listing { /* the content of one file */
    struct arena arena;
    struct tensor *tensor;
    size_t count, more; /* more: tensors that are no factors of modules */
    struct metadata metadata[METADATA_MAX];
    size_t metadata_count;
    const struct file_map *from; /* the mapping of the data; NULL: in memory */
    char rank[NUMBER_BYTES], round[NUMBER_BYTES], alpha[NUMBER_BYTES];
};

static void put(struct listing *l, const char *key, const char *value)
{
    REQUIRE(l->metadata_count < METADATA_MAX);
    if (value && value[0])
        l->metadata[l->metadata_count++] = (struct metadata){.key = key, .value = value};
}

/* Shortest decimal text that reads back as the same number. */
static void number_text(char out[NUMBER_BYTES], double x)
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, NUMBER_BYTES, "%.*g", digits, x);
        if (strtod(out, NULL) == x) return;
    }
}

static void put_meta(struct listing *l, const struct adapter_file_meta *meta)
{
    static const char *const kind[] = {[ADAPTER_FILE_STATE] = "state",
                                       [ADAPTER_FILE_UPDATE] = "update",
                                       [ADAPTER_FILE_FROZEN] = "frozen",
                                       [ADAPTER_FILE_MEMORY] = "memory"};
    REQUIRE(meta->kind != ADAPTER_FILE_PEFT);
    put(l, "fedlora.kind", kind[meta->kind]);
    put(l, "fedlora.run", meta->run);
    put(l, "fedlora.method", meta->method);
    put(l, "fedlora.base", meta->base);
    put(l, "fedlora.frozen", meta->frozen);
    put(l, "fedlora.member", meta->member);
    put(l, "fedlora.alpha_pattern", meta->alpha_pattern);
    put(l, "fedlora.modules", meta->modules);
    put(l, "fedlora.dropped", meta->dropped);
    put(l, "fedlora.options", meta->options);
    put(l, "fedlora.memory", meta->memory);
    if (meta->rslora) put(l, "fedlora.rslora", "true");
    if (meta->round) {
        snprintf(l->round, sizeof l->round, "%u", meta->round);
        put(l, "fedlora.round", l->round);
    }
    if (meta->rank) {
        snprintf(l->rank, sizeof l->rank, "%u", meta->rank);
        put(l, "fedlora.rank", l->rank);
    }
    if (meta->alpha > 0) {
        number_text(l->alpha, meta->alpha);
        put(l, "fedlora.alpha", l->alpha);
    }
}

static void drop(const struct listing *l, const struct tensor *t)
{
    const uint8_t *at = t->data;
    if (l->from && t->size && at >= l->from->data && at < l->from->data + l->from->size)
        file_map_drop(l->from, (size_t)(at - l->from->data), t->size);
}

static err check_values(const struct listing *l, const struct tensor *t)
{
    size_t bad = adapter_file_first_bad(t->data, t->count);
    if (bad < t->count)
        return err_make(ERR_INPUT, "tensor %s: value %zu is not finite", t->name, bad);
    drop(l, t);
    return ERR_NONE;
}

static err list_factor(struct listing *l, const char *name, const struct adapter_file_factor *x)
{
    struct tensor *t = &l->tensor[l->count];
    TRY(arena_text(&t->name, &l->arena, name, strlen(name)));
    t->dtype = DTYPE_F32;
    t->dims = 2;
    t->shape[0] = x->rows;
    t->shape[1] = x->cols;
    t->count = (size_t)x->rows * x->cols;
    t->size = t->count * sizeof(float);
    t->data = x->f32;
    l->count++;
    return x->f32 ? check_values(l, t) : ERR_NONE;
}

/* Room for a prefix and an ending. */
static err check_name(const char *module)
{
    if (strlen(module) + 48 <= LIMIT_TENSOR_NAME_BYTES) return ERR_NONE;
    return err_make(ERR_INPUT, "module %.100s...: the name is too long", module);
}

static err list_modules(struct listing *l, const struct adapter_file_module *module, size_t count,
                        int roles)
{
    TRY(arena_take(&l->tensor, &l->arena, count * ADAPTER_FILE_ROLES + l->more, sizeof *l->tensor));
    char name[LIMIT_TENSOR_NAME_BYTES];
    for (size_t i = 0; i < count; i++) {
        TRY(check_name(module[i].name));
        for (int r = 0; r < roles; r++) {
            if (!module[i].factor[r].f32) continue;
            adapter_file_tensor_name(name, module[i].name, (enum adapter_file_role)r);
            TRY(list_factor(l, name, &module[i].factor[r]));
        }
    }
    return ERR_NONE;
}

err adapter_file_write_bytes(struct bytes *out, const struct adapter_file_meta *meta,
                             const struct adapter_file_module *module, size_t count)
{
    struct listing l = {0};
    put_meta(&l, meta);
    err e = list_modules(&l, module, count, ADAPTER_FILE_ROLES);
    if (!err_is(e)) e = safetensors_write(out, l.tensor, l.count, l.metadata, l.metadata_count);
    arena_close(&l.arena);
    return e;
}

/* The names of the module's factors, whose values need not exist. */
static err list_shapes(struct listing *l, const struct adapter_file_module *module)
{
    char name[LIMIT_TENSOR_NAME_BYTES];
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
        struct adapter_file_factor shape = module->factor[r];
        shape.f32 = NULL;
        if (!shape.rows) continue;
        adapter_file_tensor_name(name, module->name, (enum adapter_file_role)r);
        TRY(list_factor(l, name, &shape));
    }
    return ERR_NONE;
}

err adapter_file_bytes(uint64_t *bytes, uint64_t *values, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count)
{
    struct listing l = {0};
    uint64_t header = 0, sum = 0, size = 0;
    err e = ERR_NONE;
    put_meta(&l, meta);
    TRY_OUT(e, arena_take(&l.tensor, &l.arena, count * ADAPTER_FILE_ROLES, sizeof *l.tensor));
    for (size_t i = 0; i < count; i++)
        TRY_OUT(e, list_shapes(&l, &module[i]));
    bool fits = true;
    for (size_t i = 0; i < l.count && fits; i++)
        fits = size_add(&sum, sum, l.tensor[i].count);
    if (fits)
        TRY_OUT(e,
                safetensors_header_bytes(&header, l.tensor, l.count, l.metadata, l.metadata_count));
    if (fits && size_mul(&size, sum, sizeof(float)) && size_add(&size, size, header)) {
        *bytes = size;
        if (values) *values = sum;
    } else {
        e = err_make(ERR_LIMIT, "the factors of %zu modules are more than a file can hold", count);
    }
out:
    arena_close(&l.arena);
    return e;
}

/* A tensor's entry is its name with a prefix and a suffix, dtype, shape and offsets: less than 192
 * bytes besides the module's name. Three lists of the metadata (fedlora.modules, dropped and
 * alpha_pattern) have an entry for each module, whose quotes are escaped. The rest are short texts.
 * A name may double when it is escaped. */
uint64_t adapter_file_header_most(size_t modules, size_t name_bytes)
{
    enum { ENTRY_BYTES = 192, LISTS = 3, LISTED_BYTES = 64, OTHER_BYTES = 1 << 16 };
    uint64_t each = ADAPTER_FILE_ROLES * ENTRY_BYTES + LISTS * LISTED_BYTES;
    uint64_t names = 2 * (ADAPTER_FILE_ROLES + LISTS);
    return OTHER_BYTES + modules * each + name_bytes * names;
}

/* An adapter has hundreds of tensors of some tens of KiB. They are gathered into blocks, because
 * one write(2) for each costs more than the copy. */
struct gather {
    struct file_out *file;
    uint8_t *block; /* (most) */
    size_t used, most;
};

static err gather_flush(struct gather *g)
{
    size_t used = g->used;
    g->used = 0;
    return used ? file_out_append(g->file, g->block, used) : ERR_NONE;
}

static err gather_append(struct gather *g, const void *data, size_t size)
{
    if (size > g->most - g->used) TRY(gather_flush(g));
    if (size >= g->most) return file_out_append(g->file, data, size);
    if (size) memcpy(g->block + g->used, data, size);
    g->used += size;
    return ERR_NONE;
}

static err write_listing(const char *path, struct listing *l, bool replace)
{
    struct file_out file = {0};
    struct gather g = {.file = &file};
    err e = ERR_NONE;
    for (size_t i = 0; i < l->count && g.most < GATHER_BYTES; i++)
        g.most += l->tensor[i].size;
    if (g.most > GATHER_BYTES) g.most = GATHER_BYTES;
    TRY_OUT(e, arena_take(&g.block, &l->arena, g.most, 1));
    TRY_OUT(e, file_out_open(&file, path, replace));
    TRY_OUT(e,
            safetensors_write_header(&file, l->tensor, l->count, l->metadata, l->metadata_count));
    for (size_t i = 0; i < l->count; i++) {
        TRY_OUT(e, gather_append(&g, l->tensor[i].data, l->tensor[i].size));
        drop(l, &l->tensor[i]);
    }
    TRY_OUT(e, gather_flush(&g));
    TRY_OUT(e, file_out_commit(&file));
out:
    file_out_close(&file);
    return e;
}

static err write_modules(struct listing *l, const char *path, const struct adapter_file_meta *meta,
                         const struct adapter_file_module *module, size_t count)
{
    put_meta(l, meta);
    err e = list_modules(l, module, count, ADAPTER_FILE_ROLES);
    return err_is(e) ? err_in(e, "%s", path) : e;
}

err adapter_file_write(const char *path, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count, bool replace)
{
    struct listing l = {0};
    err e = write_modules(&l, path, meta, module, count);
    if (!err_is(e)) e = write_listing(path, &l, replace);
    arena_close(&l.arena);
    return e;
}

err adapter_file_write_from(const char *path, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count,
                            const struct file_map *from)
{
    struct listing l = {.from = from};
    err e = write_modules(&l, path, meta, module, count);
    if (!err_is(e)) e = write_listing(path, &l, /*replace*/ true);
    arena_close(&l.arena);
    return e;
}

/* ---- PEFT directories ---- */

static const char *const peft_files[] = {"adapter_config.json", "adapter_model.safetensors"};

/* Removes the two files of an adapter, and the directory if it is then empty. */
static void remove_adapter(const char *dir)
{
    char name[LIMIT_PATH_BYTES + 128];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/%s", dir, peft_files[i]);
        unlink(name);
    }
    rmdir(dir);
}

/* A, B and the magnitude, by PEFT's names. */
static err list_peft(struct listing *l, const struct adapter_file_peft *w)
{
    static const char *const ending[2][2] = {{"lora_A.weight", "lora_B.weight"},
                                             {"lora_embedding_A", "lora_embedding_B"}};
    char rooted[LIMIT_TENSOR_NAME_BYTES], name[LIMIT_TENSOR_NAME_BYTES + 64];
    TRY(arena_take(&l->tensor, &l->arena, w->count * 3 + l->more, sizeof *l->tensor));
    for (size_t i = 0; i < w->count; i++) {
        const struct adapter_file_module *m = &w->module[i];
        TRY(adapter_name_rooted(rooted, m->name, w->meta->root));
        TRY(check_name(rooted));
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
            snprintf(name, sizeof name, "base_model.model.%s.%s", rooted, ending[m->embedding][r]);
            TRY(list_factor(l, name, &m->factor[r]));
        }
        if (!m->magnitude.f32) continue;
        snprintf(name, sizeof name, "base_model.model.%s.lora_magnitude_vector", rooted);
        TRY(list_factor(l, name, &m->magnitude));
        l->tensor[l->count - 1].dims = 1;
    }
    return ERR_NONE;
}

/* Tensor names follow PEFT, in which an adapted layer has its bias in base_layer. */
static err list_saved(struct listing *l, const struct adapter_file_peft *w)
{
    for (size_t i = 0; i < w->saved_count; i++) {
        struct tensor *t = &l->tensor[l->count];
        *t = *w->saved[i].tensor;
        TRY(adapter_saved_tensor_name(&t->name, &l->arena, w->saved[i].name, w));
        REQUIRE(t->dtype == DTYPE_F32);
        l->count++;
        TRY(check_values(l, t));
    }
    return ERR_NONE;
}

static err fill_directory(const char *dir, const struct adapter_file_peft *w)
{
    char name[LIMIT_PATH_BYTES + 128];
    struct bytes text = {.max = CONFIG_MAX};
    struct listing l = {.from = w->from, .more = w->saved_count};
    err e = ERR_NONE;
    put(&l, "format", "pt");
    TRY_OUT(e, list_peft(&l, w));
    TRY_OUT(e, list_saved(&l, w));
    TRY_OUT(e, adapter_config_write(&text, w->meta, w->module, w->count));
    snprintf(name, sizeof name, "%s/%s", dir, peft_files[1]);
    TRY_OUT(e, write_listing(name, &l, true));
    snprintf(name, sizeof name, "%s/%s", dir, peft_files[0]);
    TRY_OUT(e, file_write(name, text.data, text.size, true));
out:
    bytes_close(&text);
    arena_close(&l.arena);
    return e;
}

/* Renames `made` to `dir`. An old directory is renamed first, and renamed back on failure. */
static err swap_directory(const char *made, const char *dir)
{
    char old[LIMIT_PATH_BYTES + 64], parent[LIMIT_PATH_BYTES];
    snprintf(old, sizeof old, "%s.old-%d", dir, (int)getpid());
    bool there = file_exists(dir);
    if (there && file_disk.rename(dir, old) != 0) return err_sys(errno, "%s", dir);
    if (file_disk.rename(made, dir) != 0) {
        err e = err_sys(errno, "%s", dir);
        if (there && file_disk.rename(old, dir) != 0)
            return err_in(e, "the old directory is now %s", old);
        return e;
    }
    if (there) remove_adapter(old);
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent)
        *slash = 0;
    else
        snprintf(parent, sizeof parent, "%s", slash ? "/" : ".");
    return file_sync_dir(parent);
}

static err check_peft(const struct adapter_file_module *module, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct adapter_file_factor *x = module[i].factor;
        const struct adapter_file_factor *a = &x[ADAPTER_FILE_A], *b = &x[ADAPTER_FILE_B];
        if (x[ADAPTER_FILE_R].f32 || x[ADAPTER_FILE_CARRY_A].f32)
            return err_make(ERR_INPUT,
                            "module %s: PEFT has only A and B; fold the other factors first",
                            module[i].name);
        if (!a->f32 || !b->f32 || a->rows != b->cols || a->rows != module[i].rank)
            return err_make(ERR_INPUT, "module %s: expected A and B of one rank", module[i].name);
        if (!(module[i].alpha > 0) || !isfinite(module[i].alpha))
            return err_make(ERR_INPUT, "module %s: alpha %g, expected a number above zero",
                            module[i].name, module[i].alpha);
    }
    return count ? ERR_NONE : err_make(ERR_INPUT, "no adapted module to write");
}

err adapter_file_write_peft(const char *dir, const struct adapter_file_meta *meta,
                            const struct adapter_file_module *module, size_t count, bool replace)
{
    const struct adapter_file_peft what = {
        .meta = meta, .module = module, .count = count, .replace = replace};
    return adapter_file_save_peft(dir, &what);
}

err adapter_file_save_peft(const char *dir, const struct adapter_file_peft *what)
{
    char made[LIMIT_PATH_BYTES + 32], clean[LIMIT_PATH_BYTES];
    err e = check_peft(what->module, what->count);
    if (err_is(e)) return err_in(e, "%s", dir);
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n == 0 || n + 64 > sizeof clean)
        return err_make(ERR_INPUT, "%.80s: not a usable path", dir);
    snprintf(clean, sizeof clean, "%.*s", (int)n, dir);
    if (!what->replace && file_exists(clean))
        return err_make(ERR_INPUT, "%s: exists already", clean);
    if (file_exists(clean) && !file_is_dir(clean))
        return err_make(ERR_INPUT, "%s: is a file, expected a directory", clean);
    snprintf(made, sizeof made, "%s.part-%d", clean, (int)getpid());
    remove_adapter(made);
    if (mkdir(made, 0777) != 0) return err_sys(errno, "%s", made);
    e = fill_directory(made, what);
    if (!err_is(e)) e = swap_directory(made, clean);
    if (err_is(e)) remove_adapter(made);
    return e;
}
