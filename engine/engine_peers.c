/* Opens an engine for one device or for several. With several the engine of the first device owns
 * one further engine for each of the others, with its own context and packed weights. */
#include "engine/pass.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void engine_peers_close(struct engine *e)
{
    for (size_t i = 0; i < e->peers; i++)
        engine_close(e->peer[i]);
    free(e->peer);
}

static err open_peers(struct engine *e, const struct backend_list *list,
                      const struct engine_options *o)
{
    e->peer = calloc(list->count - 1, sizeof(struct engine *));
    if (!e->peer) return err_sys(ENOMEM, "engine");
    snprintf(e->device, sizeof e->device, "%s", list->name[0]);
    for (size_t i = 1; i < list->count; i++) {
        struct engine_options own = *o;
        size_t used = strlen(e->device);
        own.device = list->name[i];
        TRY(engine_open_one(&e->peer[i - 1], e->model, &own));
        e->peers++;
        snprintf(e->peer[i - 1]->device, sizeof e->device, "%s", list->name[i]);
        snprintf(e->device + used, sizeof e->device - used, ",%s", list->name[i]);
    }
    return ERR_NONE;
}

/* A list with one device is as that device alone; without training the first device is enough. */
err engine_open(struct engine **out, const struct model *m, const struct engine_options *o)
{
    struct backend_list list;
    struct engine *e = NULL;
    struct engine_options first = *o;
    TRY(backend_list_set(&list, o->device));
    if (list.count > 1 || o->device) first.device = list.name[0];
    TRY(engine_open_one(&e, m, &first));
    err er = list.count > 1 && !o->inference ? open_peers(e, &list, o) : ERR_NONE;
    if (err_is(er))
        engine_close(e);
    else
        *out = e;
    return er;
}
