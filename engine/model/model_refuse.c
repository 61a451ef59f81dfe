/* Says of a Hugging Face directory whose weights cannot be read what it holds and what to give
 * instead. */
#include "base/text.h"
#include "engine/model/model_build.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

err model_refuse_quantised(const char *where, const char *method, const char *base)
{
    char of[LIMIT_NAME_BYTES + 8] = "";
    if (base && strchr(base, '/') && strlen(base) < LIMIT_NAME_BYTES)
        snprintf(of, sizeof of, " (%s)", base);
    return err_make(ERR_INPUT,
                    "%s: the weights are quantised by %s: expected F32, F16 or BF16; give the "
                    "model that they were made from%s, or a GGUF file of it",
                    where, method, of);
}

/* Tensors that only a method of quantisation writes, beside or in place of a weight. */
static const struct {
    const char *ending, *method;
} marks[] = {
    {".qweight", "GPTQ or AWQ"},
    {".qzeros", "GPTQ or AWQ"},
    {".g_idx", "GPTQ"},
    {".absmax", "bitsandbytes"},
    {".quant_map", "bitsandbytes"},
    {".quant_state.bitsandbytes__nf4", "bitsandbytes"},
    {".quant_state.bitsandbytes__fp4", "bitsandbytes"},
    {".SCB", "bitsandbytes"},
    {".weight_packed", "compressed-tensors"},
    {".weight_shape", "compressed-tensors"},
    {".weight_scale", "FP8 or compressed-tensors"},
    {".weight_scale_inv", "FP8"},
    {".weight_scale_2", "NVFP4"},
    {".weight_blocks", "MXFP4"},
    {".weight_scales", "MXFP4"},
};

err model_check_quantised(const struct model *m)
{
    for (size_t f = 0; f < m->file_count; f++) {
        const struct safetensors *st = &m->file[f].tensors;
        for (size_t i = 0; i < st->count; i++)
            for (size_t k = 0; k < sizeof marks / sizeof marks[0]; k++)
                if (text_ends_with(st->tensor[i].name, marks[k].ending)) {
                    char where[LIMIT_PATH_BYTES + 2 * LIMIT_NAME_BYTES];
                    snprintf(where, sizeof where, "%s/%s: tensor %s", m->path, m->file[f].name,
                             st->tensor[i].name);
                    return model_refuse_quantised(where, marks[k].method, NULL);
                }
    }
    return ERR_NONE;
}

/* The first name by strcmp() with this ending, so that the answer does not depend on the order of
 * the directory; false if there is none. */
static bool find_file(char out[LIMIT_NAME_BYTES], const char *directory, const char *ending)
{
    DIR *dir = opendir(directory);
    bool found = false;
    if (!dir) return false;
    for (const struct dirent *d; (d = readdir(dir));)
        if (text_ends_with(d->d_name, ending) && strlen(d->d_name) < LIMIT_NAME_BYTES &&
            (!found || strcmp(d->d_name, out) < 0)) {
            memcpy(out, d->d_name, strlen(d->d_name) + 1);
            found = true;
        }
    closedir(dir);
    return found;
}

err model_refuse_formats(const char *directory)
{
    char name[LIMIT_NAME_BYTES];
    static const char none[] = "contains neither model.safetensors nor "
                               "model.safetensors.index.json";
    if (find_file(name, directory, ".gguf"))
        return err_make(ERR_INPUT, "%s: %s; to use its GGUF file, give %s/%s", directory, none,
                        directory, name);
    if (find_file(name, directory, "adapter_model.safetensors"))
        return err_make(ERR_INPUT,
                        "%s: %s, but %s: this is an adapter; give it with --adapter, and its base "
                        "model with --base",
                        directory, none, name);
    if (find_file(name, directory, ".bin"))
        return err_make(ERR_INPUT,
                        "%s: %s; %s is in PyTorch's format, whose loading can run code; convert it "
                        "with: python3 -c 'import sys, transformers as t; "
                        "t.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
                        ".save_pretrained(sys.argv[1])' %s",
                        directory, none, name, directory);
    return err_make(ERR_INPUT, "%s: %s (other formats of weights are not supported)", directory,
                    none);
}
