/* The values of the configuration that a running service takes from a file that was changed. */
#include "coordinator/config.h"

#include <stdio.h>
#include <string.h>

/* Values that are read where they are used, by the loop thread. The queue of runs cannot be turned
 * on later, because runs that have begun did not enter it. */
static bool is_live(const struct config *c, const struct option_row *row)
{
    static const char *const live[] = {"limits.", "log.", "store.keep_", "store.reserve",
                                       "store.upload_age"};
    bool queues =
        !strcmp(row->key, "limits.open_runs") || !strcmp(row->key, "limits.rounds_at_once");
    if (row->kind == OPTION_TEXT || row->kind == OPTION_LIST) return false;
    if (queues && !c->open_runs && !c->rounds_at_once) return false;
    for (size_t i = 0; i < sizeof live / sizeof *live; i++)
        if (!strncmp(row->key, live[i], strlen(live[i]))) return true;
    return false;
}

/* A text that is full loses the last words; the values themselves are taken in any case. */
static void add_word(char *out, const char *key, const char *value)
{
    size_t used = strlen(out);
    snprintf(out + used, CONFIG_CHANGES_BYTES - used, "%s%s%s%s", used ? " " : "", key,
             value ? "=" : "", value ? value : "");
}

/* Compared as texts, because values of all kinds have one. */
void config_take_live(struct config *c, const struct config *next, struct config_changes *changes)
{
    const struct config was = *c;
    const struct option_set *set = config_options();
    const struct option_row *row;
    char is[1024], before[1024];
    *changes = (struct config_changes){0};
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        const char *key = row->key;
        if (!key || !strcmp(key, "federation.members") || !strcmp(key, "federation.admins"))
            continue;
        *is = *before = 0;
        bool given = option_text(is, sizeof is, next, row);
        if (given == option_text(before, sizeof before, &was, row) && !strcmp(is, before)) continue;
        bool live = is_live(&was, row);
        if (live) option_copy(c, next, row);
        add_word(live ? changes->made : changes->restart, key, live ? is : NULL);
    }
}
