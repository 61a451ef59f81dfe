/* The setup of a simulation's folder: what decides its results, so that a folder is continued only
 * with the same members, data and run. */
#ifndef SIM_FOLDER_H
#define SIM_FOLDER_H

#include "sim/simulate.h"

/* Writes `setup` (a digest), split.txt and settings.json into a new folder o->dir. ERR_INPUT: the
 * folder holds another simulation, whose run would be continued with other members. */
err folder_check(const struct fleet *f, const struct simulate_options *o);
/* ERR_INPUT: the folder of a sweep holds a single simulation. */
err folder_check_none(const char *dir);
/* Removes a folder and all that is in it; none is no error. */
err folder_remove(const char *dir);
/* Removes the files of a simulation, and nothing else, from its folder. */
err folder_clear(const char *dir);

#endif
