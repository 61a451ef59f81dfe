/* Hello of a member: client/session/session_describe.h. */
#include "client/session/session_describe.h"

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
    for (size_t i = 0; i < n; i++) {
        enum module_kind kind = (enum module_kind)(i % MODULE_KINDS);
        char name[LIMIT_TENSOR_NAME_BYTES];
        const char *kept = NULL;
        model_module_name(name, (uint32_t)(i / MODULE_KINDS), kind);
        TRY(arena_text(&kept, arena, name, strlen(name)));
        shape[i] = (Fedlora__V1__ModuleShape)FEDLORA__V1__MODULE_SHAPE__INIT;
        shape[i].name = (char *)(uintptr_t)kept;
        model_module_shape(&shape[i].d_out, &shape[i].d_in, arch, kind);
        list[i] = &shape[i];
    }
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* Equal bits are promised only for one processor type, one set of libraries and one number of GPUs,
 * so the run records those of each member. */
static err name_libraries(char **out, const char *device, struct arena *arena)
{
    char processor[100], libraries[150], all[384];
    const char *kept = NULL;
    bool gpu = device && strncmp(device, "cuda", 4) == 0;
    describe_processor(processor, sizeof processor);
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
                                     .examples = local->data.count,
                                     .eval_rows = local->held_out.count,
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
