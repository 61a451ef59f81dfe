/* fedlora budget epsilon, noise, steps: three questions about a plan of noisy releases.
 *
 *   epsilon   given noise and steps: what does it spend?
 *   noise     given epsilon and steps: what is the smallest noise?
 *   steps     given epsilon and noise: how many steps are allowed?
 *
 * The plan may follow earlier releases on the same data (--before). No data is read. With pld the
 * answer is also checked against the older RDP accountant. */
#include "base/limits.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/output/chart.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "privacy/account/account.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Options of all three commands; each reads those of its rows. */
struct budget_command {
    struct command_common common;
    double noise, sampling, epsilon, delta, interval;
    int64_t steps, units, times, apart;
    int accountant, adjacency, scheme;
    bool tree, rdp_signed, force;
    struct option_list before;
    const char *plot;
};

/* In the order of enum account_engine and its neighbours, so that the index is the value. */
static const char *const accountants[] = {"pld", "rdp", "prv", NULL};
static const char *const adjacencies[] = {"add-remove", "replace-one", NULL};
static const char *const schemes[] = {"poisson", "fixed", NULL};

#define AT(member) offsetof(struct budget_command, member)
#define ROW_NOISE                                                                                  \
    {                                                                                              \
        .flag = "noise", .kind = OPTION_NUM, .at = AT(noise), .value = "S",                        \
        .help = "noise multiplier: standard deviation of the noise / clip norm (required)"         \
    }
#define ROW_STEPS                                                                                  \
    {                                                                                              \
        .flag = "steps", .kind = OPTION_INT, .at = AT(steps), .value = "T",                        \
        .help = "number of noisy releases: rounds, or steps of DP-SGD (required)"                  \
    }
#define ROW_EPSILON                                                                                \
    {                                                                                              \
        .flag = "epsilon", .kind = OPTION_NUM, .at = AT(epsilon), .value = "E",                    \
        .help = "privacy budget: largest epsilon, at the delta of --delta (required)"              \
    }
#define ROWS_TREE                                                                                  \
    {.flag = "tree",                                                                               \
     .kind = OPTION_FLAG,                                                                          \
     .at = AT(tree),                                                                               \
     .help =                                                                                       \
         "account for tree aggregation: one binary tree over all steps, with noise on its nodes"}, \
        {.flag = "times",                                                                          \
         .kind = OPTION_INT,                                                                       \
         .at = AT(times),                                                                          \
         .fallback = "1",                                                                          \
         .least = 1,                                                                               \
         .most = 1e6,                                                                              \
         .value = "K",                                                                             \
         .help = "with --tree: largest number of steps in which one unit takes part"},             \
    {                                                                                              \
        .flag = "apart", .kind = OPTION_INT, .at = AT(apart), .fallback = "0", .least = 0,         \
        .most = 1e6, .value = "N",                                                                 \
        .help =                                                                                    \
            "with --tree: smallest number of steps between two in which the same unit takes part"  \
    }
#define ROWS_COMMON                                                                                \
    {.flag = "sampling",                                                                           \
     .kind = OPTION_NUM,                                                                           \
     .at = AT(sampling),                                                                           \
     .value = "Q",                                                                                 \
     .help =                                                                                       \
         "probability that a unit takes part in a step; 1: every unit in every step (required)"},  \
        {.flag = "delta",                                                                          \
         .kind = OPTION_NUM,                                                                       \
         .at = AT(delta),                                                                          \
         .value = "D",                                                                             \
         .help = "probability that the privacy loss exceeds epsilon (required unless --units is "  \
                 "given; then default: the smaller of 1e-5 and 0.1 / units)"},                     \
        {.flag = "units",                                                                          \
         .kind = OPTION_INT,                                                                       \
         .at = AT(units),                                                                          \
         .value = "N",                                                                             \
         .help = "number of protected examples or members; --delta must be below 1/N"},            \
        {.flag = "accountant",                                                                     \
         .kind = OPTION_CHOICE,                                                                    \
         .at = AT(accountant),                                                                     \
         .fallback = "pld",                                                                        \
         .choices = accountants,                                                                   \
         .help = "accountant: privacy loss distributions (pld), Renyi divergences (rdp), or "      \
                 "privacy loss random variables as a cross-check (prv)"},                          \
        {.flag = "adjacency",                                                                      \
         .kind = OPTION_CHOICE,                                                                    \
         .at = AT(adjacency),                                                                      \
         .fallback = "add-remove",                                                                 \
         .choices = adjacencies,                                                                   \
         .help = "how neighbouring data sets differ: one unit added or removed, or one unit "      \
                 "replaced"},                                                                      \
        {.flag = "scheme",                                                                         \
         .kind = OPTION_CHOICE,                                                                    \
         .at = AT(scheme),                                                                         \
         .fallback = "poisson",                                                                    \
         .choices = schemes,                                                                       \
         .help = "sampling: each unit independently (poisson), or a fixed number drawn without "   \
                 "replacement (fixed; needs --accountant rdp --adjacency replace-one)"},           \
        {.flag = "before",                                                                         \
         .kind = OPTION_LIST,                                                                      \
         .at = AT(before),                                                                         \
         .value = "S,Q,T",                                                                         \
         .help = "earlier releases on the same data: noise multiplier, sampling, steps; may be "   \
                 "repeated"},                                                                      \
        {.flag = "signed",                                                                         \
         .kind = OPTION_FLAG,                                                                      \
         .at = AT(rdp_signed),                                                                     \
         .help = "with --accountant rdp: compute fractional orders by the signed series instead "  \
                 "of its upper bound"},                                                            \
        {.flag = "interval",                                                                       \
         .kind = OPTION_NUM,                                                                       \
         .at = AT(interval),                                                                       \
         .value = "H",                                                                             \
         .help = "with --accountant pld: distance of the grid points of the privacy loss; "        \
                 "default: 1e-4, less if losses are small"},                                       \
        {.flag = "plot",                                                                           \
         .kind = OPTION_TEXT,                                                                      \
         .at = AT(plot),                                                                           \
         .value = "FILE.svg",                                                                      \
         .help = "SVG file for a plot of epsilon over the steps"},                                 \
    {                                                                                              \
        .flag = "force", .kind = OPTION_FLAG, .at = AT(force),                                     \
        .help = "replace an existing plot file"                                                    \
    }

static const struct option_row epsilon_rows[] = {ROW_NOISE, ROW_STEPS, ROWS_COMMON, ROWS_TREE};
static const struct option_row noise_rows[] = {ROW_EPSILON, ROW_STEPS, ROWS_COMMON, ROWS_TREE};
static const struct option_row steps_rows[] = {ROW_EPSILON, ROW_NOISE, ROWS_COMMON};

/* ---- what is asked ---- */

/* A checked plan. The event that the command asks about is the last one of `event`, after those of
 * --before. */
struct question {
    const struct budget_command *o;
    double delta;
    struct account_event *event; /* (before + 1), the asked one last */
    size_t before;
    struct account_options how;
};

/* 0 stands for "not given", because a number has no other way to be absent and 0 is never valid
 * here. */
static err given(double value, const char *flag, const char *expected)
{
    if (value > 0) return ERR_NONE;
    if (value == 0) return err_make(ERR_INPUT, "--%s is missing: expected %s", flag, expected);
    return err_make(ERR_INPUT, "--%s %g: expected %s", flag, value, expected);
}

/* A delta of 1/units or more would allow publishing one unit completely with probability 1, so it
 * is refused if the number of units is known. The default is ten times smaller than that bound. */
static err choose_delta(double *out, const struct budget_command *o)
{
    double delta = o->delta;
    if (o->units < 0)
        return err_make(ERR_INPUT, "--units %lld: expected at least 1", (long long)o->units);
    if (delta == 0 && o->units > 0) delta = fmin(1e-5, 0.1 / (double)o->units);
    TRY(given(delta, "delta", "a value above 0 and below 1/units, or --units N"));
    if (delta >= 1) return err_make(ERR_INPUT, "--delta %g: expected a value below 1", delta);
    if (o->units > 0 && delta >= 1 / (double)o->units)
        return err_make(ERR_INPUT,
                        "--delta %g: not below 1/units = %g, which would allow publishing whole "
                        "units; expected at most %g",
                        delta, 1 / (double)o->units, 0.1 / (double)o->units);
    *out = delta;
    return ERR_NONE;
}

/* "1.1,0.02,500": noise multiplier, sampling rate, steps. */
static err parse_before(struct account_event *out, const char *text)
{
    char part[3][64];
    struct account_event event = {0};
    int64_t count;
    const char *p = text;
    for (int i = 0; i < 3; i++) {
        size_t n = strcspn(p, ",");
        if (n == 0 || n >= sizeof part[i] || (p[n] == 0) != (i == 2))
            return err_make(ERR_INPUT, "--before %.80s: expected noise,sampling,steps", text);
        memcpy(part[i], p, n);
        part[i][n] = 0;
        p += n + 1;
    }
    err e = text_parse_num(&event.noise, part[0], 0, 1e300);
    if (!err_is(e)) e = text_parse_num(&event.sampling, part[1], 0, 1);
    if (!err_is(e)) e = text_parse_int(&count, part[2], 0, LIMIT_ACCOUNT_STEPS);
    if (!err_is(e)) event.count = (uint64_t)count;
    if (!err_is(e)) e = account_check_event(&event);
    if (err_is(e)) return err_in(e, "--before %.80s", text);
    *out = event;
    return ERR_NONE;
}

/* The event of `steps` steps with this noise. With --tree all steps together are one release of a
 * tree, whose privacy amplification by sampling is not known; therefore sampling is refused
 * there. */
static err event_of(struct account_event *out, const struct budget_command *o, double noise,
                    uint64_t steps)
{
    if (o->tree) {
        struct account_tree tree = {(uint32_t)steps, (uint32_t)o->times, (uint32_t)o->apart};
        if (o->sampling != 1 || o->scheme)
            return err_make(ERR_INPUT, "--tree: expected --sampling 1 and no --scheme, because "
                                       "trees are accounted without sampling");
        if (steps > 1000000)
            return err_make(ERR_INPUT, "--steps %llu: expected at most 1000000 with --tree",
                            (unsigned long long)steps);
        err e = account_tree_event(out, NULL, noise, &tree);
        return err_is(e) ? err_in(e, "--tree") : e;
    }
    if (o->times > 1 || o->apart > 0)
        return err_make(ERR_INPUT, "--times and --apart have no effect without --tree");
    *out = (struct account_event){
        .mechanism = o->scheme ? ACCOUNT_FIXED_SIZE : ACCOUNT_GAUSSIAN,
        .noise = noise,
        .sampling = o->sampling,
        .count = steps,
    };
    return ERR_NONE;
}

static err question_read(struct question *out, const struct budget_command *o, struct arena *arena)
{
    struct question q = {.o = o, .before = o->before.count};
    q.how = (struct account_options){.engine = (enum account_engine)o->accountant,
                                     .adjacency = (enum account_adjacency)o->adjacency,
                                     .rdp_signed = o->rdp_signed,
                                     .interval = o->interval};
    TRY(given(o->sampling, "sampling", "a probability above 0 and at most 1"));
    if (o->sampling > 1)
        return err_make(ERR_INPUT, "--sampling %g: expected above 0 and at most 1", o->sampling);
    if (o->interval != 0 && q.how.engine != ACCOUNT_PLD)
        return err_make(ERR_INPUT, "--interval has no effect without --accountant pld");
    if (o->interval != 0 && !(o->interval >= 1e-9 && o->interval <= 1))
        return err_make(ERR_INPUT, "--interval %g: expected 1e-9 to 1", o->interval);
    if (o->steps < 0 || o->steps > (int64_t)LIMIT_ACCOUNT_STEPS)
        return err_make(ERR_INPUT, "--steps %lld: expected 1 to %llu", (long long)o->steps,
                        LIMIT_ACCOUNT_STEPS);
    TRY(choose_delta(&q.delta, o));
    if (o->plot) TRY(command_check_output(o->plot, o->force));
    TRY(arena_take(&q.event, arena, q.before + 1, sizeof *q.event));
    for (size_t i = 0; i < q.before; i++) {
        TRY(parse_before(&q.event[i], o->before.item[i]));
        if (o->scheme) q.event[i].mechanism = ACCOUNT_FIXED_SIZE;
    }
    *out = q;
    return ERR_NONE;
}

/* Epsilon of the earlier releases and this plan together. An infinite epsilon means that delta
 * cannot be reached, for example with too little noise. */
static err spend(struct account_spent *out, const struct question *q, double noise, uint64_t steps,
                 const struct account_options *how)
{
    struct account_spent spent;
    TRY(event_of(&q->event[q->before], q->o, noise, steps));
    TRY(account_epsilon(&spent, q->event, q->before + 1, q->delta, how));
    if (!isfinite(spent.epsilon))
        return err_make(ERR_INPUT,
                        "the %s accountant finds no finite epsilon for this plan at delta %g: "
                        "expected more noise or a larger delta",
                        account_engine_name(how->engine), q->delta);
    *out = spent;
    return ERR_NONE;
}

/* ---- answers ---- */

/* The answer: two of its three numbers were given, the third was computed. */
struct answer {
    double noise;
    uint64_t steps;
    struct account_spent spent;
    struct account_spent rdp; /* with pld: the looser bound, where there is one */
    bool has_rdp;
};

/* Both accountants give upper bounds and PLD's is the tighter one. A PLD result above RDP's
 * therefore means a mistake in one of them, and no number is better than a wrong promise. A coarse
 * grid (--interval) may exceed it legitimately, so it is not compared. */
static err answer_check(struct answer *a, const struct question *q)
{
    struct account_options rdp = q->how;
    rdp.engine = ACCOUNT_RDP;
    TRY(spend(&a->spent, q, a->noise, a->steps, &q->how));
    if (q->how.engine != ACCOUNT_PLD || q->how.adjacency == ACCOUNT_REPLACE_ONE) return ERR_NONE;
    a->has_rdp = !err_is(spend(&a->rdp, q, a->noise, a->steps, &rdp));
    if (a->has_rdp && q->o->interval == 0 && a->spent.epsilon > a->rdp.epsilon + 1e-3)
        return err_make(ERR_MACHINE, "the accountants contradict each other: pld %.9g, rdp %.9g",
                        a->spent.epsilon, a->rdp.epsilon);
    return ERR_NONE;
}

/* The earlier releases are included in epsilon, while `steps` counts only those after them. */
static json_t *before_json(const struct question *q)
{
    json_t *list = json_array();
    for (size_t i = 0; i < q->before; i++)
        json_array_append_new(list, json_pack("{s:f, s:f, s:I}", "noise", q->event[i].noise,
                                              "sampling", q->event[i].sampling, "steps",
                                              (json_int_t)q->event[i].count));
    return list;
}

static err print_json(const struct answer *a, const struct question *q)
{
    const struct budget_command *o = q->o;
    json_t *all =
        json_pack("{s:f, s:f, s:f, s:f, s:I, s:s, s:s, s:s}", "epsilon", a->spent.epsilon, "delta",
                  q->delta, "noise", a->noise, "sampling", o->sampling, "steps",
                  (json_int_t)a->steps, "accountant", accountants[o->accountant], "adjacency",
                  adjacencies[o->adjacency], "scheme", o->tree ? "tree" : schemes[o->scheme]);
    bool fine = all != NULL;
    if (fine && o->epsilon > 0)
        fine = json_object_set_new(all, "budget", json_real(o->epsilon)) == 0;
    if (fine && q->before) fine = json_object_set_new(all, "before", before_json(q)) == 0;
    if (fine && q->how.engine == ACCOUNT_PRV)
        fine = json_object_set_new(all, "lower", json_real(a->spent.lower)) == 0;
    if (fine && q->how.engine == ACCOUNT_RDP)
        fine = json_object_set_new(all, "order", json_real(a->spent.order)) == 0;
    if (fine && a->spent.interval > 0)
        fine = json_object_set_new(all, "interval", json_real(a->spent.interval)) == 0;
    if (fine && a->has_rdp)
        fine = json_object_set_new(
                   all, "rdp",
                   json_pack("{s:f, s:f}", "epsilon", a->rdp.epsilon, "order", a->rdp.order)) == 0;
    err e = fine ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

static err table_answer(struct table *t, const char *accountant, const struct account_spent *spent,
                        const struct answer *a, const struct question *q)
{
    TRY(table_cell(t, "%s", accountant));
    TRY(table_cell(t, "%.6g", spent->epsilon));
    TRY(table_cell(t, "%g", q->delta));
    TRY(table_cell(t, "%.7g", a->noise));
    TRY(table_cell(t, "%g", q->o->sampling));
    TRY(table_cell(t, "%llu", (unsigned long long)a->steps));
    if (spent->order > 0) return table_cell(t, "order %g", spent->order);
    if (spent->lower > 0) return table_cell(t, "at least %.6g", spent->lower);
    if (spent->interval > 0) return table_cell(t, "grid %g", spent->interval);
    return table_cell(t, "%s", q->how.engine == ACCOUNT_PLD ? "exact" : "");
}

/* The RDP row is printed for comparison with published tables, which often use it. */
static err print_text(const struct answer *a, const struct question *q)
{
    struct table t;
    err e = ERR_NONE;
    table_begin(&t, "lrrrrrl");
    TRY_OUT(e, table_row(&t, (const char *[]){"accountant", "epsilon", "delta", "noise", "sampling",
                                              "steps", ""}));
    TRY_OUT(e, table_answer(&t, accountants[q->o->accountant], &a->spent, a, q));
    if (a->has_rdp) TRY_OUT(e, table_answer(&t, "rdp", &a->rdp, a, q));
    TRY_OUT(e, table_print(&t));
out:
    table_close(&t);
    return e;
}

/* 25 points at most, closer together at the beginning, where the curve bends most. Each point is a
 * complete accounting, so the user can interrupt between them. */
static err draw(const struct answer *a, const struct question *q)
{
    enum { POINTS = 24 };
    double rounds[POINTS + 1], epsilon[POINTS + 1];
    char subtitle[200];
    size_t count = 0;
    uint64_t steps = a->steps > 0 ? a->steps : 1, last = 0;
    for (int i = 0; i <= POINTS; i++) {
        double part = (double)i / POINTS;
        uint64_t n = (uint64_t)ceil((double)steps * part * part);
        struct account_spent spent = {0};
        if (i > 0 && n == last) continue;
        if (n > 0 || q->before > 0) {
            TRY(stop_check());
            if (n == 0)
                TRY(account_epsilon(&spent, q->event, q->before, q->delta, &q->how));
            else
                TRY(spend(&spent, q, a->noise, n, &q->how));
        }
        rounds[count] = (double)n;
        epsilon[count++] = spent.epsilon;
        last = n;
    }
    snprintf(subtitle, sizeof subtitle, "noise multiplier %.5g, sampling %g, delta %g, %s%s",
             a->noise, q->o->sampling, q->delta, accountants[q->o->accountant],
             q->before ? ", after earlier releases" : "");
    const struct chart_line line = {.x = rounds, .y = epsilon, .count = count};
    const struct chart chart = {.title = "Privacy spent over rounds",
                                .subtitle = subtitle,
                                .x_label = "rounds (noisy releases)",
                                .y_label = "epsilon spent",
                                .line = &line,
                                .lines = 1,
                                .from_zero = true,
                                .limit = q->o->epsilon};
    return chart_write(q->o->plot, &chart, q->o->force);
}

/* The plot comes first: a printed answer means that everything succeeded. */
static err answer_give(struct answer *a, const struct question *q)
{
    TRY(answer_check(a, q));
    if (q->o->plot) TRY(draw(a, q));
    return q->o->common.json ? print_json(a, q) : print_text(a, q);
}

/* ---- the three commands ---- */

static err epsilon_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct budget_command *o = options;
    struct question q;
    (void)arguments;
    TRY(given(o->noise, "noise", "a noise multiplier above 0"));
    TRY(given((double)o->steps, "steps", "at least 1"));
    TRY(question_read(&q, o, arena));
    struct answer a = {.noise = o->noise, .steps = (uint64_t)o->steps};
    return answer_give(&a, &q);
}

/* The search needs an event without fixed noise. A tree's event depends on the noise of its nodes
 * only by a constant factor, which is found from a trial value and divided out at the end. */
static err noise_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct budget_command *o = options;
    const double trial = 1e5; /* noise of a tree's nodes, to measure the factor */
    struct question q;
    struct account_event event;
    struct answer a = {.steps = (uint64_t)o->steps};
    (void)arguments;
    TRY(given(o->epsilon, "epsilon", "a budget above 0"));
    TRY(given((double)o->steps, "steps", "at least 1"));
    TRY(question_read(&q, o, arena));
    TRY(event_of(&event, o, trial, a.steps));
    struct account_budget budget = {o->epsilon, q.delta, q.event, q.before};
    TRY(account_noise(&a.noise, &event, &budget, &q.how));
    a.noise *= trial / event.noise;
    return answer_give(&a, &q);
}

/* 0 steps is a valid answer: the budget is too small for one step, or used up by --before. */
static err steps_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct budget_command *o = options;
    struct question q;
    struct account_event event;
    struct answer a = {.noise = o->noise};
    (void)arguments;
    TRY(given(o->epsilon, "epsilon", "a budget above 0"));
    TRY(given(o->noise, "noise", "a noise multiplier above 0"));
    TRY(question_read(&q, o, arena));
    TRY(event_of(&event, o, o->noise, 1));
    struct account_budget budget = {o->epsilon, q.delta, q.event, q.before};
    TRY(account_steps(&a.steps, &event, &budget, &q.how));
    if (a.steps == 0)
        command_note(&o->common, "the budget allows no step: one step spends more than epsilon %g",
                     o->epsilon);
    return answer_give(&a, &q);
}

#define BUDGET(name_, purpose_, usage_, example_)                                                  \
    const struct command command_budget_##name_ = {                                                \
        .name = "budget " #name_,                                                                  \
        .purpose = purpose_,                                                                       \
        .usage = usage_,                                                                           \
        .example = example_,                                                                       \
        .rows = name_##_rows,                                                                      \
        .row_count = sizeof name_##_rows / sizeof name_##_rows[0],                                 \
        .options_size = sizeof(struct budget_command),                                             \
        .run = name_##_run,                                                                        \
    }

BUDGET(epsilon, "compute the epsilon that a plan spends",
       "--noise S --sampling Q --steps T --delta D [--plot FILE.svg]",
       "fedlora budget epsilon --noise 1.1 --sampling 0.02 --steps 500 --delta 1e-5");
BUDGET(noise, "compute the smallest noise that keeps a plan within a budget",
       "--epsilon E --sampling Q --steps T --delta D [--plot FILE.svg]",
       "fedlora budget noise --epsilon 3 --sampling 0.02 --steps 500 --units 20000");
BUDGET(steps, "compute the number of steps that a budget allows",
       "--epsilon E --noise S --sampling Q --delta D [--before S,Q,T]... [--plot FILE.svg]",
       "fedlora budget steps --epsilon 3 --noise 1.1 --sampling 0.02 --delta 1e-5 "
       "--before 1.1,0.02,120");
