/* Tree aggregation: how much one unit can move all nodes of the tree together.
 *
 * A tree over `leaves` releases is one complete binary tree for each 1 in the binary digits of
 * their number, the largest first. A unit that is in c leaves below a node moves that node by c C.
 * So the whole is one Gaussian release of squared sensitivity S2 = max sum of c^2 over the
 * nodes. */
#include "base/arena.h"
#include "privacy/account/account.h"

#include <math.h>

enum { TREE_LEAVES = 1000000 };
static const double work_most = 2e8;

/* best[(a, c, e)]: the largest sum for c leaves of a part of the tree of which the first a and the
 * last e leaves are excluded; -1: impossible. a, e < span, c < counts. */
struct part {
    uint32_t leaves, span, counts;
    double *best;
};

static double *part_at(const struct part *p, uint32_t a, uint32_t c, uint32_t e)
{
    return &p->best[((size_t)a * p->counts + c) * p->span + e];
}

/* An excluded end as long as the span leaves no leaf. */
static double part_best(const struct part *p, uint32_t a, uint32_t c, uint32_t e)
{
    if (c == 0) return 0;
    return a < p->span && e < p->span && c < p->counts ? *part_at(p, a, c, e) : -1;
}

static uint32_t room(uint32_t blocked, uint32_t leaves)
{
    return blocked > leaves ? blocked - leaves : 0;
}

static uint32_t most_counts(const struct account_tree *t, uint32_t leaves)
{
    uint32_t fit = 1 + (leaves - 1) / (t->apart + 1);
    return fit < t->times ? fit : t->times;
}

static err part_take(struct part *out, const struct account_tree *t, uint32_t leaves,
                     struct arena *arena)
{
    struct part p = {.leaves = leaves, .counts = most_counts(t, leaves) + 1};
    p.span = (t->apart < leaves ? t->apart : leaves) + 1;
    TRY(arena_take(&p.best, arena, (size_t)p.span * p.span * p.counts, sizeof *p.best));
    *out = p;
    return ERR_NONE;
}

/* The largest sum for c leaves on both sides together. At least `apart` leaves are between the last
 * one on the left and the first one on the right. */
static double join_best(const struct part *left, const struct part *right, uint32_t a, uint32_t c,
                        uint32_t e, uint32_t apart)
{
    double best = fmax(part_best(left, a, c, room(e, right->leaves)),
                       part_best(right, room(a, left->leaves), c, e));
    for (uint32_t one = 1; one < c; one++)
        for (uint32_t gap = 0; gap <= apart; gap++) {
            double l = part_best(left, a, one, gap), r = part_best(right, apart - gap, c - one, e);
            if (l >= 0 && r >= 0) best = fmax(best, l + r);
        }
    return best;
}

/* `node`: both parts are below one node, which counts all c. */
static void join(struct part *out, const struct part *left, const struct part *right, bool node,
                 uint32_t apart)
{
    for (uint32_t a = 0; a < out->span; a++)
        for (uint32_t c = 0; c < out->counts; c++)
            for (uint32_t e = 0; e < out->span; e++) {
                double best = join_best(left, right, a, c, e, apart);
                *part_at(out, a, c, e) = best < 0 ? -1 : best + (node ? (double)c * c : 0);
            }
}

static err leaf_take(struct part *out, const struct account_tree *t, struct arena *arena)
{
    TRY(part_take(out, t, 1, arena));
    for (uint32_t a = 0; a < out->span; a++)
        for (uint32_t e = 0; e < out->span; e++)
            *part_at(out, a, 1, e) = a + e == 0 ? 1 : -1;
    return ERR_NONE;
}

/* From the smallest tree to the largest. Their order is the reverse, which gives the same
 * maximum. */
static err exact(double *out, const struct account_tree *t, struct arena *arena)
{
    struct part tree, all = {0};
    TRY(leaf_take(&tree, t, arena));
    for (uint32_t size = 1;; size *= 2) {
        if (t->leaves & size) {
            struct part sum = tree;
            if (all.leaves) {
                TRY(part_take(&sum, t, all.leaves + size, arena));
                join(&sum, &all, &tree, /*node*/ false, t->apart);
            }
            all = sum;
        }
        if (size > t->leaves / 2) break;
        struct part twice;
        TRY(part_take(&twice, t, 2 * size, arena));
        join(&twice, &tree, &tree, /*node*/ true, t->apart);
        tree = twice;
    }
    double best = 0;
    for (uint32_t c = 1; c < all.counts; c++)
        best = fmax(best, part_best(&all, 0, c, 0));
    *out = best;
    return ERR_NONE;
}

static double exact_work(const struct account_tree *t)
{
    double work = 0;
    for (uint32_t size = 1; size <= t->leaves; size *= 2) {
        double span = (t->apart < size ? t->apart : size) + 1, counts = most_counts(t, size) + 1;
        work += 2 * span * span * span * counts * counts;
    }
    return work;
}

/* An upper bound: a node over 2^d leaves counts at most m_d = min(times, ceil(2^d / (apart + 1)))
 * of the unit's leaves, and the squares of a level add up to at most m_d times their number. Exact
 * for a unit that is in every leaf, or in one. */
static double bound(const struct account_tree *t)
{
    double sum = 0;
    uint32_t left = t->times;
    for (uint32_t size = 1u << 31; size; size /= 2) {
        if (!(t->leaves & size)) continue;
        uint32_t here = most_counts(t, size);
        here = here < left ? here : left;
        left -= here;
        for (uint32_t below = 1; here && below <= size; below *= 2) {
            uint32_t most = most_counts(t, below);
            sum += (double)here * (most < here ? most : here);
        }
    }
    return sum;
}

err account_tree_event(struct account_event *out, double *sensitivity2, double noise,
                       const struct account_tree *tree)
{
    struct account_tree t = *tree;
    struct arena arena = {0};
    double square;
    if (t.leaves < 1 || t.leaves > TREE_LEAVES)
        return err_make(ERR_INPUT, "tree of %u leaves: expected 1 to %d", t.leaves, TREE_LEAVES);
    if (t.times == 0) t.times = 1;
    if (t.apart >= t.leaves) t.apart = t.leaves - 1;
    square = bound(&t);
    if (t.times > 1 && exact_work(&t) <= work_most) {
        err e = exact(&square, &t, &arena);
        arena_close(&arena);
        if (err_is(e)) return e;
    }
    struct account_event event = {.noise = noise / sqrt(square), .sampling = 1, .count = 1};
    TRY(account_check_event(&event));
    if (sensitivity2) *sensitivity2 = square;
    *out = event;
    return ERR_NONE;
}
