/* Messages between the ranks of a simulation (sim/farm.h). All ranks run the same program on the
 * same kind of machine, which FARM_OPEN checks, so a message holds structs as they lie in memory,
 * each followed by what its pointers point to. A message is an enum farm_kind and then:
 *
 *     OPEN    struct farm_hello, path of the base         reply: err
 *     FILE    path on rank 0, contents of a state         kept until FARM_FILES later ones
 *     TRAIN   uint64_t count, orders (farm_put_order)     reply for each: struct farm_done, update
 *     CLOSE   the simulation has ended
 *     END     the process ends */
#ifndef SIM_FARM_WIRE_H
#define SIM_FARM_WIRE_H

#include "base/bytes.h"
#include "sim/pool.h"

enum farm_kind { FARM_OPEN, FARM_FILE, FARM_TRAIN, FARM_CLOSE, FARM_END };
enum { FARM_FILES = 8 };
#define FARM_MESSAGE_MAX ((size_t)1 << 40)

struct farm_hello {
    char version[32];
    uint64_t sizes[4]; /* of the structs below that are sent */
    struct digest base;
    struct pool_options pool; /* without `device` */
    char device[64];
};
struct farm_done {
    err error;
    struct train_result result;
    struct digest digest;
    uint64_t size; /* of the update, which follows */
};
struct farm_order { /* a task of rank 0, with what it points to */
    struct pool_task task;
    struct training_options training;
    struct dataset data;
};
struct farm_reader {
    const uint8_t *data;
    size_t size, at;
};

/* The receiving functions give ERR_INPUT for a message that is too short. */
err farm_take(void *out, struct farm_reader *r, size_t bytes);
err farm_put_text(struct bytes *b, const char *text); /* NULL stays NULL */
err farm_take_text(const char **out, struct farm_reader *r, struct arena *arena);
err farm_put_order(struct bytes *b, const struct pool_task *t);
/* Its texts and rows lie in the arena; `task` points into *out. */
err farm_take_order(struct farm_order *out, struct farm_reader *in, struct arena *arena);

#endif
