/* The modules of run_config.h: those of a base that a run adapts, and whether two bases have the
 * same ones. Lists come from members, so no check takes longer than sorting them. */
#include "coordinator/run/run_config.h"

#include "base/arena.h"
#include "base/limits.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef Fedlora__V1__ModuleShape module_shape;

/* Names become tensor names with a suffix (".lora_A.weight", ".carry_A"), so room is left for
 * it. */
static err check_module(const module_shape *m)
{
    if (!*m->name || strlen(m->name) + 40 > LIMIT_TENSOR_NAME_BYTES)
        return err_make(ERR_INPUT, "module \"%.80s\": the name is empty or too long", m->name);
    if (!m->d_out || !m->d_in || m->d_out > LIMIT_DIMENSION || m->d_in > LIMIT_DIMENSION)
        return err_make(ERR_INPUT, "module %s: shape (%u, %u)", m->name, m->d_out, m->d_in);
    return ERR_NONE;
}

static int by_name(const void *a, const void *b)
{
    const module_shape *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static err sorted(const module_shape ***out, const Fedlora__V1__HelloRequest *hello,
                  struct arena *arena)
{
    const module_shape **list = NULL;
    TRY(arena_take(&list, arena, hello->n_modules + 1, sizeof *list));
    for (size_t i = 0; i < hello->n_modules; i++)
        list[i] = hello->modules[i];
    qsort(list, hello->n_modules, sizeof *list, by_name);
    *out = list;
    return ERR_NONE;
}

/* The hello as untrusted input: names, shapes and their number. */
static err check_modules(const Fedlora__V1__HelloRequest *hello, struct arena *arena)
{
    const module_shape **list = NULL;
    if (hello->n_modules > LIMIT_MODULES)
        return err_make(ERR_INPUT, "%zu modules, at most %d", hello->n_modules, LIMIT_MODULES);
    for (size_t i = 0; i < hello->n_modules; i++)
        TRY(check_module(hello->modules[i]));
    TRY(sorted(&list, hello, arena));
    for (size_t i = 1; i < hello->n_modules; i++)
        if (!strcmp(list[i - 1]->name, list[i]->name))
            return err_make(ERR_INPUT, "module %s is named twice", list[i]->name);
    return ERR_NONE;
}

/* A target that matches no module is most likely a spelling mistake; without this check the run
 * would train fewer modules than the operator believes. */
static err every_target_names_one(const Fedlora__V1__RunConfig *c,
                                  const Fedlora__V1__HelloRequest *hello)
{
    for (size_t t = 0; t < c->n_targets; t++) {
        bool found = false;
        for (size_t i = 0; i < hello->n_modules && !found; i++)
            found = run_config_target_is(c->targets[t], hello->modules[i]->name);
        if (!found)
            return err_make(ERR_INPUT, "target \"%s\" names no module of this base", c->targets[t]);
    }
    return ERR_NONE;
}

/* The same for a member's own targets, which must be among the modules of the run. */
err run_config_own_modules(const Fedlora__V1__RunConfig *c, const Fedlora__V1__HelloRequest *list)
{
    for (size_t m = 0; m < c->n_members; m++)
        for (size_t t = 0; t < c->members[m]->n_targets; t++) {
            const char *target = c->members[m]->targets[t];
            bool found = false;
            for (size_t i = 0; i < list->n_modules && !found; i++)
                found = run_config_target_is(target, list->modules[i]->name);
            if (!found)
                return err_make(ERR_INPUT, "member %s: target \"%s\" names no module of this run",
                                c->members[m]->id, target);
        }
    return ERR_NONE;
}

static err add_module(Fedlora__V1__HelloRequest *list, const module_shape *m)
{
    module_shape *copy = malloc(sizeof *copy);
    char *name = strdup(m->name);
    if (!copy || !name) {
        free(copy);
        free(name);
        return err_sys(ENOMEM, "a module");
    }
    fedlora__v1__module_shape__init(copy);
    copy->name = name;
    copy->d_out = m->d_out;
    copy->d_in = m->d_in;
    list->modules[list->n_modules++] = copy;
    return ERR_NONE;
}

/* The list is a copy, because the hello is freed after its call. */
err run_config_modules(Fedlora__V1__HelloRequest **out, const Fedlora__V1__RunConfig *c,
                       const Fedlora__V1__HelloRequest *hello)
{
    struct arena arena = {0};
    err e = check_modules(hello, &arena);
    arena_close(&arena);
    if (err_is(e)) return e;
    TRY(every_target_names_one(c, hello));
    Fedlora__V1__HelloRequest *list = malloc(sizeof *list);
    if (!list) return err_sys(ENOMEM, "the modules");
    fedlora__v1__hello_request__init(list);
    list->modules = calloc(hello->n_modules + 1, sizeof *list->modules);
    e = list->modules ? ERR_NONE : err_sys(ENOMEM, "the modules");
    for (size_t i = 0; i < hello->n_modules && !err_is(e); i++)
        if (run_config_targets(c, hello->modules[i]->name)) e = add_module(list, hello->modules[i]);
    if (!err_is(e)) e = run_config_own_modules(c, list);
    if (err_is(e))
        fedlora__v1__hello_request__free_unpacked(list, NULL);
    else
        *out = list;
    return e;
}

static err same_modules(const Fedlora__V1__HelloRequest *modules,
                        const Fedlora__V1__HelloRequest *hello, const char *whose,
                        struct arena *arena)
{
    const module_shape **list = NULL;
    TRY(sorted(&list, hello, arena));
    for (size_t i = 0; i < modules->n_modules; i++) {
        const module_shape *m = modules->modules[i];
        const module_shape *const *found =
            bsearch(&m, list, hello->n_modules, sizeof *list, by_name);
        if (!found)
            return err_make(ERR_INPUT, "module %s of this run is missing in %s base", m->name,
                            whose);
        if ((*found)->d_out != m->d_out || (*found)->d_in != m->d_in)
            return err_make(ERR_INPUT, "module %s has shape (%u, %u) in %s base, expected (%u, %u)",
                            m->name, (*found)->d_out, (*found)->d_in, whose, m->d_out, m->d_in);
    }
    return ERR_NONE;
}

/* A member's base may have further modules that the run does not adapt. */
err run_config_same_modules(const Fedlora__V1__HelloRequest *modules,
                            const Fedlora__V1__HelloRequest *hello, const char *whose)
{
    struct arena arena = {0};
    err e = same_modules(modules, hello, whose, &arena);
    arena_close(&arena);
    return e;
}

/* Sorted, so that two lists of the same modules in another order have the same digest. */
err run_config_modules_digest(struct digest *out, const Fedlora__V1__HelloRequest *modules)
{
    struct arena arena = {0};
    struct digest_stream stream;
    const module_shape **list = NULL;
    err e = sorted(&list, modules, &arena);
    digest_begin(&stream);
    for (size_t i = 0; i < modules->n_modules && !err_is(e); i++) {
        const uint32_t shape[2] = {list[i]->d_out, list[i]->d_in};
        digest_add(&stream, list[i]->name, strlen(list[i]->name) + 1);
        digest_add(&stream, shape, sizeof shape);
    }
    *out = digest_end(&stream);
    arena_close(&arena);
    return e;
}
