/* Norms, rotation and the gated unit of one backend, against their formulas in float64 (see
 * operations.c). */
#include "tests/support/operations.h"

/* ---- norms ---- */
struct norm_case {
    struct norm_shape s;
    enum dtype x, y;  /* DTYPE_NONE: the precision */
    bool copy;        /* norm() also copies x; norm_back() also writes a narrow copy */
    bool set, within; /* norm_back(): replace dx, and in the place of dy */
    double scale;
};

static enum dtype type_of(enum dtype t)
{
    return t == DTYPE_NONE ? precision : t;
}

static void plain_norm(double *y, double *inv, const double *x, const float *weight,
                       const struct norm_shape *s)
{
    for (size_t v = 0; v < s->rows * s->groups; v++) {
        double sum = 0.0;
        for (size_t j = 0; j < s->width; j++)
            sum += x[v * s->width + j] * x[v * s->width + j];
        inv[v] = 1.0 / sqrt(sum / (double)s->width + (double)s->eps);
        for (size_t j = 0; j < s->width; j++)
            y[v * s->width + j] = x[v * s->width + j] * inv[v] * (double)weight[j];
    }
}
static void plain_norm_back(double *dx, const double *dy, const double *x, const double *inv,
                            const float *weight, const struct norm_shape *s, bool set)
{
    for (size_t v = 0; v < s->rows * s->groups; v++) {
        const double *g = dy + v * s->width, *in = x + v * s->width;
        double mean = 0.0, r = inv[v];
        for (size_t j = 0; j < s->width; j++)
            mean += in[j] * r * g[j] * (double)weight[j] / (double)s->width;
        for (size_t j = 0; j < s->width; j++) {
            double *to = dx + v * s->width + j;
            *to = (set ? 0.0 : *to) + r * (g[j] * (double)weight[j] - in[j] * r * mean);
        }
    }
}

static void check_norm(const struct norm_case *n)
{
    const struct norm_shape *s = &n->s;
    size_t cols = s->groups * s->width, vectors = s->rows * s->groups;
    struct tensor x = tensor_normal(type_of(n->x), s->rows, cols, 5, n->scale);
    struct tensor y = tensor_new(type_of(n->y), s->rows, cols, 2);
    struct tensor copy = tensor_new(precision, s->rows, cols, 1);
    struct tensor inv = tensor_new(DTYPE_F32, s->rows, s->groups, 0);
    float *host = floats_normal(s->width, DTYPE_F32, 1.0);
    float *weight = device_take(s->width * sizeof *weight);
    device_put(weight, host, s->width * sizeof *weight);
    be->norm(c, y.m, inv.m.data, n->copy ? copy.m : (struct mat){0}, x.m, weight, s);
    plain_norm(y.x, inv.x, x.x, host, s);
    tensor_near(&y, near_of(y.m.type), "norm");
    tensor_near(&inv, 1e-6, "norm: inv");
    for (size_t i = 0; i < s->rows * cols; i++)
        copy.x[i] = n->copy ? rounded(x.x[i], precision) : (double)CANARY;
    tensor_near(&copy, 0.0, "norm: copy");

    enum dtype back = n->set ? y.m.type : DTYPE_F32;
    struct tensor dx = tensor_normal(back, s->rows, cols, 3, 1.0), narrow = copy;
    struct tensor dy = n->within ? dx : tensor_normal(type_of(n->y), s->rows, cols, 1, 1.0);
    double *g = memcpy(host_take(vectors * s->width, sizeof *g), dy.x, vectors * s->width * 8);
    be->norm_back(c, dx.m, n->copy ? narrow.m : (struct mat){0}, dy.m, x.m, inv.m.data, weight, s,
                  n->set);
    plain_norm_back(dx.x, g, x.x, inv.x, host, s, n->set);
    tensor_near(&dx, 2 * near_of(back), "norm_back");
    if (n->copy) memcpy(narrow.x, dx.x, s->rows * cols * sizeof *dx.x);
    tensor_near(&narrow, n->copy ? near_of(precision) : 0.0, "norm_back: narrow");
}

static void run_norms(void)
{
    static const struct norm_case all[] = {
        {{1, 1, 1, 1e-5f}, DTYPE_F32, DTYPE_NONE, true, false, false, 1.0},
        {{5, 1, 7, 1e-6f}, DTYPE_F32, DTYPE_NONE, false, false, false, 1.0},
        {{9, 1, 576, 1e-5f}, DTYPE_NONE, DTYPE_NONE, true, false, false, 3.0},
        {{67, 1, 100, 1e-5f}, DTYPE_F32, DTYPE_NONE, true, false, false, 1e-3},
        {{3, 1, 1025, 1e-5f}, DTYPE_F32, DTYPE_NONE, true, true, false, 1.0},
        {{2, 1, 4100, 1e-5f}, DTYPE_F32, DTYPE_NONE, true, false, false, 100.0},
        {{12, 1, 333, 1e-5f}, DTYPE_F32, DTYPE_F32, false, true, true, 1.0},
        {{33, 1, 96, 1e-6f}, DTYPE_NONE, DTYPE_NONE, false, true, true, 1.0},
        {{21, 3, 20, 1e-6f}, DTYPE_NONE, DTYPE_NONE, false, true, true, 1.0},
        {{10, 5, 128, 1e-6f}, DTYPE_NONE, DTYPE_NONE, false, true, true, 1.0},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        check_norm(&all[i]);
}
Test(operations_elementwise, norms_and_their_gradients)
{
    both(run_norms);
}

/* The bits of a row are its own: one call with all rows gives those of calls with one row. */
static void run_norm_rows(void)
{
    enum { ROWS = 13, WIDTH = 333 };
    struct tensor x = tensor_normal(DTYPE_F32, ROWS, WIDTH, 0, 1.0);
    struct tensor dy = tensor_normal(precision, ROWS, WIDTH, 0, 1.0);
    struct tensor y[2], dx[2], inv = tensor_new(DTYPE_F32, ROWS, 1, 0);
    float *weight = device_take(WIDTH * sizeof *weight);
    device_put(weight, floats_normal(WIDTH, DTYPE_F32, 1.0), WIDTH * sizeof *weight);
    for (int alone = 0; alone < 2; alone++) {
        struct norm_shape s = {alone ? 1 : ROWS, 1, WIDTH, 1e-5f};
        y[alone] = tensor_new(precision, ROWS, WIDTH, 0);
        dx[alone] = tensor_new(DTYPE_F32, ROWS, WIDTH, 0);
        for (size_t i = 0; i < ROWS; i += s.rows) {
            float *at = (float *)inv.m.data + i;
            be->norm(c, mat_at(y[alone].m, i, 0), at, (struct mat){0}, mat_at(x.m, i, 0), weight,
                     &s);
            be->norm_back(c, mat_at(dx[alone].m, i, 0), (struct mat){0}, mat_at(dy.m, i, 0),
                          mat_at(x.m, i, 0), at, weight, &s, true);
        }
    }
    rows_same(tensor_get(&y[0], "y"), 0, tensor_get(&y[1], "y"), 0, ROWS, WIDTH, "norm");
    rows_same(tensor_get(&dx[0], "dx"), 0, tensor_get(&dx[1], "dx"), 0, ROWS, WIDTH, "norm_back");
}
Test(operations_elementwise, a_norm_does_not_depend_on_other_rows)
{
    both(run_norm_rows);
}

/* ---- rotation ---- */
struct rope_case {
    size_t heads, head_dim, rotary; /* rotary 0: all of the head */
};
static void check_rope(const struct rows_of_batch *r, const struct rope_case *k, enum dtype type,
                       bool within, bool back)
{
    size_t heads = k->heads, hd = k->head_dim, half = (k->rotary ? k->rotary : hd) / 2;
    size_t rows = r->now.tokens, positions = 200, cols = heads * hd;
    struct tensor from = tensor_normal(precision, rows, cols, 4, 1.0);
    struct tensor to = within ? from : tensor_new(type, rows, cols, 3);
    float *table = host_take(2 * positions * half, sizeof *table);
    float *device = device_take(2 * positions * half * sizeof *device);
    for (size_t i = 0; i < positions * half; i++) {
        double angle = (double)(i / half) * pow(100.0, -(double)(i % half) / (double)half);
        table[i] = (float)cos(angle);
        table[positions * half + i] = (float)sin(angle);
    }
    device_put(device, table, 2 * positions * half * sizeof *device);
    struct rope_shape s = {rows, heads, hd, k->rotary, device, device + positions * half, back};
    double *x = memcpy(host_take(rows * cols, sizeof *x), from.x, rows * cols * sizeof *x);
    be->rope(c, to.m, from.m, &s, r->b);
    for (size_t i = 0; i < rows * cols; i++) {
        size_t j = i % cols % hd, at = r->position[i / cols] * half + j % half;
        double cosine = (double)table[at], sine = (double)table[positions * half + at];
        if (back) sine = -sine;
        to.x[i] = j >= 2 * half ? x[i]
                  : j < half    ? x[i] * cosine - x[i + half] * sine
                                : x[i] * cosine + x[i - half] * sine;
    }
    tensor_near(&to, near_of(to.m.type), back ? "rope back" : "rope");
}

static void run_rope(void)
{
    static const uint32_t length[] = {1, 150, 2, 9};
    static const struct rope_case shape[] = {{1, 2, 0},   {3, 6, 0},    {5, 20, 0},  {4, 64, 0},
                                             {3, 128, 0}, {3, 128, 96}, {5, 20, 10}, {2, 64, 16}};
    struct rows_of_batch r = batch_of(length, 4, 1);
    for (uint32_t t = r.start[2]; t < r.start[3]; t++)
        r.position[t] += 190; /* as for a new token behind a cache */
    rows_set(&r);
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++)
        for (int back = 0; back < 2; back++) {
            check_rope(&r, &shape[i], precision, true, back);
            check_rope(&r, &shape[i], precision, false, back);
            check_rope(&r, &shape[i], DTYPE_F32, false, back);
        }
}
Test(operations_elementwise, rope_rotates_forward_and_back)
{
    both(run_rope);
}

/* ---- the gated unit ---- */
static double plain_activation(double *slope, double x, enum activation kind)
{
    if (kind == ACTIVATION_SILU) {
        double s = 1.0 / (1.0 + exp(-x));
        *slope = s + x * s * (1.0 - s);
        return x * s;
    }
    double root = sqrt(2.0 / acos(-1.0)), t = tanh(root * (x + 0.044715 * x * x * x));
    double inner = root * (1.0 + 3.0 * 0.044715 * x * x);
    *slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
    return 0.5 * x * (1.0 + t);
}

static void check_gate(size_t rows, size_t width, enum activation kind)
{
    struct tensor both = tensor_normal(precision, rows, 2 * width, 3, 2.0); /* gate | up */
    struct tensor h = tensor_new(precision, rows, width, 1);
    struct tensor dh = tensor_normal(precision, rows, width, 2, 1.0);
    static const double special[] = {0.0, -100.0, 100.0, -20.0, 20.0};
    for (size_t i = 0; i < 5 && i < rows * width; i++)
        both.x[i / width * 2 * width + i % width] = special[i];
    tensor_put(&both);
    struct gate_shape s = {rows, width, kind};
    struct mat gate = both.m, up = mat_at(both.m, 0, width);
    be->gate(c, h.m, gate, up, &s);
    for (size_t i = 0; i < rows * width; i++) {
        double *g = both.x + i / width * 2 * width + i % width, u = g[width];
        double slope, active = plain_activation(&slope, *g, kind), d = dh.x[i];
        h.x[i] = active * u;
        g[0] = d * u * slope;
        g[width] = d * active;
    }
    tensor_near(&h, near_of(precision), "gate");
    struct tensor apart[2] = {tensor_new(precision, rows, width, 1),
                              tensor_new(precision, rows, width, 0)};
    struct tensor again = tensor_copy(&dh, precision, 4);
    be->gate_back(c, apart[0].m, apart[1].m, again.m, gate, up, &s);
    be->gate_back(c, gate, up, dh.m, gate, up, &s);
    memcpy(dh.x, h.x, rows * width * sizeof *h.x);
    memcpy(again.x, h.x, rows * width * sizeof *h.x);
    for (size_t i = 0; i < rows * width; i++)
        for (size_t side = 0; side < 2; side++)
            apart[side].x[i] = both.x[i / width * 2 * width + side * width + i % width];
    tensor_near(&both, near_of(precision), "gate_back in place");
    tensor_near(&dh, near_of(precision), "gate_back: h");
    tensor_near(&apart[0], near_of(precision), "gate_back: dgate");
    tensor_near(&apart[1], near_of(precision), "gate_back: dup");
    tensor_near(&again, near_of(precision), "gate_back: h again");
}
static void run_gate(void)
{
    static const size_t size[][2] = {{1, 1}, {3, 5}, {65, 96}, {7, 1500}};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        check_gate(size[i][0], size[i][1], ACTIVATION_SILU);
        check_gate(size[i][0], size[i][1], ACTIVATION_GELU_TANH);
    }
}
Test(operations_elementwise, gate_and_its_gradient)
{
    both(run_gate);
}
