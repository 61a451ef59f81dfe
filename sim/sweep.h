/* The plan of a sweep: the product of the lists in the section [sweep] of a configuration file, one
 * simulation for each combination, and sections that hold for some of them:
 *
 *     [sweep]
 *     run.method = flora, fedit, fed-sb      values between commas,
 *     run.targets = q,v | q,k,v,o            or between bars where the values have commas
 *     run.seed = 1, 2, 3
 *     [when run.method=fed-sb]               several conditions stand between spaces
 *     train.lr = 48e-3
 *
 * The last list varies fastest. Keys and values are checked later, with the options of each cell.
 * Pure but for the reading of the file. */
#ifndef SIM_SWEEP_H
#define SIM_SWEEP_H

#include "base/arena.h"
#include "base/limits.h"
#include "base/option.h"

enum { SWEEP_AXES = 16, SWEEP_CELLS = 4096, SWEEP_WHENS = 64 };
#define SWEEP_SEED "run.seed" /* cells that differ only in it are repetitions of one setting */

struct sweep_axis {
    const char *key, *flag; /* flag: the short name in names and tables, "seed" for run.seed */
    const char **value;
    size_t values;
};
struct sweep_when {
    const char *section;
    struct option_list condition, assignment; /* "section.key=value" */
};
struct sweep {
    struct sweep_axis axis[SWEEP_AXES]; /* none: a single simulation */
    size_t axes, cells;
    struct sweep_when when[SWEEP_WHENS];
    size_t whens;
};
struct sweep_cell {
    char name[LIMIT_NAME_BYTES]; /* of its folder; unique in the sweep */
    const char *label;           /* "method=flora alpha=0.05 seed=1" */
    const char *group;           /* the same without the seed */
    const char *seed;            /* "" without a list of seeds */
    struct option_list values;   /* "run.method=flora", ... */
};

/* path: the configuration file; NULL: none. ERR_INPUT names the file, the line and what was
 * expected. */
err sweep_read(struct sweep *out, const char *path, struct arena *arena);
/* The values of one key, as in the section, in place of the file's. */
err sweep_set(struct sweep *s, const char *key, const char *values, struct arena *arena);
bool sweep_has(const struct sweep *s, const char *key);
/* All cells, in the arena. */
err sweep_cells(struct sweep_cell **out, const struct sweep *s, struct arena *arena);

#endif
