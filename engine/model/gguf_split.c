/* Opens a GGUF file, and with it the other files of a split model. Names and keys are those of
 * llama-gguf-split: NAME-00002-of-00003.gguf has split.no 1 and split.count 3, and the first file
 * has the number of all tensors in split.tensors.count. */
#include "base/limits.h"
#include "engine/model/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENDING_BYTES = sizeof "-00001-of-00003.gguf" };

static err open_file(struct gguf *out, const char *path, enum gguf_extent extent)
{
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    err e = gguf_parse(out, map.data, map.size, extent);
    if (err_is(e)) {
        file_map_close(&map);
        return err_in(e, "%s", path);
    }
    out->map = map;
    return e;
}

static void ending(char out[ENDING_BYTES], uint32_t number, uint32_t count)
{
    snprintf(out, ENDING_BYTES, "-%05u-of-%05u.gguf", number % 100000, count % 100000);
}

struct split {
    const char *path; /* of the file that was named */
    uint32_t number, count;
    size_t stem; /* bytes of the path before the ending */
};

static err read_split(struct split *out, const struct gguf *g, const char *path)
{
    struct split s = {.path = path, .count = 1};
    char expected[ENDING_BYTES];
    size_t size = strlen(path);
    TRY(gguf_opt_u32(&s.count, g, "split.count"));
    TRY(gguf_opt_u32(&s.number, g, "split.no"));
    if (s.count > LIMIT_GGUF_FILES || (s.count > 1 && s.number >= s.count))
        return err_make(ERR_INPUT, "split.no %u of split.count %u: expected at most %d files",
                        s.number, s.count, LIMIT_GGUF_FILES);
    ending(expected, s.number + 1, s.count);
    s.stem = size < strlen(expected) ? 0 : size - strlen(expected);
    if (s.count > 1 && strcmp(path + s.stem, expected) != 0)
        return err_make(ERR_INPUT,
                        "file %u of a model that is split into %u: expected a name that ends in "
                        "%s, so that the other files can be found",
                        s.number + 1, s.count, expected);
    *out = s;
    return ERR_NONE;
}

/* File `number` of the split, from 0. */
static err open_part(struct gguf *out, const struct split *s, uint32_t number,
                     enum gguf_extent extent)
{
    char path[LIMIT_PATH_BYTES], end[ENDING_BYTES];
    struct split found = {0};
    ending(end, number + 1, s->count);
    if (s->stem + sizeof end > sizeof path)
        return err_make(ERR_INPUT, "%s: the path is too long", s->path);
    snprintf(path, sizeof path, "%.*s%s", (int)s->stem, s->path, end);
    if (!file_exists(path))
        return err_make(ERR_INPUT, "%s: is missing; the model is split into %u files", path,
                        s->count);
    TRY(open_file(out, path, extent));
    err e = read_split(&found, out, path);
    if (!err_is(e) && (found.count != s->count || found.number != number))
        e = err_make(ERR_INPUT, "split.no %u of split.count %u: expected %u of %u", found.number,
                     found.count, number, s->count);
    if (!err_is(e)) return e;
    gguf_close(out);
    return err_in(e, "%s", path);
}

/* *out is the first file. */
static err open_rest(struct gguf *out, const struct split *s, enum gguf_extent extent)
{
    struct gguf *part = calloc(s->count, sizeof *part);
    size_t opened = 0, more = s->count - 1;
    uint32_t tensors = 0;
    err e = part ? ERR_NONE : err_make(ERR_MACHINE, "no memory for %u files", s->count);
    for (; opened < more && !err_is(e); opened += !err_is(e))
        e = open_part(&part[opened], s, (uint32_t)opened + 1, extent);
    if (!err_is(e)) e = gguf_join(out, part, more);
    for (size_t i = 0; i < opened && err_is(e); i++)
        gguf_close(&part[i]);
    free(part);
    if (err_is(e)) return e;
    TRY(gguf_get_u32(&tensors, out, "split.tensors.count"));
    if (tensors != out->tensor_count)
        return err_make(ERR_INPUT, "%s: %zu tensors in all files, split.tensors.count is %u",
                        s->path, out->tensor_count, tensors);
    return ERR_NONE;
}

err gguf_open(struct gguf *out, const char *path, enum gguf_extent extent)
{
    struct gguf g = {0};
    struct split s = {0};
    TRY(open_file(&g, path, extent));
    err e = read_split(&s, &g, path);
    if (err_is(e)) {
        e = err_in(e, "%s", path);
    } else if (s.count > 1) {
        if (s.number > 0) {
            gguf_close(&g);
            TRY(open_part(&g, &s, 0, extent));
        }
        e = open_rest(&g, &s, extent);
    }
    if (err_is(e))
        gguf_close(&g);
    else
        *out = g;
    return e;
}
