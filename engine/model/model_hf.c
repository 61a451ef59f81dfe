/* Reads the weights of a Hugging Face directory: model.safetensors, or the shards that
 * model.safetensors.index.json lists. */
#include "base/json.h"
#include "base/text.h"
#include "engine/model/model_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_BYTES_MAX (64u << 20)

struct found {
    const struct tensor *tensor;
    const char *file;
};

/* The names that a file has for "model." and "lm_head.". */
struct naming {
    const char *model, *head;
    bool images; /* beside the language model there is a part that reads images */
};

/* The first is the usual one. Files saved from the base class (LlamaModel instead of
 * LlamaForCausalLM) have no prefix. Models with images have either of the last two, by the version
 * of transformers. */
static const struct naming namings[] = {
    {"model.", "lm_head.", false},
    {"", "lm_head.", false},
    {"model.language_model.", "lm_head.", true},
    {"language_model.model.", "language_model.lm_head.", true},
};

/* The name in the file of a tensor with this usual name. */
static void file_name_of(char out[LIMIT_TENSOR_NAME_BYTES + 32], const char *name,
                         const struct naming *n)
{
    bool head = strncmp(name, "lm_head.", 8) == 0;
    snprintf(out, LIMIT_TENSOR_NAME_BYTES + 32, "%s%s", head ? n->head : n->model,
             name + (head ? 8 : 6));
}

/* The reverse; false for a name that is not of the language model. */
static bool usual_name_of(char out[LIMIT_TENSOR_NAME_BYTES + 32], const char *name,
                          const struct naming *n)
{
    size_t head = strlen(n->head), model = strlen(n->model);
    bool is_head = strncmp(name, n->head, head) == 0;
    if (!is_head && strncmp(name, n->model, model) != 0) return false;
    snprintf(out, LIMIT_TENSOR_NAME_BYTES + 32, "%s%s", is_head ? "lm_head." : "model.",
             name + (is_head ? head : model));
    return true;
}

/* Linear in the number of shards, which is small; within a shard the search is binary. */
static struct found find_tensor(const struct model *m, const char *name)
{
    for (size_t i = 0; i < m->file_count; i++) {
        const struct tensor *t = safetensors_find(&m->file[i].tensors, name);
        if (t != NULL) return (struct found){.tensor = t, .file = m->file[i].name};
    }
    return (struct found){0};
}

static struct found find_usual(const struct model *m, const char *name, const struct naming *n)
{
    char full[LIMIT_TENSOR_NAME_BYTES + 32];
    file_name_of(full, name, n);
    return find_tensor(m, full);
}

/* By the final norm, which every model has. */
static const struct naming *find_naming(const struct model *m)
{
    for (size_t i = 0; i < sizeof namings / sizeof *namings; i++)
        if (find_usual(m, "model.norm.weight", &namings[i]).tensor != NULL) return &namings[i];
    return &namings[0];
}

/* Shard names come from the index, which is not trusted: a name with a slash could point outside of
 * the directory. */
static err open_file(struct model *m, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    struct model_file *file = &m->file[m->file_count];
    if (strlen(name) >= sizeof file->name || strchr(name, '/') != NULL)
        return err_make(ERR_INPUT, "shard \"%s\": expected the name of a file in the directory",
                        name);
    TRY(file_join(path, sizeof path, m->path, name));
    if (!file_exists(path))
        return err_make(ERR_INPUT, "%s: the index names it, but it is missing", path);
    TRY(safetensors_open(&file->tensors, path));
    memcpy(file->name, name, strlen(name) + 1);
    m->file_count++;
    return ERR_NONE;
}

static bool is_open(const struct model *m, const char *name)
{
    for (size_t i = 0; i < m->file_count; i++)
        if (strcmp(m->file[i].name, name) == 0) return true;
    return false;
}

/* Each tensor of the index must be in the shard that the index names and in no other one; otherwise
 * two readers could see two different models in one directory. */
static err open_shards(struct model *m, json_t *index, const char *path)
{
    json_t *map = json_object_get(index, "weight_map"), *value;
    const char *key;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_make(ERR_INPUT, "%s: weight_map: expected an object", path);
    if (json_object_size(map) > LIMIT_TENSORS)
        return err_make(ERR_INPUT, "%s: %zu tensors, at most %d", path, json_object_size(map),
                        LIMIT_TENSORS);
    TRY(arena_take(&m->file, &m->arena, json_object_size(map), sizeof *m->file));
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        if (name == NULL) return err_make(ERR_INPUT, "%s: %s: expected a file's name", path, key);
        if (!is_open(m, name)) TRY(open_file(m, name));
        const struct found f = find_tensor(m, key);
        if (f.tensor != NULL && strcmp(f.file, name) != 0)
            return err_make(ERR_INPUT, "%s: tensor %s is also in %s", path, key, f.file);
        if (f.tensor == NULL)
            return err_make(ERR_INPUT, "%s: tensor %s is not in %s", path, key, name);
    }
    return ERR_NONE;
}

/* A directory with both forms uses model.safetensors, as transformers does. Pickle files (.bin) are
 * not read: loading one can run code. */
static err open_files(struct model *m)
{
    char whole[LIMIT_PATH_BYTES], index_path[LIMIT_PATH_BYTES];
    TRY(file_join(whole, sizeof whole, m->path, "model.safetensors"));
    TRY(file_join(index_path, sizeof index_path, m->path, "model.safetensors.index.json"));
    if (file_exists(whole)) {
        TRY(arena_take(&m->file, &m->arena, 1, sizeof *m->file));
        return open_file(m, "model.safetensors");
    }
    if (!file_exists(index_path)) return model_refuse_formats(m->path);
    json_t *index = NULL;
    TRY(json_open(&index, index_path, INDEX_BYTES_MAX));
    err e = open_shards(m, index, index_path);
    json_decref(index);
    return e;
}

/* A shape for error messages, such as "(8, 512)". */
static void shape_text(char *out, size_t bytes, const uint64_t *side, int dims)
{
    size_t used = (size_t)snprintf(out, bytes, "(");
    for (int i = 0; i < dims && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)side[i]);
    if (used < bytes) snprintf(out + used, bytes - used, ")");
}

/* Checks the shape, because sizes from config.json index this memory from now on. */
static err fill_slot(const struct model *m, const struct model_slot *slot, const struct found *f)
{
    const struct tensor *t = f->tensor;
    const uint64_t expected[2] = {slot->rows, slot->cols};
    int dims = slot->vector ? 1 : 2;
    err e = ERR_NONE;
    if (t->dims != dims || memcmp(t->shape, expected, sizeof *expected * (size_t)dims) != 0) {
        char has[128], wants[128];
        shape_text(has, sizeof has, t->shape, t->dims);
        shape_text(wants, sizeof wants, expected, dims);
        e = err_make(ERR_INPUT, "shape %s, expected %s", has, wants);
    } else {
        e = model_fill(slot, t->data, t->dtype, dtype_name(t->dtype));
        if (!err_is(e) && slot->norm) slot->weight->plus = m->arch.family->norm_plus;
    }
    return err_is(e) ? err_in(e, "%s/%s: tensor %s", m->path, f->file, t->name) : e;
}

/* tie_word_embeddings may be set although the file has an lm_head that differs from the embedding.
 * transformers 5 ties the two only if they are equal; here the bytes decide in the same way. A file
 * that has just one of the two is handled in fill_all(). */
static void decide_tied_head(struct model *m, const struct naming *n)
{
    const struct tensor *head = find_usual(m, "lm_head.weight", n).tensor;
    const struct tensor *embed = find_usual(m, "model.embed_tokens.weight", n).tensor;
    if (!m->arch.tied || head == NULL || embed == NULL) return;
    m->arch.tied = head->dtype == embed->dtype && head->size == embed->size &&
                   (head->size == 0 || memcmp(head->data, embed->data, head->size) == 0);
}

/* Tensors that do not enter the computation: rotary_emb.inv_freq buffers, which old versions of
 * transformers saved, and a second copy of a tied head. */
static bool is_ignored(const struct model *m, const char *name, const struct naming *n)
{
    if (text_ends_with(name, "rotary_emb.inv_freq")) return true;
    size_t head = strlen(n->head);
    return m->arch.tied && strncmp(name, n->head, head) == 0 && strcmp(name + head, "weight") == 0;
}

/* The tensors of the part that reads images, which only a model with such a part may have. */
static bool is_of_images(const char *name, const struct naming *n)
{
    static const char *const part[] = {"vision_tower.", "multi_modal_projector."};
    const char *at = strncmp(name, "model.", 6) == 0 ? name + 6 : name;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        if (n->images && strncmp(at, part[i], strlen(part[i])) == 0) return true;
    return false;
}

/* A tensor that no slot uses means that the description in config.json is incomplete, for example a
 * bias that it does not mention. Ignoring the tensor would compute another function. */
static err check_extra(struct model *m, struct model_slot *slot, size_t count,
                       const struct naming *n)
{
    for (size_t f = 0; f < m->file_count; f++) {
        const struct safetensors *st = &m->file[f].tensors;
        for (size_t i = 0; i < st->count; i++) {
            char full[LIMIT_TENSOR_NAME_BYTES + 32];
            const char *name = st->tensor[i].name;
            bool images = is_of_images(name, n);
            m->image_tensors += images;
            if (images || is_ignored(m, name, n)) continue;
            if (!usual_name_of(full, name, n) || !model_slot_find(slot, count, full, ""))
                return err_make(ERR_INPUT,
                                "%s/%s: tensor %s is not part of a %s model as config.json "
                                "describes it",
                                m->path, m->file[f].name, name, m->arch.family->model_type);
        }
    }
    return ERR_NONE;
}

/* With a tied head the file may have the shared matrix under either name. */
static err fill_all(struct model *m, struct arena *arena)
{
    struct model_slot *slot;
    size_t count;
    const struct naming *n = find_naming(m);
    decide_tied_head(m, n);
    TRY(model_slots(&slot, &count, m, arena));
    for (size_t i = 0; i < count; i++) {
        struct found f = find_usual(m, slot[i].name, n);
        if (f.tensor == NULL && slot[i].weight == &m->embed && m->arch.tied)
            f = find_usual(m, "lm_head.weight", n);
        if (f.tensor == NULL)
            return err_make(ERR_INPUT, "%s: tensor %s is missing", m->path, slot[i].name);
        TRY(fill_slot(m, &slot[i], &f));
    }
    m->images = n->images;
    return check_extra(m, slot, count, n);
}

/* The configuration comes first, because it determines which tensors must exist. The list of slots
 * is needed only while opening, so it has an arena of its own. */
err model_hf_open(struct model *m)
{
    struct arena arena = {0};
    TRY(model_config_read(m, m->path));
    TRY(open_files(m));
    TRY(model_check_quantised(m));
    err e = fill_all(m, &arena);
    arena_close(&arena);
    return e;
}
