/* The report about a data file that is printed before it is used: one line with its numbers, and a
 * warning for each kind of row that does not do what its author expects, with the first line of
 * the kind and what helps. */
#ifndef CLIENT_DATA_REPORT_H
#define CLIENT_DATA_REPORT_H

#include "base/err.h"
#include "engine/tokens/data.h"

#include <jansson.h>

struct data_report {
    const struct dataset *data;
    const char *path;
    uint32_t seq;       /* rows were cut to this number of tokens; 0: to LIMIT_SEQUENCE */
    const char *run;    /* the run whose options decide how rows are read; NULL: the command line */
    bool without_lines; /* a sum over several files: `path` names them all */
};
/* On standard error. */
void data_report_print(const struct data_report *report);
/* The numbers as an object; lines are 0 for kinds without a row. NULL: no memory. */
json_t *data_report_json(const struct dataset *data);
/* ERR_INPUT with the file, its first such line and what helps, if no row has a token to learn. */
err data_report_check(const struct data_report *report);
/* Adds the numbers of `data` to *sum, a zeroed struct at first. Lines and rows stay zero. */
void data_report_add(struct dataset *sum, const struct dataset *data);

#endif
