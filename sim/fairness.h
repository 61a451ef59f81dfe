/* How well a state serves each member: its loss and accuracy on the rows that the member has held
 * out, and how unequal they are. */
#ifndef SIM_FAIRNESS_H
#define SIM_FAIRNESS_H

#include "base/arena.h"
#include "sim/federation.h"

struct fairness_member {
    const char *id;
    uint64_t rows;         /* held out */
    double loss, accuracy; /* accuracy < 0: no row has a completion */
};
/* Over the members, each counting once. */
struct fairness_spread {
    double mean, sd;
    double worst; /* the mean of the worst tenth, at least one member */
    size_t members;
};

/* Measures the newest state on all members and writes members.csv. */
err fairness_measure(const char *dir, struct pool *pool, const struct federation *f);
bool fairness_measured(const char *dir);
/* An old measurement is not about a newer state. */
void fairness_forget(const char *dir);
/* members.csv, in the arena; none without the file. */
err fairness_read(struct fairness_member **out, size_t *count, const char *dir,
                  struct arena *arena);
/* Sorts the members so that the worst come first. members 0: no value is known. */
void fairness_loss(struct fairness_spread *out, struct fairness_member *member, size_t count);
void fairness_accuracy(struct fairness_spread *out, struct fairness_member *member, size_t count);

#endif
