/* Results of simulations and sweeps from the files of their folders: the rounds and the end of each
 * simulation, and means over the repetitions of a setting.
 *
 * A sweep's folder has sweep.json, which lists the cells, and cells/NAME for each cell that was
 * begun; a single simulation's folder has the files of sim/simulate.h. A cell has finished when
 * it has result.json. error.txt says why its last attempt failed. */
#ifndef SIM_OUTCOME_H
#define SIM_OUTCOME_H

#include "sim/reference.h"
#include "sim/simulate.h"
#include "sim/sweep.h"

enum outcome_status {
    OUTCOME_MISSING, /* not begun, or not at its end */
    OUTCOME_DONE,
    OUTCOME_STOPPED, /* before its last round, by its own rule */
    OUTCOME_FAILED,
    OUTCOME_STATUSES,
};
extern const char *const outcome_statuses[OUTCOME_STATUSES];

struct outcome {
    const char *dir;     /* its folder */
    const char *label;   /* its settings: "method=flora seed=1" */
    const char *seed;    /* "": not a repetition */
    const char *machine; /* processor and libraries; "": not finished */
    const char *repeat;  /* the command that makes it again; "" for a simulation without run.ini */
    const char **value;  /* (outcomes.keys) */
    size_t group;        /* cells of one group differ only in the seed */
    enum outcome_status status;
    double members_loss, worst_loss; /* on the members' held-out rows; NaN: none */
    const char *note;                /* why it failed or stopped; "" */
    struct simulate_round *round;
    size_t rounds;
    double *spectrum; /* (spectrum_values) struct spectrum's of the newest state */
    size_t spectrum_values;
    struct reference_values reference; /* of the cells that have made them */
};
struct outcomes {
    struct outcome *one;
    size_t count;
    const char **group; /* (groups) */
    size_t groups;
    const char *command; /* that runs the sweep again; "" for single simulations */
    const char **key;    /* (keys) of the sweep's lists; none for several folders */
    size_t keys;
    struct arena arena;
};
/* ERR_INPUT: a folder holds neither. */
err outcomes_open(struct outcomes *out, const char *const *dir, size_t dirs);
void outcomes_close(struct outcomes *o); /* accepts a zeroed struct */

bool outcome_finished(const struct outcome *o); /* done, or stopped by its own rule */

/* A figure at the end of a simulation; NaN: not known. */
enum outcome_figure {
    OUTCOME_LOSS,
    OUTCOME_ACCURACY, /* in percent */
    OUTCOME_TRAIN_LOSS,
    OUTCOME_ERROR, /* of the last round, in percent */
    OUTCOME_UP,    /* bytes */
    OUTCOME_DOWN,
    OUTCOME_VIRTUAL,      /* milliseconds */
    OUTCOME_MEMBERS_LOSS, /* mean over the members of the loss on their held-out rows */
    OUTCOME_WORST_LOSS,   /* and of the worst tenth */
    OUTCOME_EPSILON,      /* privacy spent */
    OUTCOME_FIGURES,
};
double outcome_figure(const struct outcome *o, enum outcome_figure figure);
/* The mean and the standard deviation (n - 1) of the known values; sd NaN: fewer than two. */
struct outcome_mean {
    double mean, sd;
    size_t count;
};
struct outcome_mean outcome_mean(const double *value, size_t count);
/* Over the finished cells of a group. */
struct outcome_mean outcomes_mean(const struct outcomes *o, size_t group,
                                  enum outcome_figure figure);
/* Over all cells that have made it. The accuracy is in percent. */
struct outcome_mean outcomes_reference(const struct outcomes *o, enum reference_kind kind,
                                       bool accuracy);
/* shown[f]: any finished cell, or a reference line, has the figure. Tables leave out the others. */
void outcomes_columns(bool shown[OUTCOME_FIGURES], const struct outcomes *o);
const char *outcome_heading(enum outcome_figure figure); /* "test loss" */
/* "4.2113 +- 0.0210" with the sign that is given, "1.6 MB", "1m12s", or "" if nothing is known. */
enum { OUTCOME_TEXT_BYTES = 64 };
void outcome_text(char out[OUTCOME_TEXT_BYTES], const struct outcome_mean *m,
                  enum outcome_figure figure, const char *plus_minus);
size_t outcomes_with(const struct outcomes *o, enum outcome_status status);

/* A row for each cell: settings, figures of the end, status. */
err outcomes_csv(struct bytes *out, const struct outcomes *o);
/* sweep.json */
struct outcome_plan {
    const char *run, *file;
    const struct sweep *sweep;
    const struct sweep_cell *cell;
    struct digest digest; /* of all settings */
};
err outcome_plan_json(struct bytes *out, const struct outcome_plan *plan);

#endif
