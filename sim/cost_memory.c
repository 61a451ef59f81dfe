#include "sim/cost_memory.h"

#include "base/text.h"
#include "coordinator/run/run_config.h"
#include "engine/engine_plan.h"

/* Clients with the same shapes need the same memory, so the last results are looked up. */
enum { ALIKE = 32 };
struct shape {
    uint32_t rank, positions;
    uint64_t values; /* that train */
};
struct sizing {
    const struct cost_memory *m;
    bool each_row;
    struct {
        struct shape shape;
        struct engine_plan_need need;
    } done[ALIKE];
    size_t count;
};

/* The frozen carry is a part of the adapter that has no gradient and no moments; it is counted with
 * the state. A kept optimizer is also held on the host. */
static err need_of(struct engine_plan_need *out, struct sizing *s, const struct shape *shape)
{
    static const uint32_t parts[SITES] = {3, 1, 2, 1};
    const struct cost_memory *m = s->m;
    for (size_t i = 0; i < s->count && i < ALIKE; i++)
        if (s->done[i].shape.rank == shape->rank && s->done[i].shape.values == shape->values &&
            s->done[i].shape.positions == shape->positions) {
            *out = s->done[i].need;
            return ERR_NONE;
        }
    struct engine_plan_work work = {.rows = (size_t)m->training->batch,
                                    .positions = shape->positions,
                                    .values = shape->values,
                                    .checkpoint = m->o->checkpoint,
                                    .each_row = s->each_row,
                                    .precision = m->o->precision};
    for (int i = 0; i < SITES; i++)
        work.site_width[i] = parts[i] * shape->rank;
    TRY(engine_plan_model(out, &m->o->fleet->model, &work));
    if (m->training->keep_optimizer) out->total += 8 * shape->values;
    size_t at = s->count++ % ALIKE;
    s->done[at].shape = *shape;
    s->done[at].need = *out;
    return ERR_NONE;
}

/* The values of the round of training in which the client trains most. */
static err shape_of(struct shape *out, const struct cost_memory *m, size_t member, uint32_t rounds)
{
    const struct fleet_member *f = &m->o->fleet->member[member];
    struct member_round *r = &m->round[member];
    uint32_t setup = method_setup_rounds(m->options);
    struct shape shape = {.rank = r->rank};
    for (size_t k = 0; k < f->data.count; k++)
        if (f->data.row[k].count > shape.positions) shape.positions = f->data.row[k].count;
    if (!f->data.count) shape.positions = (uint32_t)m->training->seq;
    for (uint32_t round = setup + 1; round <= setup + 2 && round <= rounds; round++) {
        struct method_task task;
        struct cost_size size;
        method_task(&task, m->files->method, m->options, round);
        r->round = round;
        r->trains = task.trains;
        r->gradient = task.gradient;
        TRY(cost_files_update(&size, m->files, r));
        if (size.values > shape.values) shape.values = size.values;
    }
    *out = shape;
    return ERR_NONE;
}

err cost_memory(struct cost *c, const struct cost_memory *m)
{
    const struct fleet *fleet = m->o->fleet;
    struct sizing s = {.m = m, .each_row = c->private_example};
    for (size_t i = 0; i < fleet->members; i++) {
        struct cost_class *class = &c->class[fleet->member[i].device];
        uint64_t has = fleet->devices.class[fleet->member[i].device].memory;
        struct engine_plan_need need;
        struct shape shape;
        TRY(shape_of(&shape, m, i, c->rounds));
        TRY(need_of(&need, &s, &shape));
        need.total += c->last.bytes;
        class->members++;
        class->over += has && need.total > has;
        if (need.total > class->need) class->need = need.total;
        if (need.total > c->memory_bytes) c->memory_bytes = need.total;
        c->weights_bytes = need.weights;
    }
    return ERR_NONE;
}

/* The first class is enough for an answer; simulate plan has all of them. */
err cost_memory_check(const struct cost_options *o)
{
    const struct devices *d = &o->fleet->devices;
    struct cost c = {0};
    if (!devices_state_memory(d)) return ERR_NONE;
    TRY(cost_make(&c, o));
    for (size_t i = 0; i < d->classes; i++) {
        char need[32], has[32], state[32];
        if (!c.class[i].over) continue;
        text_size(need, sizeof need, c.class[i].need);
        text_size(has, sizeof has, d->class[i].memory);
        text_size(state, sizeof state, c.last.bytes);
        return err_make(ERR_INPUT,
                        "class %s: %zu of %zu clients cannot train: %s needed (the last state of "
                        "%s included), %s available; a smaller rank, --batch or --seq%s may help",
                        d->class[i].name, c.class[i].over, c.class[i].members, need, state, has,
                        o->checkpoint ? "" : ", or --checkpoint,");
    }
    return ERR_NONE;
}
