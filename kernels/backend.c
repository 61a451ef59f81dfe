#include "kernels/backend.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libfedlora_cuda.so"

/* N of "cuda:N", or 0 for "cuda". */
static bool device_number(int *out, const char *name)
{
    char *end = NULL;
    if (strncmp(name, "cuda", 4) != 0) return false;
    *out = 0;
    if (!name[4]) return true;
    if (name[4] != ':' || name[5] < '0' || name[5] > '9' || strlen(name) > 8) return false;
    *out = (int)strtol(name + 5, &end, 10);
    return *end == 0;
}

static err unknown_device(const char *name)
{
    return err_make(ERR_INPUT,
                    "device %s: expected cpu, cuda, cuda:N, a list as cuda:0,cuda:1, cuda:all or "
                    "auto",
                    name);
}

/* Appends a device; a list has numbers, so "cuda" is "cuda:0" there. */
static err list_add(struct backend_list *out, const char *names, int device)
{
    char name[BACKEND_NAME_BYTES];
    snprintf(name, sizeof name, "cuda:%d", device);
    for (size_t i = 0; i < out->count; i++)
        if (!strcmp(out->name[i], name))
            return err_make(ERR_INPUT, "device %s: %s is named twice", names, name);
    if (out->count == BACKEND_DEVICES_MAX)
        return err_make(ERR_INPUT, "device %s: more than %d devices", names, BACKEND_DEVICES_MAX);
    memcpy(out->name[out->count++], name, sizeof name);
    return ERR_NONE;
}

static err list_split(struct backend_list *out, const char *names)
{
    struct backend_list list = {0};
    for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char name[BACKEND_NAME_BYTES];
        int device = 0, n = (int)strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", n, at);
        if (n >= BACKEND_NAME_BYTES || !device_number(&device, name)) return unknown_device(names);
        TRY(list_add(&list, names, device));
    }
    *out = list;
    return ERR_NONE;
}

static void *say(char why[BACKEND_WHY_BYTES], const char *text)
{
    snprintf(why, BACKEND_WHY_BYTES, "%s", text);
    return NULL;
}

/* The file beside the program; false if its path cannot be known. */
static bool beside_program(char *out, size_t bytes)
{
    ssize_t n = readlink("/proc/self/exe", out, bytes - 1);
    if (n <= 0) return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    size_t room = slash ? bytes - (size_t)(slash + 1 - out) : 0;
    return slash && (size_t)snprintf(slash + 1, room, "%s", LIBRARY) < room;
}

bool backend_expects_gpu(void)
{
    const char *asked = getenv("FEDLORA_CUDA");
    return (asked && *asked) || dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
}

/* The library needs cuBLAS, which takes 0.1 s and 200 MB to load, so a machine without a driver
 * does not load it. dlerror() names the missing file, which may be one that the library needs. */
static void *open_library(char why[BACKEND_WHY_BYTES])
{
    char path[4096];
    const char *asked = getenv("FEDLORA_CUDA"), *name = LIBRARY;
    if (!backend_expects_gpu()) return say(why, "this machine has no NVIDIA driver (libcuda.so.1)");
    if (asked && *asked)
        name = asked;
    else if (beside_program(path, sizeof path) && access(path, R_OK) == 0)
        name = path;
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return library ? library : say(why, dlerror());
}

static const struct backend *load_cuda(char why[BACKEND_WHY_BYTES])
{
    void *library = open_library(why);
    if (!library) return NULL;
    const struct backend *found = dlsym(library, "backend_cuda");
    const char *build = dlsym(library, "backend_cuda_build");
    if (found && build && !strcmp(build, FEDLORA_BACKEND_BUILD)) return found;
    snprintf(why, BACKEND_WHY_BYTES, LIBRARY " belongs to build %s, this program is build %s",
             found && build ? build : "unknown", FEDLORA_BACKEND_BUILD);
    dlclose(library);
    return NULL;
}

/* The library is loaded at most once and stays loaded, because contexts use its code. */
static const struct backend *cuda(char why[BACKEND_WHY_BYTES])
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static const struct backend *loaded;
    pthread_mutex_lock(&lock);
    if (!loaded) loaded = load_cuda(why);
    const struct backend *found = loaded;
    pthread_mutex_unlock(&lock);
    return found;
}

static err list_all(struct backend_list *out, const char *names)
{
    char why[BACKEND_WHY_BYTES];
    struct backend_list list = {0};
    const struct backend *found = cuda(why);
    if (!found) return err_make(ERR_INPUT, "device %s: %s", names, why);
    int count = found->devices();
    for (int i = 0; i < count || i == 0; i++) /* a missing one is reported when it is opened */
        TRY(list_add(&list, names, i));
    *out = list;
    return ERR_NONE;
}

err backend_list_set(struct backend_list *out, const char *names)
{
    if (names && !strcmp(names, "cuda:all")) return list_all(out, names);
    if (names && strchr(names, ',')) return list_split(out, names);
    struct backend_list list = {.count = 1};
    int n = snprintf(list.name[0], BACKEND_NAME_BYTES, "%s", names ? names : "auto");
    if (n >= BACKEND_NAME_BYTES) return unknown_device(names);
    *out = list;
    return ERR_NONE;
}

static err open_cuda(const struct backend **out, struct backend_context **c,
                     const struct backend_options *o)
{
    char why[BACKEND_WHY_BYTES];
    const struct backend *found = cuda(why);
    if (!found) return err_make(ERR_INPUT, "device cuda:%d: %s", o->device, why);
    *out = found;
    return found->open(c, o);
}

err backend_open(const struct backend **out, struct backend_context **c, const char *name,
                 const struct backend_options *o, char why[BACKEND_WHY_BYTES])
{
    struct backend_options own = *o;
    bool automatic = !name || !strcmp(name, "auto");
    own.device = 0;
    why[0] = 0;
    if (automatic || device_number(&own.device, name)) {
        err e = open_cuda(out, c, &own);
        if (!err_is(e) || !automatic) return e;
        snprintf(why, BACKEND_WHY_BYTES, "%s", e.text);
    } else if (strcmp(name, "cpu") != 0) {
        return unknown_device(name);
    }
    *out = &backend_cpu;
    return backend_cpu.open(c, &own);
}
