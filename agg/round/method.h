/* Federated methods: what a client trains and sends, and what the next state is. One const row a
 * method, one file in agg/methods/. Used by the coordinator and by simulations, in this order:
 *
 *     m = method_find("flora");
 *     method_make_frozen(m, path, &start);      only where m->frozen, none was given, and
 *                                               the options' basis is seeded
 *     method_start(m, "state.1", &start);       the state clients train from in round 1
 *     method_check_update(m, "update", &expect) as each update arrives
 *     method_next(&report, m, "state.2", &next) when the round closes, and so on
 *     method_report_make(&report, m, "state.2", &next, &options)
 *                                               its norms, at any later time
 *
 * State number t is what round t trains from; after the last round N comes state N+1, the result. A
 * state says in its metadata all that the next one needs (run, base, rank, alpha, modules, options,
 * ...). With basis=gradient rounds 1 and 2 train nothing: members send gradients
 * (agg/algebra/sketch.h), state 3 has the frozen factors found, and N counts these two rounds too.
 *
 * The bytes of a state depend on the previous state, the server's memory that belongs to it, the
 * updates, their weights and the members' ids, and on nothing else: not on the order or time of
 * arrival, nor on the number of threads. (One processor type and one set of libraries.) Memory does
 * not grow with the number of updates: all are mapped, one module a thread is read at a time, and
 * its pages are dropped.
 *
 * Weights are renormalised over the contributions given: p_k = w_k / sum w. A member that did not
 * send a module has learned nothing there; a module that no member sent stays as it was. */
#ifndef AGG_METHOD_H
#define AGG_METHOD_H

#include "agg/adapter/adapter_file.h"
#include "base/bytes.h"
#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"
#include "base/text.h"

enum { METHOD_A = 1, METHOD_B = 2, METHOD_R = 4 }; /* a set of factors */

struct method_module {
    const char *name;
    uint32_t d_out, d_in;
};

/* Round 1. */
struct method_start {
    const char *run;
    const char *base; /* digest of the base model, 64 hex */
    uint64_t seed;
    uint32_t rank; /* of the state's own factors; where members differ, the largest */
    double alpha;
    bool rslora;
    const struct method_module *module; /* what the run adapts; any order */
    size_t module_count;
    const char *frozen_path;   /* fed-sb: the file of frozen factors */
    const char *frozen_digest; /* and its digest, 64 hex */
    const char *initial_path;  /* NULL, or a PEFT directory or state to continue from */
    const char *const *option; /* (option_count) "key=value": agg/round/method_options.h */
    size_t option_count;
    int threads; /* 0: as many as OpenMP gives */
};

struct contribution {
    const char *member; /* unique */
    double weight;      /* > 0: examples, 1 for uniform, or given; any unit */
    const char *path;   /* an update that method_check_update() has admitted */
};

struct method_next {
    const char *state_path;  /* the state these updates started from */
    const char *frozen_path; /* the method's frozen factors, for the report's norms; or NULL */
    const struct contribution *contribution;
    size_t count;
    double carry_error; /* flora: relative, per module, all rounds together; 0: drop nothing */
    uint32_t rounds; /* of the whole run, so that carry_error is spread over them; 0: not known */
    int threads;
    /* The server optimizer's memory (momentum, second moments), which is never sent: the file that
     * the state names (NULL if it names none; its digest, fedlora.memory, is checked), and the path
     * of the next one. That is written before the state, which names it; only where
     * report->memory_made. Needed if the run has a server optimizer, else NULL. */
    const char *memory_path, *memory_out;
    /* The path of new frozen factors, written only where report->frozen_made (basis=gradient, round
     * 2): states name them from then on. Needed in that round, else NULL. */
    const char *frozen_out;
};

/* Frobenius norms in weight space, so scale is folded in. method_next() sets the first block, which
 * costs nothing; method_report_make() the others. */
struct method_report_row {
    const char *module; /* NULL in `total` */
    uint32_t rank;      /* of what was published (carry, adapter, or R); the largest in `total` */
    uint32_t sent;      /* members that sent this module */
    double dropped;     /* the part of the error that recompression cut off */

    double update_norm; /* of the exact weighted mean change of this round */
    double error;       /* ||published change - exact change||_F; see agg/round/method_measure.h */
    double state_norm;  /* of carry + adapter as published */

    /* Only with `directions`: the members' changes compared with each other, and with what the
     * state added before (agg/round/method_diagnose.h). In `total` the cosines are those over all
     * modules, the counts are sums. */
    double cosine_mean, cosine_least;
    uint32_t pairs, directions, intruders;
};
struct method_report_member {
    const char *member;
    double weight; /* its share of the round, after a robust rule too */
    double norm;   /* of its change, all modules; 0 where no rule looked at it */
};
struct method_report {
    struct method_report_row total; /* root of the sum of squares */
    struct method_report_row *row;  /* sorted by module */
    size_t count;
    struct method_report_member *member; /* sorted by id; only under robust norm, krum, geometric */
    size_t member_count;
    bool memory_made, frozen_made; /* these files were written */
    bool measured;                 /* the norms are set: by method_report_make(), and in rounds that
                                      only find the basis by method_next() */
    struct arena arena;
};
void method_report_close(struct method_report *report);
/* {"rank":..,"sent":..,"dropped":..,
 *  "update_norm":..,"error":..,"state_norm":..,   these five only where `measured`
 *  "relative_error": error / update_norm,
 *  "energy_kept": state_norm^2 / (state_norm^2 + dropped^2), 1 where nothing was cut,
 *  "cosine_mean":..,"cosine_least":..   only where pairs > 0, "pairs":..,
 *  "directions":..,"intruders":..       only where directions > 0,
 *  "modules":[{"module":..,the same},...],
 *  "members":[{"member":..,"weight":..,"norm":..},...]   only under a robust rule}; canonical. */
err method_report_json(struct bytes *out, const struct method_report *report);

/* The requirements of an update. A violation is ERR_INPUT (ERR_STATE for a wrong round) and names
 * the tensor and the expected value. Values are read once, to see that they are finite, and the
 * pages dropped. */
struct method_expect {
    const struct adapter_file *state; /* of the round, adapter_file_map()ed */
    const char *member;
    uint32_t round;  /* being trained */
    uint32_t behind; /* rounds that it may be late, where method_takes_late(); 0: none */
    uint32_t rank;   /* this member's; fed-sb: the block it trains, 0: the whole R */
    double alpha;
    bool rslora;
    const char *const *module; /* (module_count) what this member adapts, sorted; NULL: all */
    size_t module_count;
};

struct lowrank_svd;      /* agg/algebra/lowrank.h */
struct method_options;   /* agg/round/method_options.h */
struct method_round;     /* one module's view of a round: agg/round/method_round.h */
struct method_beginning; /* one module's view of the start */
struct method_result;    /* where a module's next factors go */

/* How `fedlora aggregate` combines finished adapters by this method, without a run. */
enum method_aggregate_way {
    METHOD_AGGREGATE_UNSET,   /* not filled in: refused, and tests/unit/registry.c fails */
    METHOD_AGGREGATE_SUM,     /* the exact weighted sum of the products, recompressed */
    METHOD_AGGREGATE_FACTORS, /* the method's own next(), from an adapter of zeros */
    METHOD_AGGREGATE_RUN_ONLY /* not at all: it needs the state of a run */
};
/* How the sum is cut where the user asks for no cut. */
enum method_aggregate_cut {
    METHOD_AGGREGATE_CUT_NONE,
    METHOD_AGGREGATE_CUT_LARGEST, /* to the largest rank given, unless options.tail is carry */
    METHOD_AGGREGATE_CUT_ENERGY   /* by options.energy, or to options.bytes where that is set */
};
struct method_aggregate {
    enum method_aggregate_way way;
    enum method_aggregate_cut cut;
    bool stack; /* offers the stack of all factors, without recompression */
    /* One line: the result, for help texts; with RUN_ONLY the reason, which follows the name. */
    const char *text;
};

enum { METHOD_OWN_OPTIONS = 4 }; /* most keys of one method */

/* All that the programs know of one method. Programs and tests go over the registry
 * (agg/methods/registry.c), so a new method needs this row, its line there, and its section in
 * docs/methods.md. A field left out is found by tests/unit/registry.c. */
struct method {
    const char *name;
    const char *summary; /* one line, for help texts */

    /* ---- ranks and scales ---- */
    /* Members may have different ranks. Unless `fresh`, a member of smaller rank than the state's
     * starts from the leading rows of A, columns of B or block of R. The rest of the state's factor
     * stays frozen beside it (fed-sb, ffa, flexlora), or with `truncates` is absent while it trains
     * (hetlora). */
    bool mixed_ranks, truncates;
    bool prunes;      /* an update may have a smaller rank than assigned, which then stays */
    bool equal_scale; /* alpha and rslora must be the same for all members */

    /* ---- what a round publishes ---- */
    bool exact;   /* the published change is the exact weighted mean, up to float32 rounding */
    bool frozen;  /* has a file of frozen factors, which members fetch once, by digest */
    bool carries; /* adds to the carry, which clients apply frozen */
    /* Each trained value is averaged by itself, so that all server optimizers can act on it. */
    bool averages;
    /* Clients draw A by method_fresh_a() and zero B at the start of each round; otherwise they
     * start from the state's factors. */
    bool fresh;
    /* Factors that members train but do not send: each keeps its own from round to round, and the
     * state's stay as they are (fedsa). Other members' factors say nothing about a member's model
     * then, so reports have no norms, and rules that compare members' changes are refused. */
    unsigned keeps;

    /* ---- defaults of a run ---- */
    /* From the demo's search (bench/sweeps/demo_search.ini), where the method was in it. */
    double lr;    /* learning rate; 0: that of base/training_options.h */
    double alpha; /* LoRA alpha, the same at every rank; 0: twice the rank */

    /* ---- where it can be used ---- */
    /* Keys of method_options_table() that only some methods take, NULL-terminated. */
    const char *options[METHOD_OWN_OPTIONS + 1];
    struct method_aggregate aggregate;
    /* Client-level privacy adds noise to the weighted sum of what members send. It hides a member
     * only if that sum is linear in the one factor that is sent, and if no member sees the factors
     * of another. Otherwise the reason, which follows the method's name in an error. */
    bool client_private;
    const char *client_refusal;

    /* ---- the mathematics of one module ---- */
    /* Factors trained and sent in that round of training (1, 2, ...): METHOD_A | METHOD_B | ...
     * Callers ask method_task(), which also knows the rounds that train nothing. */
    unsigned (*factors)(uint32_t round);
    err (*start)(struct method_result *out, const struct method_beginning *beginning);
    /* Called only if at least one member sent the module. */
    err (*next)(struct method_result *out, const struct method_round *round);
    /* NULL, or the singular values on which a budget of bytes over all modules (options.bytes) is
     * spent. next() then finds the rank given to the module in round->rank_max. */
    err (*spectrum)(struct lowrank_svd *out, const struct method_round *round);
};

/* The work of a member in a round. Gradients are those of W = W0 + s B A at the state's A and B,
 * one of them zero; the server divides by the s that the update's metadata and shapes give. */
struct method_task {
    unsigned trains; /* METHOD_A | METHOD_B | METHOD_R: trains and sends these factors ... */
    bool gradient;   /* ... or sends the mean raw gradient of them instead */
};
void method_task(struct method_task *out, const struct method *method,
                 const struct method_options *options, uint32_t round);
/* Rounds at the start that only find the basis: METHOD_SETUP_ROUNDS with basis=gradient, else 0. */
enum { METHOD_SETUP_ROUNDS = 2 };
uint32_t method_setup_rounds(const struct method_options *options);

/* An update of an earlier round can still count, because the member started from a new adapter,
 * trained beside factors that never change, or sent the whole adapter. It cannot if the rest of the
 * pair, or the carry that belongs to it, has changed since (rolora, fedsvd, fedex, flexlora). */
bool method_takes_late(const struct method *method);

const struct method *method_find(const char *name); /* or NULL */
const char *const *method_names(void);              /* NULL-terminated, for help and choices */
/* text_suggestion() among the names of methods, which often differ by a hyphen only. */
const char *method_suggestion(char out[TEXT_SUGGESTION_BYTES], const char *name);

err method_make_frozen(const struct method *method, const char *path,
                       const struct method_start *start);
err method_start(const struct method *method, const char *path, const struct method_start *start);
err method_check_update(const struct method *method, const char *path,
                        const struct method_expect *expect);
/* Writes the next state to `path` (whole or absent; replaces what is there). The report has what
 * comes for free; method_report_make() adds the norms, when there is time. */
err method_next(struct method_report *report, const struct method *method, const char *path,
                const struct method_next *next);

/* Frozen factors are the same in every round of a run: whether they are orthonormal, which makes
 * norms cheap, is found out once. Zeroed at first, then kept by the caller from report to report of
 * a run; one report at a time uses it. */
struct method_report_frozen {
    char digest[DIGEST_TEXT_BYTES]; /* of the file this was found out of */
    bool orthonormal;
};
struct method_report_options {
    bool directions;                 /* also cosines between members, and intruder directions */
    bool (*give_way)(void *context); /* NULL, or polled before each module, on any of the threads:
                                        once it is true, the report ends with ERR_STOPPED */
    void *context;
    int threads;                         /* 0: as many as OpenMP gives */
    struct method_report_frozen *frozen; /* NULL: found out in each report */
};
/* The norms of a round, from its files: the state before, the updates, and the state that
 * method_next() wrote to `made_path`. `next` and `report` are those of method_next(), so that the
 * weights of a robust rule are not computed twice. On failure the report stays as it was. The
 * result does not depend on the number of threads. */
err method_report_make(struct method_report *report, const struct method *method,
                       const char *made_path, const struct method_next *next,
                       const struct method_report_options *options);

/* The A that a client of a `fresh` method starts a round from, the same wherever it is drawn:
 * uniform in +-1/sqrt(d_in) from the generator keyed by (seed, run, round, member, module). Row i
 * is the same for every r > i. */
struct method_fresh {
    uint64_t seed; /* the run's: Training.seed on the wire */
    const char *run, *member, *module;
    uint32_t round;
};
void method_fresh_a(float *out /* (r, d_in) */, uint32_t r, uint32_t d_in,
                    const struct method_fresh *key);

#endif
