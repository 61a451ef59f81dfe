/* The runs of tests/e2e/methods.c: every method by itself, and some with special options; for three
 * members of a tiny base. */
#ifndef TESTS_METHOD_RUNS_H
#define TESTS_METHOD_RUNS_H

#include "agg/round/method_options.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBERS = 3, OPTIONS_MAX = 3, RUN_SEED = 11, RUN_STEPS = 12, RUN_BATCH = 4, RUN_SEQ = 32 };
#define RUN_LR 1e-2
static const uint32_t run_ranks[MEMBERS] = {2, 4, 8}; /* of mixed runs */

struct variant {
    const char *run, *method;
    const char *option[OPTIONS_MAX];
    uint32_t rounds;
    bool mixed;          /* ranks 2, 4 and 8; else 4 for everyone */
    bool killed;         /* also with fedlorad killed, expecting the same bytes */
    const char *targets; /* of the second member; NULL: all */
    bool keep_optimizer;
};

/* Beside one run of every method in the registry with its default options. */
/* clang-format off */
static const struct variant special[] = {
    {"flora-part", "flora", {"server=fedavgm"}, 3, true, false, "v", false},
    {"fed-sb-part", "fed-sb", {"prox=0.1"}, 2, true, false, "q", false},
    {"fed-sb-gradient", "fed-sb", {"basis=gradient"}, 4, true, true, NULL, false},
    {"fedit-adam", "fedit", {"server=fedadam", "server_lr=0.05"}, 3, false, true, NULL, false},
    {"fedit-part", "fedit", {"robust=norm"}, 2, false, false, "v", false},
    {"hetlora-prunes", "hetlora", {"prune_gamma=0.75", "prune_lambda=0.5"}, 3, true, true, NULL,
     false},
    {"ffa-gradient", "ffa", {"basis=gradient"}, 4, true, false, "q", false},
    {"flexlora-carry", "flexlora", {"tail=carry"}, 2, true, false, "q", false},
    {"florist-energy", "florist", {"energy=0.95"}, 2, true, false, NULL, false},
    {"flora-kept", "flora", {NULL}, 3, true, false, NULL, true},
};
/* clang-format on */
enum { SPECIAL = sizeof special / sizeof *special, VARIANTS_MAX = 64, PLAIN_ROUNDS = 3 };

static struct variant variants[VARIANTS_MAX];
static size_t variant_count;

/* Under the sanitizers only special runs are repeated with kills: tests/fault/ kills there too. */
#ifdef __SANITIZE_ADDRESS__
#define KILLED false
#else
#define KILLED true
#endif

/* Every method by itself, also killed, then the special ones. */
static void list_variants(void)
{
    for (const char *const *name = method_names(); *name; name++) {
        cr_assert_lt(variant_count, VARIANTS_MAX - SPECIAL);
        variants[variant_count++] = (struct variant){.run = *name,
                                                     .method = *name,
                                                     .rounds = PLAIN_ROUNDS,
                                                     .mixed = method_find(*name)->mixed_ranks,
                                                     .killed = KILLED};
    }
    memcpy(variants + variant_count, special, sizeof special);
    variant_count += SPECIAL;
}

static inline uint32_t run_rank(const struct variant *v)
{
    return v->mixed ? 8 : 4;
}

/* The configuration file of `fedlora simulate` for the same run. The folder has the members' rows
 * and the base. */
static inline void write_simulation(const char *path, const struct variant *v, const char *dir)
{
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fprintf(f, "[data]\ntrain = %s\n[run]\nbase = %s/base\nmethod = %s\nrounds = %u\nrank = %u\n",
            dir, dir, v->method, v->rounds, run_rank(v));
    fprintf(f, "targets = q,v,down\nmembers = ");
    for (int i = 0; i < MEMBERS; i++) {
        fprintf(f, "%sm%d", i ? "," : "", i);
        if (v->mixed) fprintf(f, ":rank=%u", run_ranks[i]);
        if (i == 1 && v->targets) fprintf(f, ":targets=%s", v->targets);
    }
    fprintf(f, "\n");
    for (int i = 0; i < OPTIONS_MAX && v->option[i]; i++)
        fprintf(f, "option = %s\n", v->option[i]);
    fprintf(f, "[train]\nsteps = %d\nbatch = %d\nseq = %d\nlr = %g\nschedule = constant\n",
            RUN_STEPS, RUN_BATCH, RUN_SEQ, RUN_LR);
    if (v->keep_optimizer) fprintf(f, "keep_optimizer = yes\n");
    fclose(f);
}

#endif
