/* PEFT's adapter_config.json. It fixes the rank and scale of each module, and the tensors that are
 * saved whole in addition to A and B (modules_to_save, trained biases). A setting that makes the
 * adapter another function is refused by name: other adapter types, bases that the initialisation
 * changed. The targets (target_modules, exclude_modules,
 * layers_to_transform, layers_pattern) are not read, because the tensors show them.
 *
 * A pattern {"key": value, ...} follows PEFT: the first key, in the file's order, for which the
 * regular expression (.*\.)?(key)$ matches the whole module name. Keys of plain names ('.' matches
 * any character, as in PEFT) are matched here. Other expressions go to PCRE2, which bounds their
 * length, nesting and steps, and only if the caller asks for it (`expressions`). */
#ifndef AGG_ADAPTER_CONFIG_H
#define AGG_ADAPTER_CONFIG_H

#include "agg/adapter/adapter_file.h"
#include "base/json.h"

struct adapter_config_key {
    const char *text;
    double value;
    struct pcre2_real_code_8 *expression; /* NULL: a plain name */
};
struct adapter_config_pattern {
    size_t count;
    struct adapter_config_key *key;
};

struct adapter_config {
    uint32_t r;
    double alpha;
    bool rslora, fan_in_fan_out, dora;
    struct adapter_config_pattern rank, alphas;
    const char *alpha_text;     /* the alpha pattern as canonical JSON */
    const char *target_modules; /* as JSON */
    const char *base_path;      /* base_model_name_or_path, or "" */
    const char *task_type;      /* or "" */
    const char *bias;           /* none, lora_only or all */
    const char *save_text;      /* modules_to_save as JSON, or "" */
    size_t save_count;
    const char **save; /* (save_count) ends of the names of modules_to_save */
    struct arena arena;
};

err adapter_config_open(struct adapter_config *out, const char *path);
void adapter_config_close(struct adapter_config *config);

/* Reads a pattern of positive values. `where` names it in errors. Close it also after an error. */
err adapter_config_pattern_read(struct adapter_config_pattern *out, const json_t *object,
                                bool expressions, const char *where, struct arena *arena);
void adapter_config_pattern_close(struct adapter_config_pattern *pattern);
/* The value for a module, or `otherwise`. ERR_INPUT: an expression takes too many steps. */
err adapter_config_pattern_find(double *out, const struct adapter_config_pattern *pattern,
                                const char *module, double otherwise);

/* The configuration of a PEFT directory with these modules (name, rank, alpha). */
err adapter_config_write(struct bytes *out, const struct adapter_file_meta *meta,
                         const struct adapter_file_module *module, size_t count);

#endif
