/* Rotation frequencies: model_rope_frequencies() of model.h. The order of operations and the
 * float32 rounding follow transformers; only powers and logarithms are computed in double. It
 * matters because an angle is position times frequency: at position 100,000 one unit in the last
 * place of a frequency near 1 is already 0.006 radians. */
#include "engine/model/model_build.h"

#include <math.h>

/* theta^(2 i / rotated), rounded twice as in PyTorch: the exponent and the power are float32. */
static float wavelength_of(double theta, uint32_t i, uint32_t rotated)
{
    float exponent = (float)(2 * i) / (float)rotated;
    return (float)pow(theta, (double)exponent);
}

/* Llama 3.1, by the wavelength w = 2 pi / f: frequencies with w > original / low are divided by
 * `factor`, those with w < original / high are kept, and the others are interpolated with
 * smooth = (original / w - low) / (high - low). */
static float llama3(float f, const struct rope *r)
{
    float original = (float)r->original_positions;
    float wavelength = (float)(2 * M_PI) / f;
    if (wavelength > (float)(r->original_positions / r->low_freq_factor))
        return f / (float)r->factor;
    if (wavelength < (float)(r->original_positions / r->high_freq_factor)) return f;
    float smooth = (original / wavelength - (float)r->low_freq_factor) /
                   (float)(r->high_freq_factor - r->low_freq_factor);
    return (1.0f - smooth) * f / (float)r->factor + smooth * f;
}

/* The index at which `rotations` full turns fit into the original positions (YaRN, arXiv
 * 2309.00071, section 3.2). */
static double yarn_index(const struct rope *r, double rotations, uint32_t rotated)
{
    return (rotated * log(r->original_positions / (rotations * 2 * M_PI))) / (2 * log(r->theta));
}

static float yarn(float wavelength, uint32_t i, const struct rope *r, uint32_t rotated)
{
    double low = yarn_index(r, r->beta_fast, rotated), high = yarn_index(r, r->beta_slow, rotated);
    if (!r->untruncated) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, rotated - 1);
    if (low == high) high += 0.001;
    float ramp = ((float)i - (float)low) / (float)(high - low);
    float kept = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
    float slow = 1.0f / ((float)r->factor * wavelength);
    return slow * (1.0f - kept) + 1.0f / wavelength * kept;
}

/* theta for a row longer than the original positions ("NTK-aware" scaling). transformers computes
 * it from a float32 tensor that holds the length. */
static double dynamic_theta(const struct rope *r, uint32_t rotated, uint32_t positions)
{
    if (model_rope_variant(r, positions) == 0) return r->theta;
    float longer =
        (float)r->factor * (float)positions / (float)r->original_positions - (float)(r->factor - 1);
    float power = (float)pow((double)longer, (double)(float)((double)rotated / (rotated - 2)));
    return (double)((float)r->theta * power);
}

float model_rope_frequencies(float *out, const struct rope *r, uint32_t rotated, uint32_t positions)
{
    bool is_long = r->kind == ROPE_LONGROPE && model_rope_variant(r, positions) > 0;
    const float *factors = is_long ? r->long_factors : r->factors;
    double theta = r->kind == ROPE_DYNAMIC ? dynamic_theta(r, rotated, positions) : r->theta;
    for (uint32_t i = 0; i < rotated / 2; i++) {
        float wavelength = wavelength_of(theta, i, rotated);
        float f = 1.0f / wavelength;
        if (r->kind == ROPE_LINEAR) f /= (float)r->factor;
        if (r->kind == ROPE_FACTORS) f /= factors[i];
        if (r->kind == ROPE_LONGROPE) f = 1.0f / (factors[i] * wavelength);
        if (r->kind == ROPE_LLAMA3) f = llama3(f, r);
        if (r->kind == ROPE_YARN) f = yarn(wavelength, i, r, rotated);
        out[i] = f;
    }
    return r->attention_factor > 0 ? r->attention_factor : 1.0f;
}

uint32_t model_rope_variant(const struct rope *r, uint32_t positions)
{
    if (positions <= r->original_positions) return 0;
    return r->kind == ROPE_LONGROPE ? 1 : r->kind == ROPE_DYNAMIC ? positions : 0;
}

static bool same_rope(const struct rope *x, const struct rope *y)
{
    return x->kind == y->kind && x->theta == y->theta && x->factor == y->factor &&
           x->low_freq_factor == y->low_freq_factor && x->high_freq_factor == y->high_freq_factor &&
           x->beta_fast == y->beta_fast && x->beta_slow == y->beta_slow &&
           x->untruncated == y->untruncated && x->attention_factor == y->attention_factor &&
           x->original_positions == y->original_positions && x->factors == y->factors &&
           x->long_factors == y->long_factors;
}

bool model_rotates_apart(const struct model *m)
{
    bool windows = false;
    for (uint32_t i = 0; i < m->arch.layers; i++)
        windows = windows || (m->layer[i].window > 0 && !m->layer[i].unrotated);
    return windows && !same_rope(&m->arch.rope, &m->arch.window_rope);
}

static bool positive(double value)
{
    return isfinite(value) && value > 0;
}

/* Comparisons are written so that NaN fails them. */
err model_check_rope(const struct rope *r, uint32_t rotated)
{
    bool scaled = r->kind == ROPE_LINEAR || r->kind == ROPE_LLAMA3 || r->kind == ROPE_YARN ||
                  r->kind == ROPE_DYNAMIC;
    bool turns = r->kind == ROPE_LONGROPE || r->kind == ROPE_YARN || r->kind == ROPE_DYNAMIC;
    if (!positive(r->theta))
        return err_make(ERR_INPUT, "rope_theta is %g, expected a positive number", r->theta);
    if (scaled && !positive(r->factor))
        return err_make(ERR_INPUT, "rope scaling factor is %g, expected a positive number",
                        r->factor);
    if (r->kind == ROPE_LLAMA3 &&
        !(r->low_freq_factor > 0 && r->high_freq_factor > r->low_freq_factor &&
          isfinite(r->high_freq_factor) && r->original_positions > 0))
        return err_make(ERR_INPUT,
                        "llama3 rope scaling: expected 0 < low_freq_factor (%g) < "
                        "high_freq_factor (%g), and positions of the original (%u)",
                        r->low_freq_factor, r->high_freq_factor, r->original_positions);
    if (turns && r->original_positions == 0)
        return err_make(ERR_INPUT, "rope scaling: original_max_position_embeddings is 0");
    if (r->kind == ROPE_YARN &&
        !(positive(r->beta_slow) && r->beta_fast >= r->beta_slow && isfinite(r->beta_fast)))
        return err_make(ERR_INPUT,
                        "yarn rope scaling: expected 0 < beta_slow (%g) <= beta_fast (%g)",
                        r->beta_slow, r->beta_fast);
    if (r->kind == ROPE_YARN && r->theta <= 1)
        return err_make(ERR_INPUT, "yarn rope scaling: rope_theta is %g, expected more than 1",
                        r->theta);
    if (r->kind == ROPE_DYNAMIC && rotated <= 2)
        return err_make(ERR_INPUT, "dynamic rope scaling: a head rotates %u values, expected more",
                        rotated);
    if (r->attention_factor != 0 && !positive((double)r->attention_factor))
        return err_make(ERR_INPUT,
                        "rope scaling: attention_factor is %g, expected a positive "
                        "number",
                        (double)r->attention_factor);
    return ERR_NONE;
}
