/* The rules of client/session/session_policy.h. Each rule is one function, in the order of the
 * fields; the first that does not allow the run is named. */
#include "client/session/session_policy.h"

#include "base/digest.h"
#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const session_policy_units[] = {"any", "client", "example", NULL};
const char *const session_policy_approvals[] = {"auto", "ask", NULL};

/* The next item of a list separated by commas, without spaces around it; false: there are no more.
 * *list is behind it then. */
static bool next_item(char *out, size_t bytes, const char **list)
{
    const char *at = *list + strspn(*list, ", ");
    size_t length = strcspn(at, ",");
    *list = at + length;
    while (length && at[length - 1] == ' ')
        length--;
    snprintf(out, bytes, "%.*s", (int)(length < bytes ? length : bytes - 1), at);
    return length > 0;
}

/* An absent list allows everything. */
static bool lists(const char *list, const char *name)
{
    char item[LIMIT_NAME_BYTES];
    if (!list) return true;
    while (next_item(item, sizeof item, &list))
        if (strcmp(item, name) == 0) return true;
    return false;
}

/* A full name, or a short one with or without "_proj", to the short one with it. */
static err module_of(char out[64], const char *name)
{
    uint32_t layer;
    enum module_kind kind;
    if (!err_is(model_module_parse(&layer, &kind, name))) {
        snprintf(out, 64, "%s", model_module_short(kind));
        return ERR_NONE;
    }
    for (kind = 0; kind < MODULE_KINDS; kind++) {
        const char *is = model_module_short(kind);
        size_t length = strlen(name);
        if (strncmp(is, name, length) != 0) continue;
        if (is[length] != 0 && strcmp(is + length, "_proj") != 0) continue;
        snprintf(out, 64, "%s", is);
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "%.60s is not a module: expected q, k, v, o, gate, up, down", name);
}

/* ---- the time of day */

/* "20", "20:30" to minutes after midnight; 24:00 is the end of a day. */
static bool read_time(int *out, const char **text)
{
    char *end = NULL;
    long hour = strtol(*text, &end, 10), minute = 0;
    if (end == *text || end > *text + 2 || hour < 0 || hour > 24) return false;
    if (*end == ':') {
        const char *from = end + 1;
        minute = strtol(from, &end, 10);
        if (end != from + 2 || minute < 0 || minute > 59) return false;
    }
    *out = (int)(hour * 60 + minute);
    *text = end;
    return *out <= 24 * 60;
}

/* Windows may go past midnight. */
static bool read_hours(int *from, int *to, const char *text)
{
    if (!read_time(from, &text) || *text++ != '-' || !read_time(to, &text)) return false;
    return *text == 0 && *from != *to;
}

/* ---- the settings */

err session_policy_check(const struct session_policy *p)
{
    char item[DIGEST_TEXT_BYTES + 8], module[64];
    int from, to;
    if (!p) return ERR_NONE;
    for (const char *list = p->targets; list && next_item(item, sizeof item, &list);) {
        err e = module_of(module, item);
        if (err_is(e)) return err_in(e, "policy.targets");
    }
    for (const char *list = p->bases; list && next_item(item, sizeof item, &list);) {
        struct digest digest;
        err e = digest_parse(&digest, item);
        if (err_is(e)) return err_in(e, "policy.bases");
    }
    if (p->hours && !read_hours(&from, &to, p->hours))
        return err_make(ERR_INPUT,
                        "policy.hours: \"%.40s\": expected two times of a day, such as 20:00-06:30",
                        p->hours);
    return ERR_NONE;
}

bool session_policy_is_set(const struct session_policy *p)
{
    return p && (p->methods || p->bases || p->targets || p->max_steps || p->unit ||
                 p->epsilon > 0 || p->delta > 0 || p->approve);
}

/* ---- a run */

/* The first of the run's modules that is not allowed, or NULL. */
static const char *other_target(const struct session_policy *p,
                                const Fedlora__V1__HelloReply *hello)
{
    char item[64], module[64], allowed[64];
    for (size_t i = 0; p->targets && i < hello->n_targets; i++) {
        bool found = false;
        if (err_is(module_of(module, hello->targets[i]))) return hello->targets[i];
        for (const char *list = p->targets; !found && next_item(item, sizeof item, &list);)
            found = !err_is(module_of(allowed, item)) && strcmp(allowed, module) == 0;
        if (!found) return hello->targets[i];
    }
    return NULL;
}

/* The number of steps may follow from the number of rows. In a run with privacy that number is
 * nothing that a refusal may reveal, so such runs must name their steps. */
static bool few_steps(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                      const struct session_policy_run *run)
{
    const Fedlora__V1__Training *t = run->hello->training;
    double most = (double)p->max_steps, steps = t->steps;
    if (!p->max_steps) return true;
    if (!t->steps && run->hello->privacy) {
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.max_steps: the run's rounds are counted in epochs, expected at most %.0f "
                 "steps",
                 most);
        return false;
    }
    if (!t->steps && t->batch) /* an accumulate of 0 is the default of 1 */
        steps =
            ceil(t->epochs * (double)run->rows / t->batch / (t->accumulate ? t->accumulate : 1));
    if (steps <= most) return true;
    if (t->steps)
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.max_steps: the run trains %u steps a round, expected at most %.0f",
                 t->steps, most);
    else
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.max_steps: the run's %g epochs are more than %.0f steps", t->epochs, most);
    return false;
}

static bool private_enough(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                           const Fedlora__V1__Privacy *is)
{
    const char *unit = session_policy_units[p->unit];
    bool needs = p->unit || p->epsilon > 0 || p->delta > 0;
    if (!needs) return true;
    if (!is) {
        snprintf(why, SESSION_POLICY_WHY, "policy.%s: the run has no differential privacy",
                 p->unit          ? "privacy"
                 : p->epsilon > 0 ? "epsilon"
                                  : "delta");
        return false;
    }
    bool right = !p->unit || strcmp(is->unit, unit) == 0;
    bool small = p->epsilon <= 0 || is->epsilon <= p->epsilon;
    if (!right)
        snprintf(why, SESSION_POLICY_WHY, "policy.privacy: the run's unit is %.40s, expected %s",
                 is->unit, unit);
    else if (!small)
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.epsilon: the run spends epsilon %g, expected at most %g", is->epsilon,
                 p->epsilon);
    else if (p->delta > 0 && !(is->delta <= p->delta))
        snprintf(why, SESSION_POLICY_WHY, "policy.delta: the run has delta %g, expected at most %g",
                 is->delta, p->delta);
    return !*why;
}

bool session_policy_allows(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                           const struct session_policy_run *run)
{
    const char *target;
    *why = 0;
    if (!p) return true;
    if (!lists(p->methods, run->hello->method))
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.methods: the run's method is %.60s, expected %.120s", run->hello->method,
                 p->methods);
    else if (!lists(p->bases, run->base))
        snprintf(why, SESSION_POLICY_WHY, "policy.bases: the base model %.16s... is not listed",
                 run->base);
    else if ((target = other_target(p, run->hello)))
        snprintf(why, SESSION_POLICY_WHY, "policy.targets: the run adapts %.100s, expected %.120s",
                 target, p->targets);
    else if (few_steps(why, p, run))
        (void)private_enough(why, p, run->hello->privacy);
    return !*why;
}

/* ---- the clock */

bool session_policy_now(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                        const struct tm *now, uint64_t used_ms)
{
    int from, to, is = now->tm_hour * 60 + now->tm_min;
    *why = 0;
    if (!p) return true;
    if (p->hours && read_hours(&from, &to, p->hours)) {
        bool inside = from < to ? is >= from && is < to : is >= from || is < to;
        if (!inside)
            snprintf(why, SESSION_POLICY_WHY,
                     "policy.hours: it trains between %.40s, its local time", p->hours);
    }
    if (!*why && p->max_minutes && used_ms >= (uint64_t)p->max_minutes * 60000)
        snprintf(why, SESSION_POLICY_WHY,
                 "policy.max_minutes: the %lld minutes of training of this day are used",
                 (long long)p->max_minutes);
    return !*why;
}
