/* The machines of simulated members: how long a task takes on them in virtual time, and whether it
 * ends at all. Times follow from (seed, member, round) and never from measurements, so a simulation
 * has the same order of events on every machine.
 *
 *     download / down  +  tokens / speed  +  upload / up, each in seconds,
 *     all of it times exp(jitter * standard normal)
 *
 * This is the time that the device must be on. A class may be on for a share of each period, from a
 * time that follows from the member; a task that it interrupts is continued later. A trace gives
 * members their own speeds and times.
 *
 * The classes are assumptions of the user, and reports print them beside every virtual time. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"
#include "base/option.h"
#include "sim/online.h"

enum { DEVICE_CLASSES = 16 };

struct device_class {
    char name[32];
    double share;          /* of the members, in (0, 1] */
    double speed;          /* tokens a second that it trains */
    double up, down;       /* bits a second; 0: transfers take no time */
    double drop;           /* probability that a task is never finished */
    uint32_t rank;         /* LoRA rank that it offers; 0: the run's */
    double watts;          /* power while it works on a task */
    uint64_t memory;       /* bytes; 0: not limited. Decides only who can take part */
    struct online_span on; /* on from 0 to this part of each period; to 0: always on */
    uint64_t period_ms;
};
/* One line of the file: a time at which a member is on, and its speeds then. */
struct device_trace {
    const char *member;
    double speed, up, down; /* negative: those of its class */
};
struct devices {
    struct device_class class[DEVICE_CLASSES];
    size_t classes;
    double jitter;
    uint64_t seed;
    const struct device_trace *trace; /* (traces) by member, then by time; or NULL */
    const struct online_span *span;   /* (traces) to 0: the member is always on */
    size_t traces;
    uint64_t trace_ms; /* the trace repeats after this time: the end of its last span */
};

/* Classes as
 *
 *     NAME:share=30%:speed=200:up=20Mbit:down=50Mbit:rank=16:drop=10%:online=40%/8h:watts=30
 *     :memory=4GB
 *
 * (online is the share of each period that it is on); without any, one class of 1,000 tokens a
 * second. ERR_INPUT names the class and the part; shares must sum to 1. */
err devices_parse(struct devices *out, const struct option_list *classes);
bool devices_state_memory(const struct devices *d); /* some class has a stated memory */
/* Reads a trace, a CSV file with the columns member, tokens_per_s, up, down, on_from, on_to; empty
 * speeds are those of the member's class, and without times a member is always on. A member may
 * have several lines. ERR_INPUT names the line. */
err devices_trace(struct devices *out, const char *path, struct arena *arena);
/* class[i] of each member: exact shares (rounded to whole members) in random order. */
void devices_deal(uint32_t *class, const struct devices *d, size_t members);

struct device_work {
    const char *member;
    uint32_t round;
    uint64_t tokens, down_bytes, up_bytes;
    uint64_t from_ms; /* when it is handed out */
};
/* The duration of a task in milliseconds, at least 1. *drops: it ends without a result. */
uint64_t device_ms(bool *drops, const struct devices *d, uint32_t class,
                   const struct device_work *work);
/* The first time from from_ms on at which the member's device is on. */
uint64_t device_start_ms(const struct devices *d, uint32_t class, const char *member,
                         uint64_t from_ms);
/* The energy of work that began and ended at these times, in joules. */
double device_joules(const struct devices *d, uint32_t class, const char *member,
                     const uint64_t between_ms[2]);
/* Adds what decides the results of a member's device. */
void device_digest(struct digest_stream *s, const struct devices *d, uint32_t class,
                   const char *member);
/* For device_trace.c: bits a second, as "20Mbit". */
err device_parse_bits(double *out, const char *text);

#endif
