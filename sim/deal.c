#include "sim/deal.h"

#include "base/rng.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const deal_kinds[] = {"iid", "field", "dirichlet", "shards", NULL};

/* Working memory of deal_make(). */
struct dealer {
    const struct deal_options *o;
    const struct deal_rows *in;
    struct rng rng;
    uint32_t *order; /* (rows) */
    uint32_t *owner; /* (rows) the member of each row */
    double *weight;  /* (members) expected share of all rows */
    double *part;    /* (members) shares of one label */
    size_t *count;   /* (members) */
};

static void draw_weights(struct dealer *d)
{
    double sum = 0;
    for (size_t i = 0; i < d->o->members; i++)
        sum += d->weight[i] = exp(d->o->size_sigma * rng_normal(&d->rng));
    for (size_t i = 0; i < d->o->members; i++)
        d->weight[i] /= sum;
}

/* The logarithm of a Gamma(a, 1) variable, a > 0, by Marsaglia and Tsang (2000). The logarithm,
 * because for a small a the variable itself is often below the smallest double. */
static double log_gamma_draw(struct rng *rng, double a)
{
    double boost = 0;
    if (a < 1) {
        boost = log1p(-rng_unit(rng)) / a; /* 1 - u is in (0, 1] */
        a += 1;
    }
    double d = a - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = rng_normal(rng), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log1p(-rng_unit(rng)) < 0.5 * x * x + d - d * v + d * log(v)) return log(d * v) + boost;
    }
}

static void draw_dirichlet(struct dealer *d)
{
    size_t n = d->o->members;
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) {
        d->part[i] = log_gamma_draw(&d->rng, d->o->alpha * (double)n * d->weight[i]);
        most = d->part[i] > most ? d->part[i] : most;
    }
    for (size_t i = 0; i < n; i++)
        sum += d->part[i] = exp(d->part[i] - most);
    for (size_t i = 0; i < n; i++)
        d->part[i] /= sum;
}

/* Gives order[0 .. n - 1] to the members in shares `part`, rounded so that the sum is kept. */
static void deal_out(struct dealer *d, const uint32_t *order, size_t n, const double *part)
{
    double sum = 0;
    size_t at = 0;
    for (size_t i = 0; i < d->o->members; i++) {
        sum += part[i];
        size_t end = i + 1 == d->o->members ? n : (size_t)(sum * (double)n + 0.5);
        for (; at < end && at < n; at++)
            d->owner[order[at]] = (uint32_t)i;
    }
}

/* Sorts d->order by label and keeps the order of rows within a label. Sets first (labels + 1). */
static err by_label(size_t **first, struct dealer *d)
{
    size_t labels = d->in->labels, *at = calloc(labels + 2, sizeof *at);
    uint32_t *was = malloc((d->in->rows + 1) * sizeof *was);
    if (!at || !was) {
        free(at);
        free(was);
        return err_sys(ENOMEM, "split");
    }
    memcpy(was, d->order, d->in->rows * sizeof *was);
    for (size_t i = 0; i < d->in->rows; i++)
        at[d->in->label[i] + 2]++;
    for (size_t k = 0; k < labels; k++)
        at[k + 2] += at[k + 1];
    for (size_t i = 0; i < d->in->rows; i++)
        d->order[at[d->in->label[was[i]] + 1]++] = was[i];
    free(was);
    *first = at; /* now at[k] is the start of label k, at[k + 1] its end */
    return ERR_NONE;
}

static err deal_dirichlet(struct dealer *d)
{
    size_t *first = NULL;
    TRY(by_label(&first, d));
    for (size_t k = 0; k < d->in->labels; k++) {
        draw_dirichlet(d);
        deal_out(d, d->order + first[k], first[k + 1] - first[k], d->part);
    }
    free(first);
    return ERR_NONE;
}

static err deal_shards(struct dealer *d)
{
    size_t shards = d->o->members * d->o->shards, *first = NULL;
    uint32_t *shard = malloc((shards + 1) * sizeof *shard);
    if (!shard) return err_sys(ENOMEM, "split");
    err e = by_label(&first, d);
    free(first);
    for (size_t i = 0; i < shards; i++)
        shard[i] = (uint32_t)i;
    rng_shuffle(&d->rng, shard, shards);
    for (size_t i = 0; i < shards && !err_is(e); i++) {
        size_t from = shard[i] * d->in->rows / shards;
        size_t end = ((size_t)shard[i] + 1) * d->in->rows / shards;
        for (size_t r = from; r < end; r++)
            d->owner[d->order[r]] = (uint32_t)(i / d->o->shards);
    }
    free(shard);
    return e;
}

/* A member without rows takes one of the member with the most, because a member that has nothing to
 * train could not take part. */
static void fill_empty(struct dealer *d)
{
    for (size_t r = 0; r < d->in->rows; r++)
        d->count[d->owner[r]]++;
    for (size_t i = 0; i < d->o->members; i++) {
        if (d->count[i]) continue;
        size_t rich = 0;
        for (size_t k = 1; k < d->o->members; k++)
            if (d->count[k] > d->count[rich]) rich = k;
        for (size_t r = 0; r < d->in->rows; r++)
            if (d->owner[r] == rich) {
                d->owner[r] = (uint32_t)i;
                break;
            }
        d->count[rich]--;
        d->count[i]++;
    }
}

static err collect(struct deal *out, const struct dealer *d)
{
    struct deal s = {.members = d->o->members};
    s.first = calloc(s.members + 2, sizeof *s.first);
    s.row = malloc((d->in->rows + 1) * sizeof *s.row);
    if (!s.first || !s.row) {
        deal_close(&s);
        return err_sys(ENOMEM, "split");
    }
    for (size_t i = 0; i < s.members; i++)
        s.first[i + 2] = s.first[i + 1] + d->count[i];
    for (uint32_t r = 0; r < d->in->rows; r++)
        s.row[s.first[d->owner[r] + 1]++] = r;
    *out = s;
    return ERR_NONE;
}

static err deal_rows(struct deal *out, struct dealer *d)
{
    rng_init(&d->rng, "split", d->o->seed, deal_kinds[d->o->kind], 0);
    for (uint32_t r = 0; r < d->in->rows; r++)
        d->order[r] = r;
    rng_shuffle(&d->rng, d->order, d->in->rows);
    draw_weights(d);
    switch (d->o->kind) {
    case DEAL_FIELD:
        memcpy(d->owner, d->in->label, d->in->rows * sizeof *d->owner);
        break;
    case DEAL_DIRICHLET:
        TRY(deal_dirichlet(d));
        break;
    case DEAL_SHARDS:
        TRY(deal_shards(d));
        break;
    default:
        deal_out(d, d->order, d->in->rows, d->weight);
        break;
    }
    fill_empty(d);
    return collect(out, d);
}

err deal_make(struct deal *out, const struct deal_options *o, const struct deal_rows *rows)
{
    size_t least = o->members * (o->kind == DEAL_SHARDS ? o->shards : 1);
    if (!o->members || rows->rows < least)
        return err_make(ERR_INPUT, "%zu rows cannot be split into %zu parts", rows->rows, least);
    if (o->kind == DEAL_FIELD) REQUIRE(o->members == rows->labels);
    struct dealer d = {.o = o,
                       .in = rows,
                       .order = malloc(rows->rows * sizeof *d.order),
                       .owner = calloc(rows->rows, sizeof *d.owner),
                       .weight = calloc(o->members, sizeof *d.weight),
                       .part = calloc(o->members, sizeof *d.part),
                       .count = calloc(o->members, sizeof *d.count)};
    bool have = d.order && d.owner && d.weight && d.part && d.count;
    err e = have ? deal_rows(out, &d) : err_sys(ENOMEM, "split");
    free(d.order);
    free(d.owner);
    free(d.weight);
    free(d.part);
    free(d.count);
    return e;
}

void deal_close(struct deal *s)
{
    free(s->first);
    free(s->row);
    *s = (struct deal){0};
}

/* ---- the table ---- */

enum { BAR = 40, NAMES = 3 };

/* The label with the most rows that is not marked; `labels` if there is none with rows. */
static size_t largest(const size_t *count, const bool *used, size_t labels)
{
    size_t best = labels;
    for (size_t k = 0; k < labels; k++)
        if (count[k] && !used[k] && (best == labels || count[k] > count[best])) best = k;
    return best;
}

static err print_member(struct bytes *out, const size_t *count, bool *used, size_t labels,
                        size_t rows, const char *const *label_name)
{
    char bar[BAR + 1];
    size_t at = 0;
    memset(used, 0, labels * sizeof *used);
    memset(bar, '.', BAR);
    bar[BAR] = 0;
    char names[3 * 48] = "";
    for (size_t n = 0; n < 26; n++) {
        size_t k = largest(count, used, labels);
        if (k == labels) break;
        used[k] = true;
        size_t end = at + (count[k] * BAR + rows / 2) / rows;
        for (; at < end && at < BAR; at++)
            bar[at] = (char)('A' + n);
        if (n < NAMES) {
            size_t have = strlen(names);
            snprintf(names + have, sizeof names - have, "%s%.24s %zu %%", n ? ", " : "",
                     label_name[k], (100 * count[k] + rows / 2) / rows);
        }
    }
    return bytes_printf(out, "%s  %s\n", bar, names);
}

static void count_labels(size_t *count, const struct deal *s, const struct deal_rows *in,
                         size_t member)
{
    memset(count, 0, in->labels * sizeof *count);
    for (size_t i = s->first[member]; i < s->first[member + 1]; i++)
        count[in->label[s->row[i]]]++;
}

/* The mean over the members of half the L1 distance between the shares of labels of the member and
 * of all rows: 0 if all parts look like the whole, towards 1 if every member has labels of its
 * own. */
static double distance(const struct deal *s, const struct deal_rows *in, size_t *count, size_t *all)
{
    double sum = 0;
    memset(all, 0, in->labels * sizeof *all);
    for (size_t r = 0; r < in->rows; r++)
        all[in->label[r]]++;
    for (size_t i = 0; i < s->members; i++) {
        size_t rows = s->first[i + 1] - s->first[i];
        count_labels(count, s, in, i);
        for (size_t k = 0; k < in->labels; k++)
            sum += 0.5 * fabs((double)count[k] / (double)rows - (double)all[k] / (double)in->rows);
    }
    return sum / (double)s->members;
}

err deal_print(struct bytes *out, const struct deal *s, const struct deal_rows *in,
               const char *const *label_name, const char *const *member, size_t most)
{
    size_t *count = calloc(in->labels + 1, sizeof *count),
           *all = calloc(in->labels + 1, sizeof *all);
    bool *used = calloc(in->labels + 1, sizeof *used);
    err e = count && all && used ? ERR_NONE : err_sys(ENOMEM, "split");
    size_t least_rows = SIZE_MAX, most_rows = 0;
    for (size_t i = 0; i < s->members && !err_is(e); i++) {
        size_t rows = s->first[i + 1] - s->first[i];
        least_rows = rows < least_rows ? rows : least_rows;
        most_rows = rows > most_rows ? rows : most_rows;
        if (i >= most) continue;
        count_labels(count, s, in, i);
        e = bytes_printf(out, "%-20.20s %7zu  ", member[i], rows);
        if (!err_is(e)) e = print_member(out, count, used, in->labels, rows, label_name);
    }
    if (!err_is(e) && s->members > most)
        e = bytes_printf(out, "and %zu more members\n", s->members - most);
    if (!err_is(e))
        e = bytes_printf(
            out,
            "%zu members with %zu to %zu rows; mean distance of a member's labels from "
            "those of all rows: %.2f (0: equal, 1: none in common)\n",
            s->members, least_rows, most_rows, distance(s, in, count, all));
    free(count);
    free(all);
    free(used);
    return e;
}
