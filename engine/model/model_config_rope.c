/* The rotation in config.json: config_read_rope() of model_config.h. */
#include "engine/model/model_config.h"

#include <math.h>
#include <string.h>

/* The place from which one set of parameters is read. */
struct source {
    const struct model_config *c;
    const json_t *rope; /* rope_scaling or rope_parameters; NULL: there is none */
    struct arena *arena;
    uint32_t rotated, max_positions;
    uint32_t original; /* family_defaults.original_positions */
};

static bool is_set(const json_t *value)
{
    return value != NULL && !json_is_null(value);
}

/* A key that is not known could change the rotation, as mrope_section does. */
static err refuse_unknown(const struct source *s)
{
    static const char *const known[] = {"rope_type",        "type",
                                        "rope_theta",       "partial_rotary_factor",
                                        "factor",           "low_freq_factor",
                                        "high_freq_factor", "original_max_position_embeddings",
                                        "attention_factor", "beta_fast",
                                        "beta_slow",        "mscale",
                                        "mscale_all_dim",   "truncate",
                                        "short_factor",     "long_factor",
                                        "finetuned"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)s->rope, key, value)
    {
        bool found = !is_set(value);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found = found || strcmp(key, known[i]) == 0;
        if (!found)
            return err_make(ERR_INPUT, "%s: rope scaling has \"%s\", which is not supported",
                            s->c->where, key);
    }
    return ERR_NONE;
}

/* The length that the model had before its context was extended. Phi-3 states it outside of the
 * scaling, and transformers prefers it there. Without it the limit of the model is used. */
static err read_original(struct rope *r, const struct source *s)
{
    static const char key[] = "original_max_position_embeddings";
    int64_t value = s->original > 0 ? s->original : s->max_positions;
    if (s->original == 0) TRY(json_opt_int(&value, s->rope, key, 1, UINT32_MAX, s->c->where));
    if (r->kind != ROPE_LLAMA3)
        TRY(json_opt_int(&value, s->c->root, key, 1, UINT32_MAX, s->c->where));
    r->original_positions = (uint32_t)value;
    return ERR_NONE;
}

/* Without a factor it follows from the two lengths. */
static err read_extension(struct rope *r, const struct source *s)
{
    TRY(read_original(r, s));
    r->factor = (double)s->max_positions / r->original_positions;
    return json_opt_num(&r->factor, s->rope, "factor", s->c->where);
}

static err read_attention(struct rope *r, const struct source *s, double by_default)
{
    double value = by_default;
    TRY(json_opt_num(&value, s->rope, "attention_factor", s->c->where));
    if (!(isfinite(value) && value > 0))
        return err_make(ERR_INPUT, "%s: attention_factor is %g, expected a positive number",
                        s->c->where, value);
    r->attention_factor = (float)value == 1.0f ? 0 : (float)value;
    return ERR_NONE;
}

/* The factors have no defaults in transformers, so a missing one is an error; the original length
 * has one. */
static err read_llama3(struct rope *r, const struct source *s)
{
    TRY(json_get_num(&r->factor, s->rope, "factor", s->c->where));
    TRY(json_get_num(&r->low_freq_factor, s->rope, "low_freq_factor", s->c->where));
    TRY(json_get_num(&r->high_freq_factor, s->rope, "high_freq_factor", s->c->where));
    return read_original(r, s);
}

static double yarn_scale(double factor, double times)
{
    return factor <= 1 ? 1 : 0.1 * times * log(factor) + 1;
}

/* The factor of cos and sin: 0.1 ln(factor) + 1, or with both mscale values the quotient of two
 * such terms. 0 counts as absent for mscale, beta_fast and beta_slow, as in transformers. */
static err read_yarn(struct rope *r, const struct source *s)
{
    double mscale = 0, all = 0, fast = 0, slow = 0;
    bool truncate = true;
    TRY(read_extension(r, s));
    TRY(json_opt_num(&mscale, s->rope, "mscale", s->c->where));
    TRY(json_opt_num(&all, s->rope, "mscale_all_dim", s->c->where));
    TRY(json_opt_num(&fast, s->rope, "beta_fast", s->c->where));
    TRY(json_opt_num(&slow, s->rope, "beta_slow", s->c->where));
    TRY(json_opt_bool(&truncate, s->rope, "truncate", s->c->where));
    r->beta_fast = fast != 0 ? fast : 32;
    r->beta_slow = slow != 0 ? slow : 1;
    r->untruncated = !truncate;
    double scale = mscale != 0 && all != 0
                       ? yarn_scale(r->factor, mscale) / yarn_scale(r->factor, all)
                       : yarn_scale(r->factor, 1);
    return read_attention(r, s, scale);
}

static err read_list(const float **out, const struct source *s, const char *key)
{
    const json_t *list = json_object_get(s->rope, key);
    size_t n = s->rotated / 2;
    float *value;
    if (json_array_size(list) != n)
        return err_make(ERR_INPUT, "%s: %s: expected a list of %zu numbers", s->c->where, key, n);
    TRY(arena_take(&value, s->arena, n + 1, sizeof *value));
    for (size_t i = 0; i < n; i++) {
        double number = json_number_value(json_array_get(list, i));
        value[i] = (float)number;
        if (!(isfinite(value[i]) && value[i] > 0))
            return err_make(ERR_INPUT, "%s: %s[%zu]: expected a positive number", s->c->where, key,
                            i);
    }
    *out = value;
    return ERR_NONE;
}

/* The factor of cos and sin is sqrt(1 + ln(factor) / ln(original length)) where the file does not
 * state it. */
static err read_longrope(struct rope *r, const struct source *s)
{
    TRY(read_extension(r, s));
    TRY(read_list(&r->factors, s, "short_factor"));
    TRY(read_list(&r->long_factors, s, "long_factor"));
    double scale = r->factor > 1 && r->original_positions > 1
                       ? sqrt(1 + log(r->factor) / log(r->original_positions))
                       : 1;
    r->factor = 0; /* it has no other use */
    return read_attention(r, s, scale);
}

static err read_dynamic(struct rope *r, const struct source *s)
{
    r->original_positions = s->max_positions;
    return json_get_num(&r->factor, s->rope, "factor", s->c->where);
}

static err read_linear(struct rope *r, const struct source *s)
{
    return json_get_num(&r->factor, s->rope, "factor", s->c->where);
}

/* transformers reads the names "su" and "yarn" of early Phi-3 files as longrope. */
static err read_kind(struct rope *r, const struct source *s)
{
    static const struct {
        const char *name;
        enum rope_kind kind;
        err (*read)(struct rope *r, const struct source *s);
    } kinds[] = {{"linear", ROPE_LINEAR, read_linear},
                 {"llama3", ROPE_LLAMA3, read_llama3},
                 {"yarn", ROPE_YARN, read_yarn},
                 {"longrope", ROPE_LONGROPE, read_longrope},
                 {"dynamic", ROPE_DYNAMIC, read_dynamic}};
    const char *type = "default";
    if (s->rope == NULL) return ERR_NONE;
    TRY(refuse_unknown(s));
    TRY(json_opt_num(&r->theta, s->rope, "rope_theta", s->c->where));
    TRY(json_opt_str(&type, s->rope, "type", s->c->where));
    TRY(json_opt_str(&type, s->rope, "rope_type", s->c->where));
    if (strcmp(type, "default") == 0) return ERR_NONE;
    bool early = is_set(json_object_get(s->rope, "short_factor"));
    if (early && (strcmp(type, "su") == 0 || strcmp(type, "yarn") == 0)) type = "longrope";
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].name) == 0) {
            r->kind = kinds[i].kind;
            return kinds[i].read(r, s);
        }
    return config_refuse(s->c, "rope_type", type,
                         "default, linear, llama3, yarn, longrope or dynamic");
}

/* A family without partial rotation computes with whole heads, so a part would be another model. */
static err read_rotated(struct arch *a, const struct model_config *c, const json_t *rope)
{
    double part = 1;
    TRY(json_opt_num(&part, c->root, "partial_rotary_factor", c->where));
    if (rope != NULL) TRY(json_opt_num(&part, rope, "partial_rotary_factor", c->where));
    if (!(part > 0 && part <= 1) || (part != 1 && !a->family->partial))
        return err_make(ERR_INPUT, "%s: partial_rotary_factor %g: expected %s", c->where, part,
                        a->family->partial ? "more than 0 and at most 1" : "1");
    uint32_t rotated = (uint32_t)(a->head_dim * part);
    a->rotary_dim = rotated == a->head_dim ? 0 : rotated;
    if (rotated == 0)
        return err_make(ERR_INPUT, "%s: partial_rotary_factor %g: nothing of a head rotates",
                        c->where, part);
    return ERR_NONE;
}

/* The two sets of a family whose layers with a window rotate by other frequencies. In the old style
 * rope_scaling is for the other layers. */
static err find_pair(const json_t **full, const json_t **window, const struct model_config *c)
{
    const json_t *both = json_object_get(c->root, "rope_parameters");
    *full = *window = NULL;
    if (is_set(both)) {
        *full = json_object_get(both, "full_attention");
        *window = json_object_get(both, "sliding_attention");
        if (!json_is_object(both) || (!json_is_object(*full) && !json_is_object(*window)))
            return err_make(ERR_INPUT,
                            "%s: rope_parameters: expected full_attention and sliding_attention",
                            c->where);
    }
    const json_t *scaling = json_object_get(c->root, "rope_scaling");
    if (json_is_object(scaling) && json_object_size(scaling) > 0) *full = scaling;
    if (!json_is_object(*full)) *full = NULL;
    if (!json_is_object(*window)) *window = NULL;
    return ERR_NONE;
}

/* If a file has both styles, rope_parameters is read for the scaling only if rope_scaling is
 * empty. */
static err find_one(const json_t **out, const struct model_config *c)
{
    const json_t *rope = json_object_get(c->root, "rope_scaling");
    if (!json_is_object(rope) || json_object_size(rope) == 0)
        rope = json_object_get(c->root, "rope_parameters");
    *out = is_set(rope) ? rope : NULL;
    if (*out == NULL) return ERR_NONE;
    if (!json_is_object(rope))
        return err_make(ERR_INPUT, "%s: rope_parameters: expected an object", c->where);
    if (json_is_object(json_object_get(rope, "full_attention")) ||
        json_is_object(json_object_get(rope, "sliding_attention")))
        return err_make(ERR_INPUT, "%s: rope_parameters differ by layer: expected one for all",
                        c->where);
    return ERR_NONE;
}

err config_read_rope(struct model *m, const struct model_config *c)
{
    struct arch *a = &m->arch;
    const struct family_defaults *d = &a->family->by_default;
    const json_t *full = NULL, *window = NULL;
    if (d->window_theta > 0)
        TRY(find_pair(&full, &window, c));
    else
        TRY(find_one(&full, c));
    if (a->head_dim == 0 || a->head_dim > LIMIT_DIMENSION)
        return ERR_NONE; /* model_check_arch() refuses it */
    TRY(read_rotated(a, c, full));
    struct source s = {.c = c,
                       .rope = full,
                       .arena = &m->arena,
                       .rotated = model_rotated(a),
                       .max_positions = a->max_positions,
                       .original = d->original_positions};
    a->rope.theta = d->theta > 0 ? d->theta : 10000;
    TRY(json_opt_num(&a->rope.theta, c->root, "rope_theta", c->where));
    TRY(read_kind(&a->rope, &s));
    a->window_rope = a->rope;
    if (d->window_theta == 0) return ERR_NONE;
    a->window_rope = (struct rope){.theta = d->window_theta};
    TRY(json_opt_num(&a->window_rope.theta, c->root, "rope_local_base_freq", c->where));
    s.rope = window;
    return read_kind(&a->window_rope, &s);
}
