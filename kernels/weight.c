#include "kernels/weight.h"

#include "kernels/quant.h"

/* Files written for interleaved rotation keep the two values of a rotated pair side by side. With
 * head dimension d and row t of head h in Hugging Face order,
 *
 *   half = t / (d / 2),  j = t % (d / 2),  row in the file = h d + 2 j + half */
static size_t file_row(const struct weight_part *p, size_t row)
{
    size_t d = p->rows / p->rope_heads, half_dim = d / 2;
    size_t head = row / d, t = row % d;
    return head * d + 2 * (t % half_dim) + t / half_dim;
}

/* Permuted rows are converted one by one, because their bytes do not lie together in the file. */
void weight_part_rows(float *out, const struct weight_part *p, size_t k, size_t row, size_t count)
{
    REQUIRE(p->data != NULL && row <= p->rows && count <= p->rows - row);
    size_t stride = 0;
    REQUIRE(dtype_bytes(&stride, p->type, k));
    const uint8_t *data = p->data;
    if (p->rope_heads == 0) {
        quant_to_f32(out, data + row * stride, p->type, count * k);
        return;
    }
    for (size_t i = 0; i < count; i++)
        quant_to_f32(out + i * k, data + file_row(p, row + i) * stride, p->type, k);
}

void weight_source_rows(float *out, const struct weight_source *s, size_t row, size_t count)
{
    for (size_t i = 0; i < s->parts && count; i++) {
        const struct weight_part *p = &s->part[i];
        if (row < p->rows) {
            size_t n = p->rows - row < count ? p->rows - row : count;
            weight_part_rows(out, p, s->k, row, n);
            out += n * s->k;
            count -= n;
            row = p->rows;
        }
        row -= p->rows;
    }
}
