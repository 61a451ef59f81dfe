#include "coordinator/run/run_shapes.h"

#include <string.h>

/* Modules that a file is about: their number, the bytes of their names, and the sums of their
 * sides. */
struct sum {
    size_t count, name_bytes;
    uint64_t in, out;
};

static bool adapts(const struct run_member *m, const char *module)
{
    size_t low = 0, high = m->adapts_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(m->adapts[middle], module);
        if (order == 0) return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static struct sum sum_of(const struct run *run, const struct run_member *m)
{
    struct sum sum = {0};
    for (size_t i = 0; i < run->modules->n_modules; i++) {
        const Fedlora__V1__ModuleShape *shape = run->modules->modules[i];
        if (!adapts(m, shape->name)) continue;
        sum.count++;
        sum.name_bytes += strlen(shape->name);
        sum.in += shape->d_in;
        sum.out += shape->d_out;
    }
    return sum;
}

/* A late update was trained in an earlier round, which may have asked for other factors. The rank
 * of factors is that of the state, which is at most the run's, except where members have their own
 * (method_check.c). Cannot overflow: a sum of sides is below 2^32, and a rank below 2^13. */
void run_update_sizes(struct run_sizes *out, const struct run *run, size_t member, uint32_t round)
{
    const struct run_member *m = &run->member[member];
    struct method_task trained, now;
    *out = (struct run_sizes){0};
    if (!run->modules) return;
    struct sum sum = sum_of(run, m);
    method_task(&now, run->method, &run->options, round_under_way(&run->round));
    method_task(&trained, run->method, &run->options, round ? round : 1);
    unsigned factors = now.trains | trained.trains;
    bool own = run->method->mixed_ranks && !(factors & METHOD_R) && !now.gradient;
    uint64_t rank = own || m->rank > run->rank_max ? m->rank : run->rank_max, values = 0;
    if (factors & METHOD_A) values += rank * sum.in;
    if (factors & METHOD_B) values += rank * sum.out;
    if (factors & METHOD_R) values += rank * rank * sum.count;
    out->header = adapter_file_header_most(sum.count, sum.name_bytes);
    out->file = sizeof(uint64_t) + out->header + sizeof(float) * values;
}
