/* The lists of those that may take part: first those of the file, then those of the store. */
#include "coordinator/config.h"

#include <string.h>

static err copy_list(struct option_list *out, const struct option_list *list, struct arena *arena)
{
    struct option_list copy = {0};
    TRY(arena_take(&copy.item, arena, list->count + 1, sizeof *copy.item));
    for (; copy.count < list->count; copy.count++)
        TRY(arena_text(&copy.item[copy.count], arena, list->item[copy.count],
                       strlen(list->item[copy.count])));
    *out = copy;
    return ERR_NONE;
}

/* Copies, because the caller's lists live as long as its query. The old ones are freed last, so
 * that an error leaves them in use. */
err config_allow(struct config *config, const struct option_list *members,
                 const struct option_list *admins)
{
    struct arena arena = {0};
    struct option_list allowed, admin_ids;
    err e = copy_list(&allowed, members, &arena);
    if (!err_is(e)) e = copy_list(&admin_ids, admins, &arena);
    if (err_is(e)) {
        arena_close(&arena);
        return e;
    }
    arena_close(&config->agreed);
    config->agreed = arena;
    config->allowed = allowed;
    config->admin_ids = admin_ids;
    return ERR_NONE;
}

/* By halves first, because a simulation lists very many names in order; a list in another order is
 * searched from its start. */
static bool is_listed(const struct option_list *list, const char *id)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(list->item[middle], id);
        if (order == 0) return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = 0; i < list->count; i++)
        if (!strcmp(list->item[i], id)) return true;
    return false;
}

/* Asked at every call of a member, so a name removed from the configuration is refused as soon as
 * that is read again. */
bool config_allows(const struct config *config, const char *member)
{
    return is_listed(&config->allowed, member);
}

bool config_allows_admin(const struct config *config, const char *admin)
{
    return config->any_admin || is_listed(&config->admin_ids, admin);
}
