/* Settings of config.json that differ by layer: config_read_layers() of model_config.h. */
#include "engine/model/model_config.h"

#include <string.h>

/* no_rope_layers has a 1 for each layer that rotates. SmolLM3 leaves it out or states it; the list
 * may be longer than the model. */
static err read_unrotated(struct model *m, const struct model_config *c)
{
    const json_t *list = json_object_get(c->root, "no_rope_layers");
    uint32_t every = 4;
    if (!m->arch.family->unrotated) return ERR_NONE;
    TRY(config_opt_u32(&every, c, "no_rope_layer_interval"));
    bool stated = list != NULL && !json_is_null(list);
    if (!stated && every == 0)
        return err_make(ERR_INPUT, "%s: no_rope_layer_interval is 0, expected 1 or more", c->where);
    if (stated && json_array_size(list) < m->arch.layers)
        return err_make(ERR_INPUT, "%s: no_rope_layers: expected a list of %u", c->where,
                        m->arch.layers);
    for (uint32_t i = 0; i < m->arch.layers; i++) {
        const json_t *rotates = stated ? json_array_get(list, i) : NULL;
        if (stated && !json_is_integer(rotates) && !json_is_boolean(rotates))
            return err_make(ERR_INPUT, "%s: no_rope_layers: expected numbers", c->where);
        m->layer[i].unrotated = stated ? !json_is_true(rotates) && json_integer_value(rotates) == 0
                                       : (i + 1) % every == 0;
    }
    return ERR_NONE;
}

/* The layers with a window when there are no layer_types. */
static err windows_by_default(struct model *m, const struct model_config *c)
{
    const struct family *f = m->arch.family;
    uint32_t first = 0, every = f->by_default.window_every;
    if (f->window == FAMILY_WINDOW_SWITCHED) {
        first = 28; /* in transformers' classes */
        TRY(config_opt_u32(&first, c, "max_window_layers"));
    }
    if (f->window == FAMILY_WINDOW_PATTERN) {
        TRY(config_opt_u32(&every, c, "sliding_window_pattern"));
        if (every == 0)
            return err_make(ERR_INPUT, "%s: sliding_window_pattern is 0, expected 1 or more",
                            c->where);
    }
    for (uint32_t i = first; i < m->arch.layers; i++) {
        bool full = f->window == FAMILY_WINDOW_PATTERN     ? (i + 1) % every == 0
                    : f->window == FAMILY_WINDOW_UNROTATED ? !m->layer[i].unrotated
                                                           : false;
        m->layer[i].window = full ? 0 : m->arch.window;
    }
    return ERR_NONE;
}

/* The width of the windows, 0 if they are off. */
static err read_width(struct arch *a, const struct model_config *c)
{
    const struct family *f = a->family;
    bool switched = f->window == FAMILY_WINDOW_SWITCHED || f->window == FAMILY_WINDOW_UNROTATED;
    bool used = !switched;
    if (switched) TRY(json_opt_bool(&used, c->root, "use_sliding_window", c->where));
    if (!used) return ERR_NONE;
    const json_t *given = json_object_get(c->root, "sliding_window");
    a->window = given != NULL && json_is_null(given) ? 0 : f->by_default.window;
    return config_opt_u32(&a->window, c, "sliding_window");
}

/* layer_types names the layers with a window one by one. An entry other than full_attention and
 * sliding_attention would be another kind of attention, so it is refused. */
err config_read_layers(struct model *m, const struct model_config *c)
{
    struct arch *a = &m->arch;
    TRY(read_unrotated(m, c));
    if (a->family->window == FAMILY_WINDOW_NEVER) return ERR_NONE;
    TRY(read_width(a, c));
    const json_t *types = json_object_get(c->root, "layer_types");
    bool always = a->family->window == FAMILY_WINDOW_ALWAYS;
    if (types == NULL || json_is_null(types) || always) return windows_by_default(m, c);
    if (json_array_size(types) != a->layers)
        return err_make(ERR_INPUT, "%s: layer_types: expected a list of %u", c->where, a->layers);
    for (uint32_t i = 0; i < a->layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool sliding = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (type == NULL || strcmp(type, "full_attention") != 0))
            return config_refuse(c, "layer_types", type ? type : "?",
                                 "full_attention or sliding_attention");
        if (sliding && a->window == 0)
            return err_make(ERR_INPUT,
                            "%s: layer_types has sliding_attention, but sliding_window is off",
                            c->where);
        m->layer[i].window = sliding ? a->window : 0;
    }
    return ERR_NONE;
}
