#include "kernels/weight.h"

#include "kernels/formula.h"
#include "kernels/quant.h"

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
    for (size_t i = 0; i < count; i++) {
        size_t at = formula_file_row((uint32_t)(row + i), p->rows, p->rope_heads);
        quant_to_f32(out + i * k, data + at * stride, p->type, k);
    }
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
