/* The norms of a round, from its files; contract in method.h. */
#include "agg/round/method_cohort.h"
#include "agg/round/method_diagnose.h"
#include "agg/round/method_measure.h"
#include "agg/round/method_robust.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

struct making {
    const struct method *method;
    const struct method_report_options *options;
    struct method_cohort cohort; /* as the round had it; its state is the one before */
    struct adapter_file made;
    struct method_report_row
        *row;     /* (state modules): copies, so that a failure changes no report */
    double *gram; /* (state modules, compared, compared): inner products of members' changes */
    size_t compared;
    bool known;       /* an earlier report found that the frozen factors are orthonormal */
    bool orthonormal; /* those that this report has read so far are */
    struct arena arena;
};

static void making_close(struct making *m)
{
    method_cohort_close(&m->cohort);
    adapter_file_close(&m->made);
    arena_close(&m->arena);
}

static err open_made(struct making *m, const char *path)
{
    const struct adapter_file_meta *before = &m->cohort.state.meta, *after = &m->made.meta;
    TRY(adapter_file_map(&m->made, path));
    if (after->kind == ADAPTER_FILE_STATE && strcmp(after->method, before->method) == 0 &&
        strcmp(after->run, before->run) == 0 && after->round == before->round + 1)
        return ERR_NONE;
    return err_make(ERR_INPUT, "%s: expected the state after round %u of run %s", path,
                    before->round, before->run);
}

/* Sets the members' weights to those that the round's robust rule gave; the cohort has only the
 * weights before it. Both are sorted by member id. */
static err take_shares(struct making *m, const struct method_report *report)
{
    struct method_cohort *c = &m->cohort;
    if (report->member_count == 0) return ERR_NONE;
    if (report->member_count != c->count)
        return err_make(ERR_INPUT, "the report has %zu members, expected %zu", report->member_count,
                        c->count);
    for (size_t k = 0; k < c->count; k++)
        c->p[k] = report->member[k].weight;
    return ERR_NONE;
}

static err making_open(struct making *out, const char *made_path, const struct method_next *next,
                       const struct method_report *report)
{
    struct making m = *out;
    const struct method_report_frozen *frozen = m.options->frozen;
    err e = ERR_NONE;
    TRY_OUT(e, method_cohort_open(&m.cohort, m.method, next, /*memory*/ false));
    TRY_OUT(e, open_made(&m, made_path));
    size_t count = m.cohort.state.count;
    if (report->count != count) {
        e = err_make(ERR_INPUT, "%s: the report has %zu modules, expected %zu", made_path,
                     report->count, count);
        goto out;
    }
    TRY_OUT(e, take_shares(&m, report));
    TRY_OUT(e, arena_take(&m.row, &m.arena, count, sizeof *m.row));
    memcpy(m.row, report->row, count * sizeof *m.row);
    m.orthonormal = m.cohort.has_frozen;
    m.known = frozen && frozen->orthonormal && frozen->digest[0] &&
              strcmp(frozen->digest, m.cohort.state.meta.frozen) == 0;
    if (m.options->directions) m.compared = method_diagnose_members(m.cohort.count);
    TRY_OUT(e, arena_take(&m.gram, &m.arena, count, m.compared * m.compared * sizeof *m.gram));
    *out = m;
    return ERR_NONE;
out:
    making_close(&m);
    return e;
}

/* This module as it was published, every factor as float32. */
static err read_made(struct adapter_file_module *out, const struct making *m, const char *name,
                     struct arena *arena)
{
    const struct adapter_file_module *made = adapter_file_find(&m->made, name);
    if (!made) return err_make(ERR_INPUT, "%s: module %s is missing", m->made.path, name);
    *out = *made;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        if (out->factor[r].tensor)
            TRY(adapter_file_f32(&out->factor[r].f32, &out->factor[r], arena));
    return ERR_NONE;
}

static err make_row(struct making *m, size_t i, bool *orthonormal)
{
    const struct method_cohort *c = &m->cohort;
    struct method_view view = {0};
    struct adapter_file_module made;
    struct method_round round = {.number = c->state.meta.round - method_setup_rounds(&c->options),
                                 .options = &c->options,
                                 .server_lr = 1};
    struct method_measure measure = {
        .method = m->method, .round = &round, .made = &made, .orthonormal = m->known};
    err e = ERR_NONE;
    *orthonormal = true;
    TRY(method_view_open(&view, &round, c, i));
    TRY_OUT(e, read_made(&made, m, c->state.module[i].name, &view.arena));
    if (round.frozen && !m->known) {
        TRY_OUT(e, method_measure_orthonormal(orthonormal, round.frozen));
        measure.orthonormal = *orthonormal;
    }
    TRY_OUT(e, method_measure(&m->row[i], &measure));
    if (m->options->directions && m->row[i].sent)
        e = method_diagnose(&m->row[i], m->gram + i * m->compared * m->compared, &round, m->method);
out:
    method_view_close(&view, c);
    adapter_file_drop(&m->made);
    return e;
}

/* Every module, in parallel. The error is that of the first module that failed, whichever thread
 * finished first. An OpenMP loop cannot be left, so after `stopped` the other iterations do
 * nothing. */
static err make_rows(struct making *m)
{
    const struct method_report_options *o = m->options;
    int threads = o->threads > 0 ? o->threads : omp_get_max_threads();
    err failed = ERR_NONE;
    size_t first = SIZE_MAX;
    bool stopped = false;
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < m->cohort.state.count; i++) {
        bool stop, orthonormal = true;
        err one = ERR_NONE;
#pragma omp atomic read
        stop = stopped;
        if (!stop && o->give_way) stop = o->give_way(o->context);
        if (!stop) one = make_row(m, i, &orthonormal);
#pragma omp critical(method_report_make)
        {
            if (stop) {
#pragma omp atomic write
                stopped = true;
            }
            m->orthonormal = m->orthonormal && orthonormal;
            if (err_is(one) && i < first) {
                failed = one;
                first = i;
            }
        }
    }
    lowrank_end(before);
    if (err_is(failed)) return failed;
    return stopped ? err_make(ERR_STOPPED, "the report was stopped by its caller") : ERR_NONE;
}

/* The cosines over all modules: <D_j, D_k> of the whole change is the sum over its modules. Summed
 * in the order of modules, so that the bits do not depend on threads. */
static void sum_compared(struct method_report_row *total, const struct making *m)
{
    size_t size = m->compared * m->compared;
    double sum[METHOD_DIAGNOSE_MEMBERS * METHOD_DIAGNOSE_MEMBERS] = {0};
    for (size_t i = 0; i < m->cohort.state.count; i++)
        for (size_t j = 0; j < size; j++)
            sum[j] += m->gram[i * size + j];
    method_diagnose_cosines(total, sum, m->compared);
}

static void sum_up(struct method_report *report, const struct making *m)
{
    struct method_report_row *t = &report->total;
    t->update_norm = t->error = t->state_norm = 0;
    t->directions = t->intruders = 0;
    for (size_t i = 0; i < report->count; i++) {
        const struct method_report_row *row = &m->row[i];
        report->row[i] = *row;
        t->update_norm = hypot(t->update_norm, row->update_norm);
        t->error = hypot(t->error, row->error);
        t->state_norm = hypot(t->state_norm, row->state_norm);
        t->directions += row->directions;
        t->intruders += row->intruders;
    }
    sum_compared(t, m);
    report->measured = true;
}

/* Keeps what was found about the frozen factors for the next report. */
static void remember(struct method_report_frozen *frozen, const struct making *m)
{
    const char *digest = m->cohort.state.meta.frozen;
    if (!frozen || m->known || !m->cohort.has_frozen || strlen(digest) >= sizeof frozen->digest)
        return;
    memcpy(frozen->digest, digest, strlen(digest) + 1);
    frozen->orthonormal = m->orthonormal;
}

err method_report_make(struct method_report *report, const struct method *method,
                       const char *made_path, const struct method_next *next,
                       const struct method_report_options *options)
{
    struct making m = {.method = method, .options = options};
    if (method->keeps || (report->measured && !options->directions)) return ERR_NONE;
    TRY(making_open(&m, made_path, next, report));
    /* For a round of gradients method_next() has set the norms already. */
    err e = m.cohort.task.gradient ? ERR_NONE : make_rows(&m);
    if (!err_is(e)) sum_up(report, &m);
    if (!err_is(e)) remember(options->frozen, &m);
    making_close(&m);
    return e;
}
