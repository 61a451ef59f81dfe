#include "privacy/account/fft.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Blocks of up to this many values fit the nearest cache and are done level by level; larger ones
 * depth first. */
enum { FFT_NEAR = 2048 };

double fft_error(size_t n)
{
    /* Each of log2(n) levels multiplies by a root with one rounding error, and rounds three
     * times. */
    return 4 * 0x1p-53 * (log2((double)n) + 1);
}

/* The block b of level l holds a polynomial modulo X^(size/2^l) - e^(i angle),
 * angle = (pi/2 + 2 pi rev(b)) / 2^l. Its root is e^(i angle / 2). For even b, the root of b + 1 is
 * i times that of b. */
static void roots_fill(struct fft_value *root, size_t size)
{
    for (size_t blocks = 1; blocks < size; blocks *= 2) {
        size_t rev = 0; /* of b, in the bits below `blocks` */
        for (size_t b = 0; b < blocks; b += 2) {
            double angle = M_PI * ((1 + 4 * (double)rev) / (4 * (double)blocks));
            root[blocks + b] = (struct fft_value){cos(angle), sin(angle)};
            if (b + 1 < blocks)
                root[blocks + b + 1] =
                    (struct fft_value){-root[blocks + b].im, root[blocks + b].re};
            size_t bit = blocks >> 2; /* next even b: rev counts up from the second highest bit */
            while (bit && (rev & bit)) {
                rev ^= bit;
                bit >>= 1;
            }
            rev |= bit;
        }
    }
}

err fft_open(struct fft *out, size_t n)
{
    REQUIRE(n >= 4 && (n & (n - 1)) == 0);
    size_t size = n / 2;
    struct fft_value *root = malloc(size * sizeof *root);
    if (!root) return err_make(ERR_MACHINE, "no memory for a transform of %zu values", n);
    root[0] = (struct fft_value){0};
    roots_fill(root, size);
    *out = (struct fft){.size = size, .root = root};
    return ERR_NONE;
}

void fft_close(struct fft *fft)
{
    free(fft->root);
    *fft = (struct fft){0};
}

/* (u, v) -> (u + r v, u - r v): modulo X^2h - r^2 into modulo X^h - r and X^h + r. */
static void split(struct fft_value *z, size_t half, struct fft_value r)
{
    struct fft_value *restrict u = z, *restrict v = z + half;
    for (size_t j = 0; j < half; j++) {
        double re = r.re * v[j].re - r.im * v[j].im, im = r.re * v[j].im + r.im * v[j].re;
        v[j] = (struct fft_value){u[j].re - re, u[j].im - im};
        u[j] = (struct fft_value){u[j].re + re, u[j].im + im};
    }
}

/* (u, v) -> (u + v, (u - v) / r): twice the input of split(). */
static void join(struct fft_value *z, size_t half, struct fft_value r)
{
    struct fft_value *restrict u = z, *restrict v = z + half;
    for (size_t j = 0; j < half; j++) {
        double re = u[j].re - v[j].re, im = u[j].im - v[j].im;
        u[j] = (struct fft_value){u[j].re + v[j].re, u[j].im + v[j].im};
        v[j] = (struct fft_value){r.re * re + r.im * im, r.re * im - r.im * re};
    }
}

/* Block b of `blocks`, `size` values long. */
static void forward(const struct fft_value *root, struct fft_value *z, size_t size, size_t blocks,
                    size_t b)
{
    if (size > FFT_NEAR) {
        split(z, size / 2, root[blocks + b]);
        forward(root, z, size / 2, 2 * blocks, 2 * b);
        forward(root, z + size / 2, size / 2, 2 * blocks, 2 * b + 1);
        return;
    }
    for (size_t half = size / 2, count = 1; half; half /= 2, count *= 2)
        for (size_t i = 0; i < count; i++)
            split(z + i * 2 * half, half, root[(blocks + b) * count + i]);
}

static void inverse(const struct fft_value *root, struct fft_value *z, size_t size, size_t blocks,
                    size_t b)
{
    if (size > FFT_NEAR) {
        inverse(root, z, size / 2, 2 * blocks, 2 * b);
        inverse(root, z + size / 2, size / 2, 2 * blocks, 2 * b + 1);
        join(z, size / 2, root[blocks + b]);
        return;
    }
    for (size_t half = 1, count = size / 2; count; half *= 2, count /= 2)
        for (size_t i = 0; i < count; i++)
            join(z + i * 2 * half, half, root[(blocks + b) * count + i]);
}

void fft_forward(const struct fft *fft, struct fft_value *z)
{
    forward(fft->root, z, fft->size, 1, 0);
}

void fft_inverse(const struct fft *fft, struct fft_value *z)
{
    inverse(fft->root, z, fft->size, 1, 0);
    double scale = 1 / (double)fft->size;
    for (size_t j = 0; j < fft->size; j++)
        z[j] = (struct fft_value){z[j].re * scale, z[j].im * scale};
}
