/* The members of each round, drawn again from the seeds that an auditor was shown. */
#include "privacy/ledger/statement.h"

#include "base/json.h"
#include "privacy/noise/cohort.h"

#include <stdlib.h>
#include <string.h>

static err read_seed(struct cohort_seed *out, const json_t *row, const char *name)
{
    const char *text = NULL;
    struct digest d;
    TRY(json_get_str(&text, row, "seed", name));
    TRY(digest_parse(&d, text));
    memcpy(out->byte, d.byte, sizeof out->byte);
    return ERR_NONE;
}

static err find_seed(struct cohort_seed *out, const json_t *rounds, uint32_t round,
                     const char *name)
{
    size_t i;
    json_t *row;
    json_array_foreach((json_t *)(uintptr_t)rounds, i, row)
    {
        int64_t number = 0;
        TRY(json_get_int(&number, row, "round", 0, UINT32_MAX, name));
        if (number == round) return read_seed(out, row, name);
    }
    return err_make(ERR_INPUT, "%s: has no seed of round %u", name, round);
}

static err draw(json_t **out, const struct cohort_seed *seed, const struct cohort *cohort,
                const json_t *members)
{
    json_t *list = json_array(), *id;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)members, i, id)
    {
        if (cohort_has(seed, cohort, json_string_value(id))) json_array_append(list, id);
    }
    *out = json_pack("{s:i, s:o}", "round", (int)cohort->round, "drawn", list);
    return *out ? ERR_NONE : err_make(ERR_MACHINE, "no memory for a cohort");
}

struct shown {
    const json_t *rounds, *members;
    const char **id; /* ids of members, sorted */
    const char *name;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static err sort_ids(struct shown *s, struct arena *arena)
{
    json_t *id;
    size_t i;
    TRY(arena_take(&s->id, arena, json_array_size(s->members) + 1, sizeof *s->id));
    json_array_foreach((json_t *)(uintptr_t)s->members, i, id)
    {
        if (!json_is_string(id)) return err_make(ERR_INPUT, "%s: members: expected texts", s->name);
        s->id[i] = json_string_value(id);
    }
    qsort(s->id, i, sizeof *s->id, by_text);
    return ERR_NONE;
}

static err one_round(json_t *list, const struct ledger_entry *entry, const struct shown *shown)
{
    const struct ledger_terms *t = entry->terms;
    const struct cohort cohort = {
        .run = t->job, .round = entry->release.round, .q = entry->release.charged.sampling};
    struct cohort_seed seed;
    json_t *row = NULL;
    TRY(find_seed(&seed, shown->rounds, cohort.round, shown->name));
    struct digest anchor =
        cohort_anchor(&seed, &cohort, shown->id, json_array_size(shown->members));
    if (!digest_equal(&anchor, &t->cohorts))
        return err_make(ERR_INPUT,
                        "%s: the seed of round %u, with these members, does not lead to the anchor "
                        "in the ledger's first line",
                        shown->name, cohort.round);
    TRY(draw(&row, &seed, &cohort, shown->members));
    return json_array_append_new(list, row) == 0 ? ERR_NONE
                                                 : err_make(ERR_MACHINE, "no memory for a cohort");
}

err statement_cohorts(json_t **out, const struct statement *s, const json_t *document,
                      const char *name)
{
    const struct ledger *ledger = s->ledger;
    struct shown shown = {.rounds = json_object_get(document, "rounds"),
                          .members = json_object_get(document, "members"),
                          .name = name};
    struct arena arena = {0};
    size_t members = json_array_size(shown.members);
    if (!json_is_array(shown.rounds) || !json_is_array(shown.members))
        return err_make(ERR_INPUT, "%s: expected members and rounds, as run audit writes them",
                        name);
    if (ledger->terms.unit != LEDGER_CLIENT || members != ledger->terms.units)
        return err_make(ERR_INPUT, "%s: has %zu members, but the ledger has %llu %s", name, members,
                        (unsigned long long)ledger->terms.units,
                        ledger->terms.unit == LEDGER_CLIENT ? "members" : "records");
    json_t *list = json_array();
    err e = list ? sort_ids(&shown, &arena) : err_make(ERR_MACHINE, "no memory for cohorts");
    for (size_t i = 0; i < ledger->count && !err_is(e); i++)
        if (!strcmp(ledger->entry[i].kind, "release"))
            e = one_round(list, &ledger->entry[i], &shown);
    arena_close(&arena);
    if (err_is(e))
        json_decref(list);
    else
        *out = list;
    return e;
}
