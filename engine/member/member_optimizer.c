#include "engine/member/member_optimizer.h"

#include "base/file.h"
#include "engine/member/member_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FACTORS = 3 };

static void path_of(char out[LIMIT_PATH_BYTES], const char *kept_path, unsigned trains)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s.optimizer.%s%s%s", kept_path, trains & ADAPTER_A ? "a" : "",
             trains & ADAPTER_B ? "b" : "", trains & ADAPTER_R ? "r" : "");
}

/* PyTorch's names of the first and the second moment. */
static const char *const moment_names[] = {"exp_avg", "exp_avg_sq"};

static err put_tensor(struct tensor *out, struct arena *arena, const struct tensor *shape,
                      const char *factor, const char *moment)
{
    char name[LIMIT_TENSOR_NAME_BYTES + 16];
    int length = snprintf(name, sizeof name, "%s.%s", factor, moment);
    *out = *shape;
    return arena_text(&out->name, arena, name, (size_t)length);
}

/* Lists two tensors for each trained factor, whose data are in the moments: at most
 * 2 * FACTORS * ad->count. */
static err list_tensors(struct tensor *out, size_t *count, struct arena *arena,
                        const struct train_moments *m, const struct adapter *ad)
{
    size_t n = 0;
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *module = &ad->module[i];
        const float *value[FACTORS] = {module->a, module->b, module->r};
        uint32_t rank = module->rank,
                 shape[FACTORS][2] = {{rank, module->d_in}, {module->d_out, rank}, {rank, rank}};
        for (int k = 0; k < FACTORS && rank; k++) {
            char name[LIMIT_TENSOR_NAME_BYTES], factor[LIMIT_TENSOR_NAME_BYTES];
            if (!(ad->trains & (1u << k)) || !value[k]) continue;
            model_module_name(name, module->layer, module->kind);
            adapter_file_tensor_name(factor, name, (enum adapter_file_role)k);
            struct tensor t = {.dtype = DTYPE_F32, .dims = 2, .shape = {shape[k][0], shape[k][1]}};
            t.count = (size_t)shape[k][0] * shape[k][1];
            t.size = t.count * sizeof(float);
            for (int moment = 0; moment < 2; moment++) {
                t.data = (moment ? m->second : m->first) + (value[k] - ad->value);
                TRY(put_tensor(&out[n++], arena, &t, factor, moment_names[moment]));
            }
        }
    }
    *count = n;
    return ERR_NONE;
}

static bool same_shape(const struct tensor *a, const struct tensor *b)
{
    return a && a->dtype == b->dtype && a->dims == b->dims && a->shape[0] == b->shape[0] &&
           a->shape[1] == b->shape[1];
}

/* All moments of the file, or none. The listed tensors point into *m, which is not constant. */
static err read_moments(struct train_moments *m, const char *path, const struct tensor *tensor,
                        size_t count)
{
    struct safetensors st = {0};
    bool good = true;
    TRY(safetensors_open(&st, path));
    const char *steps = safetensors_metadata(&st, "fedlora.steps");
    for (size_t i = 0; i < count; i++)
        good &= same_shape(safetensors_find(&st, tensor[i].name), &tensor[i]);
    for (size_t i = 0; good && steps && i < count; i++)
        memcpy((void *)(uintptr_t)tensor[i].data, safetensors_find(&st, tensor[i].name)->data,
               tensor[i].size);
    if (good && steps) m->steps = strtoull(steps, NULL, 10);
    safetensors_close(&st);
    return ERR_NONE;
}

err member_optimizer_take(struct train_moments *out, struct arena *arena, const struct adapter *ad,
                          const struct member_round *r)
{
    char path[LIMIT_PATH_BYTES], newest[LIMIT_PATH_BYTES];
    struct train_moments m = {0};
    struct tensor *tensor = NULL;
    size_t count = 0;
    bool found = false;
    TRY(arena_take(&m.first, arena, ad->value_count, sizeof *m.first));
    TRY(arena_take(&m.second, arena, ad->value_count, sizeof *m.second));
    path_of(path, r->kept_path, ad->trains);
    TRY(member_file_find(&found, newest, path, r, r->round - 1));
    if (found) {
        TRY(arena_take(&tensor, arena, 2 * FACTORS * ad->count, sizeof *tensor));
        TRY(list_tensors(tensor, &count, arena, &m, ad));
        TRY(read_moments(&m, newest, tensor, count));
    }
    *out = m;
    return ERR_NONE;
}

static err write_file(const char *path, const struct tensor *tensor, size_t count,
                      const struct metadata *metadata, size_t metadata_count)
{
    struct file_out file = {0};
    TRY(file_out_open(&file, path, /*replace*/ true));
    err e = safetensors_write_file(&file, tensor, count, metadata, metadata_count);
    if (!err_is(e)) e = file_out_commit(&file);
    file_out_close(&file);
    return e;
}

err member_optimizer_write(const struct train_moments *m, const struct adapter *ad,
                           const struct member_round *r)
{
    char path[LIMIT_PATH_BYTES], round[16], steps[24];
    struct arena arena = {0};
    struct tensor *tensor = NULL;
    size_t count = 0;
    err e;
    snprintf(round, sizeof round, "%" PRIu32, r->round);
    snprintf(steps, sizeof steps, "%" PRIu64, m->steps);
    const struct metadata metadata[] = {{"fedlora.kind", "optimizer"}, {"fedlora.run", r->run},
                                        {"fedlora.member", r->member}, {"fedlora.base", r->base},
                                        {"fedlora.round", round},      {"fedlora.steps", steps}};
    path_of(path, r->kept_path, ad->trains);
    TRY_OUT(e, arena_take(&tensor, &arena, 2 * FACTORS * ad->count, sizeof *tensor));
    TRY_OUT(e, list_tensors(tensor, &count, &arena, m, ad));
    TRY_OUT(e, member_file_make_room(path, r));
    e = write_file(path, tensor, count, metadata, sizeof metadata / sizeof *metadata);
out:
    arena_close(&arena);
    return e;
}

err member_optimizer_undo(unsigned trains, const struct member_round *r)
{
    char path[LIMIT_PATH_BYTES];
    path_of(path, r->kept_path, trains);
    return member_file_undo(path, r);
}

void member_optimizer_drop(const char *kept_path)
{
    char path[LIMIT_PATH_BYTES];
    for (unsigned trains = 1; trains < 1u << FACTORS; trains++) {
        path_of(path, kept_path, trains);
        member_file_drop(path);
    }
}
