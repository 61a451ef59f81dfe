/* A small chart of losses as SVG inside a page, with the same in words. Pure. */
#ifndef COORDINATOR_SPARK_H
#define COORDINATOR_SPARK_H

#include "base/bytes.h"

struct spark {
    const double *train, *eval; /* (count) oldest first; NaN: not known */
    size_t count;
};
/* Both lines have one scale. Nothing is written if no value is finite. */
err spark_write(struct bytes *out, const struct spark *spark);

#endif
