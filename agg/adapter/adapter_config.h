/* PEFT's adapter_config.json: what fixes each module's rank and scale, which tensors beside A and B
 * are saved whole (modules_to_save, trained biases), and refusal by name of all that changes the
 * function in ways those do not tell (DoRA, other adapter types, bases changed by the
 * initialisation). Which modules and layers were targeted (target_modules, exclude_modules,
 * layers_to_transform, layers_pattern) shows in the tensors.
 *
 * A pattern {"key": value, ...} follows PEFT: the first key, in the file's order, for which the
 * regular expression (.*\.)?(key)$ matches the whole module name. Keys of plain names ('.' matching
 * any character, as there) are matched here; other expressions go to POSIX regcomp and only where
 * the file is trusted not to be hostile (`expressions`). */
#ifndef AGG_ADAPTER_CONFIG_H
#define AGG_ADAPTER_CONFIG_H

#include "agg/adapter/adapter_file.h"
#include "base/json.h"

#include <regex.h>

struct adapter_config_key {
    const char *text;
    double value;
    bool expression;
    regex_t compiled; /* with `expression` */
};
struct adapter_config_pattern {
    size_t count;
    struct adapter_config_key *key;
};

struct adapter_config {
    uint32_t r;
    double alpha;
    bool rslora, fan_in_fan_out;
    struct adapter_config_pattern rank, alphas;
    const char *alpha_text;     /* the alpha pattern as canonical JSON */
    const char *target_modules; /* as JSON */
    const char *base_path;      /* base_model_name_or_path, or "" */
    const char *task_type;      /* or "" */
    const char *bias;           /* none, lora_only or all */
    const char *save_text;      /* modules_to_save as JSON, or "" */
    size_t save_count;
    const char **save; /* (save_count) the ends of those modules' names */
    struct arena arena;
};

err adapter_config_open(struct adapter_config *out, const char *path);
void adapter_config_close(struct adapter_config *config);

/* Reads a pattern; values positive. `where` names it in errors. Close it whatever happened. */
err adapter_config_pattern_read(struct adapter_config_pattern *out, const json_t *object,
                                bool expressions, const char *where, struct arena *arena);
void adapter_config_pattern_close(struct adapter_config_pattern *pattern);
/* The value for a module, or `otherwise`. */
double adapter_config_pattern_find(const struct adapter_config_pattern *pattern, const char *module,
                                   double otherwise);

/* The configuration of a PEFT directory with these modules (name, rank, alpha). */
err adapter_config_write(struct bytes *out, const struct adapter_file_meta *meta,
                         const struct adapter_file_module *module, size_t count);

#endif
