/* A run's options: client/command/run_options.h. */
#include "client/command/run_options.h"

#include "client/command/run_members.h"
#include "proto/message.h"
#include "proto/training_wire.h"

#include <string.h>

/* The names of the choices are also their values in the RunConfig message. */
static const char *const lates[] = {"refuse", "next", NULL};
static const char *const absents[] = {"wait", "skip", NULL};
static const char *const weights[] = {"examples", "uniform", "given", NULL};
static const char *const privacies[] = {"none", "client", "example", NULL};

#define AT(member) offsetof(struct run_options, member)
/* One macro per kind of option, so that a row is its flag, key, member, default, range and help. */
#define ROW_TEXT(f, k, m, v, h)                                                                    \
    {                                                                                              \
        .flag = f, .key = k, .kind = OPTION_TEXT, .at = AT(m), .value = v, .help = h               \
    }
#define ROW_INT(f, k, m, d, low, high, h)                                                          \
    {                                                                                              \
        .flag = f, .key = k, .kind = OPTION_INT, .at = AT(m), .fallback = d, .least = low,         \
        .most = high, .help = h                                                                    \
    }
#define ROW_NUM(f, k, m, d, low, high, h)                                                          \
    {                                                                                              \
        .flag = f, .key = k, .kind = OPTION_NUM, .at = AT(m), .fallback = d, .least = low,         \
        .most = high, .help = h                                                                    \
    }
#define ROW_FLAG(f, k, m, d, h)                                                                    \
    {                                                                                              \
        .flag = f, .key = k, .kind = OPTION_FLAG, .at = AT(m), .fallback = d, .help = h            \
    }
#define ROW_CHOICE(f, k, m, d, c, h)                                                               \
    {                                                                                              \
        .flag = f, .key = k, .kind = OPTION_CHOICE, .at = AT(m), .fallback = d, .choices = c,      \
        .help = h                                                                                  \
    }

const struct option_row run_options_rows[] = {
    /* The run itself. Every option has a key, because a run is usually described in a file that is
     * kept with its results. */
    {.flag = "method",
     .key = "run.method",
     .kind = OPTION_TEXT,
     .at = AT(method),
     .value = "NAME",
     .help = "method that combines the updates, from the list below (required)"},
    {.flag = "rounds",
     .key = "run.rounds",
     .kind = OPTION_INT,
     .at = AT(rounds),
     .least = 0,
     .most = LIMIT_ROUNDS,
     .help = "number of rounds (required)"},
    {.flag = "members",
     .key = "run.members",
     .kind = OPTION_TEXT,
     .at = AT(members),
     .value = "ID,ID,...",
     .help = "members of the run (run create: required); "
             "ID:rank=8:weight=2:alpha=16:rslora=yes:targets=q+v "
             "sets the "
             "values that differ from the run's, and ID:8:2 is short for rank 8 and weight 2"},
    ROW_TEXT(
        "base", "run.base", base, "PATH",
        "base model; run create only reads its digest and shapes, and needs this or --base-digest"),
    ROW_TEXT(
        "base-digest", "run.base_digest", base_digest, "HEX",
        "digest of the base model, as fedlora inspect prints it; for run create instead of --base"),
    ROW_INT("rank", "run.rank", rank, "0", 0, LIMIT_RANK,
            "rank of the LoRA factors; 0: the rank that each member offers"),
    ROW_NUM("alpha", "run.alpha", alpha, "0", 0, 1e6,
            "LoRA alpha; 0: the method's default, twice each member's rank unless it has its own"),
    ROW_FLAG("rslora", "run.rslora", rslora, NULL,
             "scale adapters by alpha / sqrt(rank) instead of alpha / rank"),
    ROW_TEXT("targets", "run.targets", targets, "q,k,v,...",
             "modules to adapt, separated by commas: q, k, v, o, gate, up, down or full names; "
             "all-linear, which is the default: all of these"),
    /* The members of a round, when it closes, and how its updates are weighted. */
    ROW_INT("cohort", "run.cohort", cohort, "0", 0, LIMIT_MEMBERS,
            "number of members drawn for each round, whose updates close it; 0: all members"),
    ROW_INT("over-select", "run.over_select", over_select, "0", 0, LIMIT_MEMBERS,
            "members drawn beyond --cohort, so that a round need not wait for the slowest ones"),
    ROW_INT("quorum", "run.quorum", quorum, "0", 0, LIMIT_MEMBERS,
            "number of updates that closes a round; 0: one from each member, or --cohort of them"),
    {.flag = "deadline",
     .key = "run.deadline",
     .kind = OPTION_DURATION,
     .at = AT(deadline_ms),
     .value = "TIME",
     .help = "longest time a round stays open; it then closes with the updates received, if they "
             "reach the quorum; default: none"},
    {.flag = "grace",
     .key = "run.grace",
     .kind = OPTION_DURATION,
     .at = AT(grace_ms),
     .value = "TIME",
     .help =
         "time that a round stays open after its quorum is in, up to --deadline; default: until "
         "the deadline"},
    ROW_CHOICE("absent", "run.absent", absent, "wait", absents,
               "whether a round waits for members that are absent when it opens; an update of "
               "theirs that comes in time counts in both cases"),
    ROW_CHOICE("late", "run.late", late, "refuse", lates,
               "what happens to updates that arrive after their round has closed: refuse them, or "
               "count them in the next round"),
    ROW_INT("late-rounds", "run.late_rounds", late_rounds, "0", 0, 64,
            "count updates that are at most N rounds late, in the round that is open when they "
            "arrive; an update s rounds late has its weight times (1 + s)^-1/2; 0: as --late says"),
    ROW_CHOICE("weights", "run.weights", weights, "examples", weights,
               "weight of a member's update: its number of examples, the same for all, or the "
               "weight given in --members"),
    ROW_NUM("weight-cap", "run.weight_cap", weight_cap, "0", 0, 1,
            "largest share of one member in the mean of a round, for example 0.3; 0: no limit"),
    ROW_NUM(
        "norm-bound", "run.norm_bound", norm_bound, "0", -1, 1e30,
        "refuse an update whose norm is more than N times the median of its round; -1: never; 0: "
        "1000, or never in fedlora simulate"),
    ROW_TEXT(
        "frozen", "run.frozen", frozen, "FILE",
        "file of frozen factors, for fed-sb and ffa; default: an orthonormal basis from the seed"),
    /* Details of the method and its reports. Options that only some methods have are given by
     * --option. */
    ROW_NUM("carry-error", "run.carry_error", carry_error, "1e-4", 0, 1,
            "largest relative error of recompressing the carry; 0: exact"),
    ROW_INT("evaluate-every", "run.evaluate_every", evaluate_every, "1", 0, LIMIT_ROUNDS,
            "evaluate every N-th round's state, and the last one, on members that have "
            "--eval-data; 0: never"),
    ROW_INT("report-every", "run.report_every", report_every, "10", 1, LIMIT_ROUNDS,
            "compare the members' changes (directions, cosines) in every N-th round's report, and "
            "in the last one"),
    {.flag = "option",
     .key = "run.option",
     .kind = OPTION_LIST,
     .at = AT(method_options),
     .value = "KEY=VALUE",
     .help = "option of the method, from the list below; may be repeated"},
    ROW_CHOICE(
        "privacy", "privacy.unit", privacy, "none", privacies,
        "unit of differential privacy; client: noise added by the coordinator protects all data of "
        "a member; example: noise added by each member while training protects each record"),
    /* Differential privacy. For these numbers 0 means "not given"; the coordinator computes a
     * missing noise from the budget, and refuses a budget without enough members or records. */
    ROW_NUM("epsilon", "privacy.epsilon", epsilon, "0", 0, 1e6,
            "privacy budget: largest epsilon, at the delta of --delta; 0: not given"),
    ROW_NUM("delta", "privacy.delta", delta, "0", 0, 1,
            "probability that the bound --epsilon fails; must be below 1 / number of members "
            "(client) or of a member's records (example); 0: not given"),
    ROW_NUM("noise", "privacy.noise", noise, "0", 0, 4096,
            "noise multiplier (standard deviation of the noise / clip norm); 0: the smallest that "
            "keeps all rounds within --epsilon"),
    ROW_NUM("clip-norm", "privacy.clip_norm", clip_norm, "0.1", 0, 1e9,
            "L2 norm to which a member's change (client) or a record's gradient (example) is "
            "clipped; with --adaptive-clip, its first value"),
    ROW_NUM("sampling", "privacy.sampling", sampling, "0", 0, 1,
            "client: probability that a member takes part in a round, 0: all take part; example: "
            "probability that a record is in a step, 0: rows per step / number of records"),
    ROW_NUM("basis-clip", "privacy.basis_clip", basis_clip, "0", 0, 1e9,
            "L2 norm to which a unit's gradients are clipped in each of the two passes of --option "
            "basis=gradient"),
    ROW_NUM("basis-noise", "privacy.basis_noise", basis_noise, "0", 0, 4096,
            "noise multiplier of the two passes of --option basis=gradient; 0: they spend a fifth "
            "of epsilon"),
    ROW_FLAG("adaptive-clip", "privacy.adaptive_clip", adaptive_clip, NULL,
             "adapt the clip norm to the median norm of the members' changes"),
    ROW_FLAG("force-noise", "privacy.force_noise", force_noise, NULL,
             "create the run even if the noise is larger than the members' change"),
    /* 0 on the wire: the coordinator fills in the default, which may be the method's own. */
    TRAINING_ROW_LR(AT(training), "0",
                    "learning rate; 0: the method's default, " TRAINING_LR
                    " unless it has its own"),
    TRAINING_ROWS(AT(training)),
    TRAINING_ROW_KEEP_OPTIMIZER(AT(training)),
};
const char *const run_options_simulated[] = {"data",  "fleet",     "devices", "faults", "evaluate",
                                             "sweep", "reference", "when ",   NULL};
/* A sweep reads its own sections. */
const char *const run_options_deployed[] = {"server", "sweep", "when ", NULL};
const size_t run_options_count = sizeof run_options_rows / sizeof *run_options_rows;

/* 0 means "not given" on the wire; the coordinator computes the missing values from the budget. */
static err set_privacy(Fedlora__V1__RunConfig *config, const struct run_options *o,
                       struct arena *arena)
{
    Fedlora__V1__Privacy *p = NULL;
    if (!o->privacy) return ERR_NONE;
    TRY(arena_take(&p, arena, 1, sizeof *p));
    *p = (Fedlora__V1__Privacy)FEDLORA__V1__PRIVACY__INIT;
    p->unit = (char *)(uintptr_t)privacies[o->privacy];
    p->epsilon = o->epsilon;
    p->delta = o->delta;
    p->noise = o->noise;
    p->clip = o->clip_norm;
    p->sampling = o->sampling;
    p->adaptive = o->adaptive_clip;
    p->force = o->force_noise;
    p->basis_clip = o->basis_clip;
    p->basis_noise = o->basis_noise;
    config->privacy = p;
    return ERR_NONE;
}

/* Privacy options without --privacy are refused, see command_check_unused(). */
static err check_privacy(const struct run_options *o)
{
    const struct command_given option[] = {{"epsilon", o->epsilon != 0},
                                           {"delta", o->delta != 0},
                                           {"noise", o->noise != 0},
                                           {"sampling", o->sampling != 0},
                                           {"basis-clip", o->basis_clip != 0},
                                           {"basis-noise", o->basis_noise != 0},
                                           {"adaptive-clip", o->adaptive_clip},
                                           {"force-noise", o->force_noise}};
    if (o->privacy) return ERR_NONE;
    return command_check_unused(option, sizeof option / sizeof *option,
                                "--privacy client or example");
}

/* Protobuf fields without presence cannot tell "0" from "not given". Where 0 is a meaningful value
 * of the option, as for --carry-error, a negative number stands for it. */
static err set_config(Fedlora__V1__RunConfig *config, const struct run_options *o,
                      struct arena *arena)
{
    /* Targets of the run are separated by commas, those of one member by '+', see run_members.c. */
    static const struct run_members_split comma = {',', "targets"};
    /* PEFT's name for all modules, which is what an empty list means. */
    bool all = o->targets != NULL && strcmp(o->targets, "all-linear") == 0;
    if (o->members != NULL) TRY(run_members_parse(config, o->members, arena));
    if (o->targets != NULL && !all)
        TRY(run_members_split(&config->targets, &config->n_targets, o->targets, &comma, arena));
    config->method = (char *)(uintptr_t)o->method;
    config->rounds = (uint32_t)o->rounds;
    config->rank = (uint32_t)o->rank;
    config->alpha = o->alpha;
    config->rslora = o->rslora;
    config->cohort = (uint32_t)o->cohort;
    config->over_select = (uint32_t)o->over_select;
    config->late_rounds = (uint32_t)o->late_rounds;
    config->quorum = (uint32_t)o->quorum;
    config->deadline_ms = o->deadline_ms;
    config->grace_ms = o->grace_ms;
    config->absent = (char *)(uintptr_t)absents[o->absent];
    config->late = (char *)(uintptr_t)lates[o->late];
    config->weights = (char *)(uintptr_t)weights[o->weights];
    config->weight_cap = o->weight_cap;
    config->norm_bound = o->norm_bound;
    config->carry_error = o->carry_error > 0 ? o->carry_error : -1; /* 0 on the wire: default */
    config->evaluate_every = (uint32_t)o->evaluate_every;
    config->report_every = (uint32_t)o->report_every;
    config->seed = (uint64_t)o->common.seed;
    config->n_method_options = o->method_options.count;
    config->method_options = (char **)(uintptr_t)o->method_options.item;
    return set_privacy(config, o, arena);
}

/* Missing options are found here, because not every command that has these options makes a run.
 * Without --steps and --epochs a round is one pass over each member's data. */
err run_options_config(Fedlora__V1__RunConfig *out, const struct run_options *o,
                       struct arena *arena)
{
    struct training_options training = o->training;
    if (o->method == NULL)
        return err_make(ERR_INPUT, "--method is missing: expected the name of a method");
    if (o->rounds == 0)
        return err_make(ERR_INPUT, "--rounds is missing: expected the number of rounds");
    TRY(check_privacy(o));
    TRY(set_config(out, o, arena));
    training.seed = o->common.seed;
    training.precision = o->common.precision;
    return training_wire_make(&out->training, &training);
}
