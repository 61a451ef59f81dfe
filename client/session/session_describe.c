/* Hello of a member: client/session/session_describe.h. */
#include "client/session/session_describe.h"

#include "base/processor.h"
#include "kernels/describe.h"

#include <stdio.h>
#include <string.h>

/* By the shapes the coordinator recognises a member with a base of other dimensions. */
err session_describe_modules(Fedlora__V1__ModuleShape ***out, size_t *count,
                             const struct arch *arch, struct arena *arena)
{
    size_t n = (size_t)arch->layers * MODULE_KINDS;
    Fedlora__V1__ModuleShape **list = NULL, *shape = NULL;
    TRY(arena_take(&list, arena, n, sizeof(Fedlora__V1__ModuleShape *)));
    TRY(arena_take(&shape, arena, n, sizeof *shape));
    *count = 0;
    for (size_t k = 0; k < n; k++) {
        enum module_kind kind = (enum module_kind)(k % MODULE_KINDS);
        char name[LIMIT_TENSOR_NAME_BYTES];
        const char *kept = NULL;
        if (!model_has_module(arch, kind)) continue;
        size_t i = (*count)++;
        model_module_name(name, (uint32_t)(k / MODULE_KINDS), kind);
        TRY(arena_text(&kept, arena, name, strlen(name)));
        shape[i] = (Fedlora__V1__ModuleShape)FEDLORA__V1__MODULE_SHAPE__INIT;
        shape[i].name = (char *)(uintptr_t)kept;
        model_module_shape(&shape[i].d_out, &shape[i].d_in, arch, kind);
        list[i] = &shape[i];
    }
    *out = list;
    return ERR_NONE;
}

/* A carry has at most the rank of its product. The rank of a state's factors is the run's, which a
 * member does not know; a rank above that of the product is of no use, except a small one, which is
 * the same for all modules. */
void session_describe_sizes(struct session_sizes *out, const struct arch *arch, uint32_t rank)
{
    enum { SMALL_RANK = 256 };
    uint64_t names = 0, values = 0, modules = 0, n = (uint64_t)arch->layers * MODULE_KINDS;
    for (uint64_t i = 0; i < n; i++) {
        char name[LIMIT_TENSOR_NAME_BYTES];
        uint32_t d_out, d_in;
        enum module_kind kind = (enum module_kind)(i % MODULE_KINDS);
        if (!model_has_module(arch, kind)) continue;
        modules++;
        model_module_name(name, (uint32_t)(i / MODULE_KINDS), kind);
        model_module_shape(&d_out, &d_in, arch, kind);
        uint64_t product = d_out < d_in ? d_out : d_in;
        uint64_t pair = rank > SMALL_RANK ? rank : SMALL_RANK;
        if (pair < product) pair = product;
        names += strlen(name);
        values += (product + pair) * ((uint64_t)d_out + d_in) + pair * pair;
    }
    out->header = adapter_file_header_most(modules, names);
    out->file = sizeof(uint64_t) + out->header + sizeof(float) * values;
}

/* Equal bits are promised only for one processor type, one set of libraries and one number of GPUs,
 * so the run records those of each member. */
static err name_libraries(char **out, const char *device, struct arena *arena)
{
    char processor[100], libraries[150], all[384];
    const char *kept = NULL;
    bool gpu = device && strncmp(device, "cuda", 4) == 0;
    processor_name(processor, sizeof processor);
    describe_libraries(libraries, sizeof libraries);
    snprintf(all, sizeof all, "%s; %s%s%.64s", processor, libraries, gpu ? "; " : "",
             gpu ? device : "");
    TRY(arena_text(&kept, arena, all, strlen(all)));
    *out = (char *)(uintptr_t)kept;
    return ERR_NONE;
}

void session_describe_of(struct session_describe *out, struct session_local *local)
{
    *out = (struct session_describe){.arch = &local->model.arch,
                                     .base = &local->base,
                                     .rank = local->options->rank,
                                     .memory = local->options->memory,
                                     .examples = session_local_examples(local),
                                     .eval_rows = data_teaching(&local->held_out),
                                     .device = local->options->device};
}

/* Numbers of rows are reported, never contents. */
err session_describe(Fedlora__V1__HelloRequest *out, const struct session_describe *about,
                     struct arena *arena)
{
    out->base_digest = (ProtobufCBinaryData){DIGEST_BYTES, (uint8_t *)(uintptr_t)about->base->byte};
    out->rank = about->rank;
    out->memory_bytes = about->memory;
    out->examples = about->examples;
    out->eval_rows = about->eval_rows;
    TRY(name_libraries(&out->libraries, about->device, arena));
    return session_describe_modules(&out->modules, &out->n_modules, about->arch, arena);
}
