/* Shared by the files that read config.json; not for other folders. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

#include "base/json.h"
#include "engine/model/model_build.h"

struct model_config {
    const json_t *root; /* of the language model */
    const char *where;  /* the file's path, for errors */
};

err config_refuse(const struct model_config *c, const char *key, const char *value,
                  const char *expected);
/* Absent or null leaves *out unchanged. */
err config_opt_u32(uint32_t *out, const struct model_config *c, const char *key);

/* arch.rope, window_rope and rotary_dim, in the style before transformers 5 (rope_theta,
 * rope_scaling and rope_local_base_freq) and since then (rope_parameters, also one for each type of
 * layer). Lists of factors are kept in m->arena. */
err config_read_rope(struct model *m, const struct model_config *c);
/* The windows and the unrotated layers; m->layer is allocated. */
err config_read_layers(struct model *m, const struct model_config *c);

#endif
