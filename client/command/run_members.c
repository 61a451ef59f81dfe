/* The value of --members is one text, because a run with many members is written in a script or a
 * configuration file, where one value per line is easier to generate than repeated options. */
#include "client/command/run_members.h"

#include "base/limits.h"
#include "base/text.h"

#include <string.h>

typedef Fedlora__V1__MemberConfig member_t;

/* The parts point into one copy of the text, whose separators are replaced by zeros. An empty part
 * is an error and not skipped: "a,,b" is more likely a lost name than a deliberate gap. */
err run_members_split(char ***out, size_t *count, const char *text,
                      const struct run_members_split *how, struct arena *arena)
{
    const char *copy = NULL;
    size_t n = 1, i = 0;
    char **part = NULL;
    TRY(arena_text(&copy, arena, text, strlen(text)));
    for (const char *c = copy; *c != 0; c++)
        n += *c == how->separator;
    TRY(arena_take(&part, arena, n, sizeof *part));
    for (char *at = (char *)(uintptr_t)copy, *next; at != NULL; at = next) {
        next = strchr(at, how->separator);
        if (next != NULL) *next++ = 0;
        while (*at == ' ')
            at++;
        if (*at == 0)
            return err_make(ERR_INPUT, "--%s %s: contains an empty part", how->flag, text);
        part[i++] = at;
    }
    *out = part;
    *count = n;
    return ERR_NONE;
}

/* 0 means that the member trains the rank of the run. */
static err set_rank(member_t *m, const char *text)
{
    int64_t rank = 0;
    if (err_is(text_parse_int(&rank, text, 0, LIMIT_RANK)))
        return err_make(ERR_INPUT, "rank %.40s: expected a whole number from 0 to %d", text,
                        LIMIT_RANK);
    m->rank = (uint32_t)rank;
    return ERR_NONE;
}

/* 0 means that the value of the run holds for this member. */
static err set_number(double *out, const char *what, const char *text)
{
    if (!err_is(text_parse_num(out, text, 0, 1e12))) return ERR_NONE;
    return err_make(ERR_INPUT, "%s %.40s: expected a number of at least 0", what, text);
}

/* Targets are separated by '+', because ',' separates members and ':' separates the parts of
 * one. */
static err set_key(member_t *m, const char *key, char *value, struct arena *arena)
{
    static const char *const keys[] = {"rank", "weight", "alpha", "rslora", "targets"};
    static const struct run_members_split plus = {'+', "members, targets"};
    if (strcmp(key, "rank") == 0) return set_rank(m, value);
    if (strcmp(key, "weight") == 0) return set_number(&m->weight, key, value);
    if (strcmp(key, "alpha") == 0) return set_number(&m->alpha, key, value);
    if (strcmp(key, "targets") == 0 && strcmp(value, "all-linear") == 0)
        return ERR_NONE; /* no list: all modules of the run */
    if (strcmp(key, "targets") == 0)
        return run_members_split(&m->targets, &m->n_targets, value, &plus, arena);
    if (strcmp(key, "rslora") == 0) {
        if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0)
            return err_make(ERR_INPUT, "rslora %.40s: expected yes or no", value);
        m->rslora = value;
        return ERR_NONE;
    }
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "\"%.40s\": expected one of rank, weight, alpha, rslora, targets%s",
                    key, text_suggestion(near, key, keys, sizeof keys / sizeof *keys));
}

/* "ID", "ID:8" and "ID:8:2" are the short forms; a part with '=' is a key at any position. */
static err parse_member(member_t *m, const char *text, struct arena *arena)
{
    static const struct run_members_split colon = {':', "members"};
    char **part = NULL;
    size_t count = 0, bare = 0;
    TRY(run_members_split(&part, &count, text, &colon, arena));
    if (!text_is_name(part[0], LIMIT_NAME_BYTES - 1))
        return err_make(
            ERR_INPUT,
            "--members: \"%.60s\" is not a member id: expected letters, digits, '.', '_' and '-'",
            part[0]);
    m->id = part[0];
    err e = ERR_NONE;
    for (size_t i = 1; i < count && !err_is(e); i++) {
        char *equals = strchr(part[i], '=');
        if (equals != NULL) {
            *equals = 0;
            e = set_key(m, part[i], equals + 1, arena);
        } else if (bare == 2)
            e = err_make(ERR_INPUT, "\"%.40s\": expected KEY=VALUE after the rank and the weight",
                         part[i]);
        else
            e = bare++ == 0 ? set_rank(m, part[i]) : set_number(&m->weight, "weight", part[i]);
    }
    return err_is(e) ? err_in(e, "--members: %s", m->id) : e;
}

/* A member listed twice would be counted twice in quorum and weights, so it is refused here, where
 * the error can still name the option. The comparison is quadratic, but the list has at most 10,000
 * entries and is read once. */
err run_members_parse(Fedlora__V1__RunConfig *config, const char *text, struct arena *arena)
{
    static const struct run_members_split comma = {',', "members"};
    char **one = NULL;
    size_t count = 0;
    member_t *member = NULL;
    TRY(run_members_split(&one, &count, text, &comma, arena));
    TRY(arena_take(&member, arena, count, sizeof *member));
    TRY(arena_take(&config->members, arena, count, sizeof(member_t *)));
    for (size_t i = 0; i < count; i++) {
        member[i] = (member_t)FEDLORA__V1__MEMBER_CONFIG__INIT;
        TRY(parse_member(&member[i], one[i], arena));
        for (size_t j = 0; j < i; j++)
            if (strcmp(member[i].id, member[j].id) == 0)
                return err_make(ERR_INPUT, "--members: %s is listed twice", member[i].id);
        config->members[i] = &member[i];
    }
    config->n_members = count;
    return ERR_NONE;
}
