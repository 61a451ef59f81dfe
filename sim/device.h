/* The machines of simulated members: how long a task takes on them in virtual time, and whether it
 * ends at all. Times follow from (seed, member, round) and never from measurements, so a simulation
 * has the same order of events on every machine.
 *
 *     download / down  +  tokens / speed  +  upload / up, each in seconds,
 *     all of it times exp(jitter * standard normal)
 *
 * The classes are assumptions of the user, and reports print them beside every virtual time. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include "base/err.h"
#include "base/limits.h"
#include "base/option.h"

enum { DEVICE_CLASSES = 16 };

struct device_class {
    char name[32];
    double share;    /* of the members, in (0, 1] */
    double speed;    /* tokens a second that it trains */
    double up, down; /* bits a second; 0: transfers take no time */
    double drop;     /* probability that a task is never finished */
    uint32_t rank;   /* LoRA rank that it offers; 0: the run's */
};
struct devices {
    struct device_class class[DEVICE_CLASSES];
    size_t classes;
    double jitter;
    uint64_t seed;
};

/* Classes as "NAME:share=30%:speed=200:up=20Mbit:down=50Mbit:rank=16:drop=10%"; without any, one
 * class of 1,000 tokens a second. ERR_INPUT names the class and the part; shares must sum to 1. */
err devices_parse(struct devices *out, const struct option_list *classes);
/* class[i] of each member: exact shares (rounded to whole members) in random order. */
void devices_deal(uint32_t *class, const struct devices *d, size_t members);

struct device_work {
    const char *member;
    uint32_t round;
    uint64_t tokens, down_bytes, up_bytes;
};
/* The duration of a task in milliseconds, at least 1. *drops: it ends without a result. */
uint64_t device_ms(bool *drops, const struct devices *d, uint32_t class,
                   const struct device_work *work);

#endif
