/* Deals the rows of a data set to simulated members. Pure: the same arguments give the same parts.
 *
 *     iid         rows in random order, one part after the other
 *     field       one member for each value of a field
 *     dirichlet   the rows of each label are dealt in proportions drawn from a symmetric Dirichlet
 *                 distribution over the members; the smaller alpha, the fewer members share a label
 *                 (Hsu, Qi, Brown 2019)
 *     shards      rows sorted by label, cut into members * shards pieces of equal size, and each
 *                 member gets `shards` of them at random (McMahan et al. 2017)
 *
 * With size_sigma > 0 the expected numbers of rows are in proportion to log-normal draws; only
 * shards have equal sizes always. Every member gets at least one row. */
#ifndef SIM_DEAL_H
#define SIM_DEAL_H

#include "base/bytes.h"
#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum deal_kind { DEAL_IID, DEAL_FIELD, DEAL_DIRICHLET, DEAL_SHARDS };
extern const char *const deal_kinds[]; /* names in the order of the enum, then NULL */

struct deal_options {
    enum deal_kind kind;
    size_t members; /* with DEAL_FIELD: the number of labels */
    double alpha;   /* of DEAL_DIRICHLET */
    size_t shards;  /* of DEAL_SHARDS, for each member */
    double size_sigma;
    uint64_t seed;
};
struct deal_rows {
    size_t rows, labels;
    const uint32_t *label; /* (rows) below `labels`; not read by DEAL_IID */
};
struct deal {
    size_t members;
    size_t *first; /* (members + 1) member i has the rows row[first[i]] .. row[first[i + 1] - 1] */
    uint32_t *row; /* (rows) ascending for each member */
};
/* ERR_INPUT: fewer rows than members or shards. */
err deal_make(struct deal *out, const struct deal_options *o, const struct deal_rows *rows);
void deal_close(struct deal *s);
/* A table of the parts: for up to `most` members their rows and the shares of their most frequent
 * labels, drawn as a bar of one letter for each 2.5 %; then how unequal the parts are. */
err deal_print(struct bytes *out, const struct deal *s, const struct deal_rows *rows,
               const char *const *label_name, const char *const *member, size_t most);

#endif
