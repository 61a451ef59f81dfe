#include "base/list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

err list_grow(void *list, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity) return ERR_NONE;
    size_t wanted = *capacity ? *capacity : 64;
    while (wanted < need)
        wanted *= 2;
    void *grown;
    memcpy(&grown, list, sizeof grown);
    grown = realloc(grown, wanted * size);
    if (!grown) return err_sys(ENOMEM, "a list of %zu bytes", wanted * size);
    memcpy(list, &grown, sizeof grown);
    *capacity = wanted;
    return ERR_NONE;
}
