#include "agg/adapter/adapter_names.h"

#include <stdio.h>
#include <string.h>

/* Wrappers in front of the name, in any order and number. */
static const char *const front[] = {
    "base_model.model.", "base_model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.",
};
/* Wrappers of single modules, anywhere in the name. */
static const char *const inside[] = {
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
};

/* clang-format off */
static const struct ending {
    const char *text;  /* followed by the end, ".weight", ".NAME" or ".NAME.weight" */
    enum adapter_name_part part;
} endings[] = {
    {".lora_A",                ADAPTER_NAME_A},
    {".lora_B",                ADAPTER_NAME_B},
    {".lora_embedding_A",      ADAPTER_NAME_EMBEDDING_A},
    {".lora_embedding_B",      ADAPTER_NAME_EMBEDDING_B},
    {".lora_magnitude_vector", ADAPTER_NAME_MAGNITUDE},
};

/* The place of the decoder inside of the model; the first match counts. */
static const char *const roots[] = {
    "model.language_model.model.", "model.language_model.", "language_model.model.",
    "language_model.", "model.", "",
};
/* clang-format on */

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* The parts of a decoder that a root is followed by. */
static bool is_decoder(const char *name)
{
    return starts_with(name, "layers.") || starts_with(name, "embed_tokens") ||
           starts_with(name, "norm.");
}

static void cut_out(char *text, const char *word)
{
    size_t n = strlen(word);
    for (char *at = text; (at = strstr(at, word));) {
        bool whole = at == text || at[-1] == '.';
        if (whole)
            memmove(at, at + n, strlen(at + n) + 1);
        else
            at += n;
    }
}

static const char *skip_front(const char *name)
{
    bool found = true;
    while (found) {
        found = false;
        for (size_t i = 0; i < sizeof front / sizeof *front && !found; i++) {
            found = starts_with(name, front[i]);
            if (found) name += strlen(front[i]);
        }
    }
    return name;
}

/* Behind ".lora_A": nothing, ".weight", ".default" or ".default.weight". */
static bool is_rest(const char *rest, bool weight_needed)
{
    if (!*rest) return !weight_needed;
    if (strcmp(rest, ".weight") == 0) return true;
    const char *dot = *rest == '.' ? strchr(rest + 1, '.') : NULL;
    if (dot) return dot > rest + 1 && strcmp(dot, ".weight") == 0;
    return !weight_needed && *rest == '.' && rest[1] && strcmp(rest, ".bias") != 0;
}

/* Cuts the ending of a factor off; false: the tensor is no factor. */
static bool take_ending(struct adapter_name *n)
{
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const struct ending *e = &endings[i];
        char *at = strstr(n->module, e->text);
        if (!at || at == n->module) continue;
        bool weight = e->part == ADAPTER_NAME_A || e->part == ADAPTER_NAME_B;
        if (!is_rest(at + strlen(e->text), weight)) continue;
        *at = 0;
        n->part = e->part;
        return true;
    }
    return false;
}

/* "lm_head.modules_to_save.default.weight", "lm_head.original_module.weight",
 * "q_proj.base_layer.bias" */
static void take_whole(struct adapter_name *n)
{
    static const char saved[] = ".modules_to_save", wrapped[] = ".base_layer";
    n->part = strstr(n->module, ".original_module.") ? ADAPTER_NAME_COPY : ADAPTER_NAME_WHOLE;
    char *at = strstr(n->module, saved);
    char *last = strrchr(n->module, '.');
    if (at && last > at) memmove(at, last, strlen(last) + 1);
    at = strstr(n->module, wrapped);
    size_t w = sizeof wrapped - 1;
    if (at && at[w] == '.') memmove(at, at + w, strlen(at + w) + 1);
}

static err to_root(struct adapter_name *n)
{
    char plain[LIMIT_TENSOR_NAME_BYTES + 8];
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        const char *root = roots[i];
        if (!starts_with(n->module, root) || !is_decoder(n->module + strlen(root))) continue;
        n->root = root;
        int size = snprintf(plain, sizeof plain, "model.%s", n->module + strlen(root));
        if (size < 0 || (size_t)size >= sizeof n->module)
            return err_make(ERR_INPUT, "tensor %.200s: the name is too long", n->module);
        memcpy(n->module, plain, (size_t)size + 1);
        return ERR_NONE;
    }
    static const char inner[] = "language_model.";
    size_t k = sizeof inner - 1;
    if (starts_with(n->module, "language_model.lm_head"))
        memmove(n->module, n->module + k, strlen(n->module + k) + 1);
    return ERR_NONE;
}

err adapter_name_read(struct adapter_name *out, const char *tensor)
{
    struct adapter_name n = {0};
    const char *name = skip_front(tensor);
    if (strlen(tensor) >= sizeof n.module)
        return err_make(ERR_INPUT, "tensor %.200s: the name is too long", tensor);
    memcpy(n.module, name, strlen(name) + 1);
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        cut_out(n.module, inside[i]);
    if (!take_ending(&n)) {
        if (strstr(n.module, ".lora_") || strstr(n.module, ".carry_"))
            return err_make(ERR_INPUT,
                            "tensor %.200s: expected base_model.model.<module>.lora_A.weight, "
                            "lora_B, lora_embedding_A, lora_embedding_B or lora_magnitude_vector",
                            tensor);
        take_whole(&n);
    }
    TRY(to_root(&n));
    *out = n;
    return ERR_NONE;
}

err adapter_name_rooted(char out[LIMIT_TENSOR_NAME_BYTES], const char *module, const char *root)
{
    static const char usual[] = "model.";
    bool moved = root && starts_with(module, usual) && is_decoder(module + sizeof usual - 1);
    int size = snprintf(out, LIMIT_TENSOR_NAME_BYTES, "%s%s", moved ? root : "",
                        module + (moved ? sizeof usual - 1 : 0));
    if (size >= 0 && size < LIMIT_TENSOR_NAME_BYTES) return ERR_NONE;
    return err_make(ERR_INPUT, "module %.100s...: the name is too long", module);
}
