#include "sim/device.h"

#include "base/rng.h"
#include "base/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- parsing ---- */

enum unit { UNIT_NONE, UNIT_PERCENT, UNIT_BITS };
struct part { /* one "key=value" of a class */
    const char *key;
    size_t at; /* of a double in struct device_class */
    enum unit unit;
    double least, most;
};
#define AT(member) offsetof(struct device_class, member)
static const struct part parts[] = {
    {"share", AT(share), UNIT_PERCENT, 1e-9, 1}, {"speed", AT(speed), UNIT_NONE, 1e-3, 1e12},
    {"up", AT(up), UNIT_BITS, 0, 1e15},          {"down", AT(down), UNIT_BITS, 0, 1e15},
    {"drop", AT(drop), UNIT_PERCENT, 0, 1},      {"watts", AT(watts), UNIT_NONE, 0, 1e6},
};
enum { PARTS = sizeof parts / sizeof *parts };

/* "30%" is 0.3; "20Mbit" is 2e7, with kbit, Mbit and Gbit by powers of 1000. */
static err parse_value(double *out, const char *text, const struct part *p)
{
    static const struct {
        const char *name;
        double factor;
    } bits[] = {{"kbit", 1e3}, {"Mbit", 1e6}, {"Gbit", 1e9}, {"bit", 1}};
    char number[64];
    size_t n = strlen(text);
    double factor = 1;
    if (p->unit == UNIT_PERCENT && n > 1 && text[n - 1] == '%') {
        factor = 0.01;
        n--;
    }
    for (size_t i = 0; p->unit == UNIT_BITS && i < 4 && factor == 1; i++) {
        size_t m = strlen(bits[i].name);
        if (n <= m || strcmp(text + n - m, bits[i].name) != 0) continue;
        factor = bits[i].factor;
        n -= m;
        break;
    }
    snprintf(number, sizeof number, "%.*s", (int)(n < 60 ? n : 60), text);
    TRY(text_parse_num(out, number, -1e300, 1e300));
    *out *= factor;
    if (*out >= p->least && *out <= p->most) return ERR_NONE;
    return err_make(ERR_INPUT, "%s=%.40s: expected %g to %g", p->key, text, p->least, p->most);
}

err device_parse_bits(double *out, const char *text)
{
    static const struct part bits = {"rate", 0, UNIT_BITS, 0, 1e15};
    return parse_value(out, text, &bits);
}

/* "40%/8h": the share of each period of 8 hours that the device is on. */
static err parse_online(struct device_class *c, const char *text)
{
    static const struct part share = {"online", 0, UNIT_PERCENT, 1e-9, 1};
    char percent[32];
    double on = 0;
    const char *slash = strchr(text, '/');
    if (!slash || slash - text > 31)
        return err_make(ERR_INPUT, "online=%.40s: expected SHARE/PERIOD, as 40%%/8h", text);
    snprintf(percent, sizeof percent, "%.*s", (int)(slash - text), text);
    TRY(parse_value(&on, percent, &share));
    TRY(text_parse_duration_ms(&c->period_ms, slash + 1));
    c->on.to = (uint64_t)(on * (double)c->period_ms);
    if (c->on.to == 0)
        return err_make(ERR_INPUT, "online=%.40s: expected at least a millisecond", text);
    if (c->on.to == c->period_ms) c->on.to = 0; /* always */
    return ERR_NONE;
}

static err parse_part(struct device_class *c, const char *text)
{
    const char *known[PARTS + 3];
    const char *equals = strchr(text, '=');
    char key[32] = "";
    if (equals)
        snprintf(key, sizeof key, "%.*s", (int)(equals - text < 31 ? equals - text : 31), text);
    for (size_t i = 0; i < PARTS; i++) {
        if (!strcmp(key, parts[i].key))
            return parse_value((double *)(void *)((char *)c + parts[i].at), equals + 1, &parts[i]);
        known[i] = parts[i].key;
    }
    if (!strcmp(key, "rank")) {
        int64_t rank = 0;
        TRY(text_parse_int(&rank, equals + 1, 0, LIMIT_RANK));
        c->rank = (uint32_t)rank;
        return ERR_NONE;
    }
    if (!strcmp(key, "online")) return parse_online(c, equals + 1);
    if (!strcmp(key, "memory")) return text_parse_size(&c->memory, equals + 1);
    known[PARTS] = "rank";
    known[PARTS + 1] = "online";
    known[PARTS + 2] = "memory";
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT,
                    "\"%.40s\": expected share=, speed=, up=, down=, rank=, drop=, online=, "
                    "watts= or memory=%s",
                    text, text_suggestion(near, key, known, PARTS + 3));
}

/* The parts are separated by ':'. */
static err parse_class(struct device_class *out, const char *text)
{
    struct device_class c = {.share = 1, .speed = 1000};
    char copy[512], *next = copy;
    if (strlen(text) >= sizeof copy) return err_make(ERR_INPUT, "%.40s...: too long", text);
    memcpy(copy, text, strlen(text) + 1);
    const char *name = strsep(&next, ":");
    if (!text_is_name(name, sizeof c.name - 1))
        return err_make(ERR_INPUT, "\"%.40s\": expected a name first, NAME:share=30%%:...", name);
    snprintf(c.name, sizeof c.name, "%.31s", name);
    while (next) {
        err e = parse_part(&c, strsep(&next, ":"));
        if (err_is(e)) return err_in(e, "class %s", c.name);
    }
    *out = c;
    return ERR_NONE;
}

err devices_parse(struct devices *out, const struct option_list *classes)
{
    struct devices d = {.classes = classes->count, .jitter = out->jitter, .seed = out->seed};
    double sum = 0;
    if (classes->count > DEVICE_CLASSES)
        return err_make(ERR_INPUT, "%zu classes of devices: expected at most %d", classes->count,
                        DEVICE_CLASSES);
    for (size_t i = 0; i < classes->count; i++) {
        const char *text = classes->item[i];
        TRY(parse_class(&d.class[i], text));
        sum += d.class[i].share;
    }
    if (!classes->count) {
        d.classes = 1;
        TRY(parse_class(&d.class[0], "machine"));
        sum = 1;
    }
    if (fabs(sum - 1) > 1e-6)
        return err_make(ERR_INPUT, "the shares of the device classes add up to %.4g %%, not 100 %%",
                        100 * sum);
    *out = d;
    return ERR_NONE;
}

/* ---- use ---- */

bool devices_state_memory(const struct devices *d)
{
    bool any = false;
    for (size_t i = 0; i < d->classes; i++)
        any |= d->class[i].memory > 0;
    return any;
}

void devices_deal(uint32_t *class, const struct devices *d, size_t members)
{
    struct rng rng;
    double sum = 0;
    size_t at = 0;
    rng_init(&rng, "devices", d->seed, "classes", 0);
    for (size_t c = 0; c < d->classes; c++) {
        sum += d->class[c].share;
        size_t end = c + 1 == d->classes ? members : (size_t)(sum * (double)members + 0.5);
        for (; at < end && at < members; at++)
            class[at] = (uint32_t)c;
    }
    rng_shuffle(&rng, class, members);
}

/* The member's lines of the trace. */
static size_t traces_of(size_t *first, const struct devices *d, const char *member)
{
    size_t low = 0, high = d->traces, count = 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(d->trace[middle].member, member) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    while (low + count < d->traces && !strcmp(d->trace[low + count].member, member))
        count++;
    *first = low;
    return count;
}

/* A member of a class is on at times of its own, so that a class does not go off at once. */
static struct online online_of(const struct devices *d, uint32_t class, const char *member)
{
    const struct device_class *c = &d->class[class];
    size_t first = 0, count = traces_of(&first, d, member);
    struct rng rng;
    if (count && !d->span[first].to) return (struct online){0};
    if (count)
        return (struct online){.span = d->span + first, .spans = count, .period = d->trace_ms};
    if (!c->on.to) return (struct online){0};
    rng_init(&rng, "online", d->seed, member, 0);
    return (struct online){
        .span = &c->on, .spans = 1, .period = c->period_ms, .shift = rng_below(&rng, c->period_ms)};
}

/* The speeds at the time at which the device is first on. */
static struct device_trace speeds_of(const struct devices *d, uint32_t class, const char *member,
                                     const struct online *online, uint64_t from_ms)
{
    const struct device_class *c = &d->class[class];
    struct device_trace s = {.speed = c->speed, .up = c->up, .down = c->down};
    size_t first = 0;
    if (!traces_of(&first, d, member)) return s;
    const struct device_trace *t =
        &d->trace[first + online_span_at(online, online_start(online, from_ms))];
    if (t->speed >= 0) s.speed = t->speed;
    if (t->up >= 0) s.up = t->up;
    if (t->down >= 0) s.down = t->down;
    return s;
}

uint64_t device_start_ms(const struct devices *d, uint32_t class, const char *member,
                         uint64_t from_ms)
{
    const struct online online = online_of(d, class, member);
    return online_start(&online, from_ms);
}

double device_joules(const struct devices *d, uint32_t class, const char *member,
                     const uint64_t between_ms[2])
{
    double watts = d->class[class].watts;
    if (watts <= 0) return 0;
    const struct online online = online_of(d, class, member);
    return watts * (double)online_between(&online, between_ms[0], between_ms[1]) / 1000;
}

/* Properties that earlier versions did not have are added only if they are set, so that folders of
 * those versions can be continued. */
void device_digest(struct digest_stream *s, const struct devices *d, uint32_t class,
                   const char *member)
{
    const struct device_class *c = &d->class[class];
    const double device[] = {c->speed, c->up, c->down, c->drop, d->jitter};
    size_t first = 0, count = traces_of(&first, d, member);
    digest_add(s, device, sizeof device);
    if (c->watts > 0) digest_add(s, &c->watts, sizeof c->watts);
    if (c->on.to) digest_add(s, &c->on.to, sizeof c->on.to);
    if (c->on.to) digest_add(s, &c->period_ms, sizeof c->period_ms);
    if (count) digest_add(s, &d->trace_ms, sizeof d->trace_ms);
    for (size_t i = first; i < first + count; i++) {
        const double speeds[] = {d->trace[i].speed, d->trace[i].up, d->trace[i].down};
        digest_add(s, speeds, sizeof speeds);
        digest_add(s, &d->span[i], sizeof d->span[i]);
    }
}

uint64_t device_ms(bool *drops, const struct devices *d, uint32_t class,
                   const struct device_work *work)
{
    const struct online online = online_of(d, class, work->member);
    const struct device_trace s = speeds_of(d, class, work->member, &online, work->from_ms);
    struct rng rng;
    rng_init(&rng, "tasks", d->seed, work->member, work->round);
    *drops = rng_unit(&rng) < d->class[class].drop;
    double seconds = (double)work->tokens / s.speed;
    if (s.down > 0) seconds += 8 * (double)work->down_bytes / s.down;
    if (s.up > 0) seconds += 8 * (double)work->up_bytes / s.up;
    seconds *= exp(d->jitter * rng_normal(&rng));
    uint64_t ms = seconds * 1000 < 1 ? 1 : (uint64_t)fmin(seconds * 1000, 1e15);
    return online_end(&online, work->from_ms, ms) - work->from_ms;
}
