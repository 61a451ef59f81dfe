/* The rotation in the keys and tensors of a GGUF file. */
#include "engine/model/model_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { HEAD_DIM_MAX = 4096 }; /* largest head dimension with factors of frequencies */

/* GGUF files contain the factors of llama3 scaling (rope_freqs.weight) but not its parameters. The
 * Llama models use low = 1 and high = 4, so the parameters can be found again: `factor` is the
 * largest factor, and the original length is a power of two that is tried out. Using parameters
 * gives the exact rounding of transformers, and the base gets the same digest as its Hugging Face
 * directory. The tolerance of 1e-5 is larger than the float32 rounding of the factors and much
 * smaller than the difference to the next candidate length. */
static bool recover_llama3(struct rope *r, const struct arch *a)
{
    uint32_t n = model_rotated(a) / 2;
    const struct rope plain = {.kind = ROPE_DEFAULT, .theta = r->theta};
    struct rope guess = {.kind = ROPE_LLAMA3,
                         .theta = r->theta,
                         .factor = 1,
                         .low_freq_factor = 1,
                         .high_freq_factor = 4};
    for (uint32_t i = 0; i < n; i++)
        if ((double)r->factors[i] > guess.factor) guess.factor = (double)r->factors[i];
    for (uint32_t original = 16; original <= 1u << 20; original *= 2) {
        guess.original_positions = original;
        float base[HEAD_DIM_MAX / 2], wanted[HEAD_DIM_MAX / 2];
        model_rope_frequencies(base, &plain, model_rotated(a), 0);
        model_rope_frequencies(wanted, &guess, model_rotated(a), 0);
        uint32_t equal = 0;
        while (equal < n && fabsf(base[equal] / r->factors[equal] / wanted[equal] - 1) < 1e-5f)
            equal++;
        if (equal < n) continue;
        *r = guess;
        return true;
    }
    return false;
}

/* The values of one of the tensors of factors; NULL if there is none. */
static err read_list(const float **out, struct model *m, const char *name)
{
    const struct gguf_tensor *t = gguf_find_tensor(&m->gguf, name);
    uint32_t n = model_rotated(&m->arch) / 2;
    float *factor;
    *out = NULL;
    if (t == NULL) return ERR_NONE;
    if (t->dtype != DTYPE_F32 || t->ne[1] * t->ne[2] * t->ne[3] != 1 || t->ne[0] != n ||
        n > HEAD_DIM_MAX / 2)
        return err_make(ERR_INPUT, "tensor %s: expected %u values of F32", name, n);
    TRY(arena_take(&factor, &m->arena, n, sizeof *factor));
    memcpy(factor, t->data, n * sizeof *factor);
    for (uint32_t i = 0; i < n; i++)
        if (!(isfinite(factor[i]) && factor[i] > 0))
            return err_make(ERR_INPUT, "tensor %s: expected positive numbers", name);
    *out = factor;
    return ERR_NONE;
}

/* Longrope is known by its tensors, because converters write no kind for Phi-3. attn_factor is the
 * factor of cos and sin. */
static err read_longrope(struct model *m, const float *in_short, const float *in_long)
{
    struct rope *r = &m->arch.rope;
    float attention = 1;
    uint32_t original = m->arch.max_positions;
    if (r->kind != ROPE_DEFAULT)
        return err_make(ERR_INPUT, "tensor rope_factors_long.weight: not possible together with "
                                   "other rope scaling");
    TRY(gguf_opt_f32(&attention, &m->gguf, gguf_key_of(m, "rope.scaling.attn_factor").text));
    TRY(gguf_opt_u32(&original, &m->gguf,
                     gguf_key_of(m, "rope.scaling.original_context_length").text));
    r->kind = ROPE_LONGROPE;
    r->factors = in_short;
    r->long_factors = in_long;
    r->original_positions = original;
    r->attention_factor = attention == 1 ? 0 : attention;
    return ERR_NONE;
}

/* Factors that are all 1 change nothing and are dropped, so that such a file has the identity of an
 * unscaled model. Other factors that are not those of llama3 are used as they are. */
static err read_factors(struct model *m)
{
    struct rope *r = &m->arch.rope;
    const float *in_short, *in_long;
    TRY(read_list(&in_short, m, "rope_factors_short.weight"));
    TRY(read_list(&in_long, m, "rope_factors_long.weight"));
    if ((in_short == NULL) != (in_long == NULL))
        return err_make(ERR_INPUT, "tensor rope_factors_%s.weight is missing",
                        in_short == NULL ? "short" : "long");
    if (in_long != NULL) TRY(read_longrope(m, in_short, in_long));
    const float *factors;
    TRY(read_list(&factors, m, "rope_freqs.weight"));
    if (factors == NULL) return ERR_NONE;
    if (r->kind != ROPE_DEFAULT)
        return err_make(ERR_INPUT,
                        "tensor rope_freqs.weight: not possible together with other rope scaling");
    bool ones = true;
    for (uint32_t i = 0; i < model_rotated(&m->arch) / 2; i++)
        ones = ones && factors[i] == 1;
    if (ones) return ERR_NONE;
    r->factors = factors;
    if (!recover_llama3(r, &m->arch)) r->kind = ROPE_FACTORS;
    return ERR_NONE;
}

err gguf_read_rope_factors(struct model *m)
{
    struct gguf_str type = {.data = "none", .size = 4};
    TRY(read_factors(m));
    TRY(gguf_opt_str(&type, &m->gguf, gguf_key_of(m, "rope.scaling.type").text));
    if (gguf_str_is(type, "longrope") && m->arch.rope.kind != ROPE_LONGROPE)
        return err_make(ERR_INPUT, "tensor rope_factors_long.weight is missing");
    if (m->arch.family->by_default.window_theta == 0) m->arch.window_rope = m->arch.rope;
    return ERR_NONE;
}

/* llama.cpp multiplies attn_factor with 0.1 ln(factor) + 1 and rounds the ends of the ramp. */
static err read_yarn(struct model *m)
{
    struct rope *r = &m->arch.rope;
    float fast = 32, slow = 1, attention = 1;
    TRY(gguf_opt_f32(&fast, &m->gguf, gguf_key_of(m, "rope.scaling.yarn_beta_fast").text));
    TRY(gguf_opt_f32(&slow, &m->gguf, gguf_key_of(m, "rope.scaling.yarn_beta_slow").text));
    TRY(gguf_opt_f32(&attention, &m->gguf, gguf_key_of(m, "rope.scaling.attn_factor").text));
    r->original_positions = m->arch.max_positions;
    TRY(gguf_opt_u32(&r->original_positions, &m->gguf,
                     gguf_key_of(m, "rope.scaling.original_context_length").text));
    r->kind = ROPE_YARN;
    r->beta_fast = (double)fast;
    r->beta_slow = (double)slow;
    double scale = (double)attention * (r->factor > 1 ? 0.1 * log(r->factor) + 1 : 1);
    r->attention_factor = (float)scale == 1 ? 0 : (float)scale;
    return ERR_NONE;
}

/* rope.scale_linear is the name that old converters wrote. A factor of 0 or 1 means no scaling.
 * Scaling is for the layers without a window where these rotate by frequencies of their own. */
err gguf_read_rope(struct model *m)
{
    struct rope *r = &m->arch.rope;
    const struct family_defaults *d = &m->arch.family->by_default;
    struct gguf_str type = {.data = "none", .size = 4};
    float theta = 10000, factor = 1, apart = (float)d->window_theta;
    TRY(gguf_opt_f32(&theta, &m->gguf, gguf_key_of(m, "rope.freq_base").text));
    TRY(gguf_opt_f32(&apart, &m->gguf, gguf_key_of(m, "rope.freq_base_swa").text));
    TRY(gguf_opt_str(&type, &m->gguf, gguf_key_of(m, "rope.scaling.type").text));
    TRY(gguf_opt_f32(&factor, &m->gguf, gguf_key_of(m, "rope.scale_linear").text));
    r->theta = (double)theta;
    bool is_yarn = gguf_str_is(type, "yarn"), is_long = gguf_str_is(type, "longrope");
    if (!gguf_str_is(type, "none") && !gguf_str_is(type, "linear") && !is_yarn && !is_long)
        return err_make(ERR_INPUT, "%s \"%.*s\": expected none, linear, yarn or longrope",
                        gguf_key_of(m, "rope.scaling.type").text,
                        (int)(type.size < 64 ? type.size : 64), type.data);
    if (gguf_str_is(type, "linear") || is_yarn)
        TRY(gguf_get_f32(&factor, &m->gguf, gguf_key_of(m, "rope.scaling.factor").text));
    if (factor != 1 && factor != 0 && !is_long) {
        r->kind = ROPE_LINEAR;
        r->factor = (double)factor;
    }
    if (is_yarn) TRY(read_yarn(m));
    m->arch.window_rope = d->window_theta > 0 ? (struct rope){.theta = (double)apart} : *r;
    return ERR_NONE;
}
