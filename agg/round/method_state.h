/* A state being made, module by module, from any thread. Factors go to a scratch file beside the
 * state as they are computed, so that memory holds one module a thread; the state itself is then
 * written in order. */
#ifndef AGG_METHOD_STATE_H
#define AGG_METHOD_STATE_H

#include "agg/round/method_round.h"
#include "base/file.h"
#include "base/json.h"

struct method_state {
    struct file_out scratch;
    struct file_map map;
    struct adapter_file_module *module; /* (count); `f32` is set when all are there */
    uint64_t (*offset)[ADAPTER_FILE_ROLES];
    double *dropped;
    size_t count;
    struct arena arena;
};

err method_state_open(struct method_state *out, const char *path, size_t count);
/* Thread-safe for different i. */
err method_state_put(struct method_state *s, size_t i, const char *name,
                     const struct method_result *result);
/* After the last put: the modules' `f32` point into the map of the scratch file until close. */
err method_state_map(struct method_state *s);
/* Writes the state to the path and reads its header back. */
err method_state_commit(struct method_state *s, const char *path,
                        const struct adapter_file_meta *meta);
void method_state_close(struct method_state *s);

/* The metadata text of fedlora.modules, and of fedlora.dropped (empty when all are zero). */
err method_state_modules(const char **out, const struct method_module *module, size_t count,
                         struct arena *arena);
/* Parses fedlora.dropped, a number for each module; *map is NULL where nothing was dropped. */
err method_state_dropped_parse(json_t **map, const struct adapter_file *state);

#endif
