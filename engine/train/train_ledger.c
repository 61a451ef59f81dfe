/* Plans private training and records it in the ledger. Order of safety: a plan is refused before
 * any training; an update is charged before it can leave; and the ledger file is written and synced
 * before train_ledger_charge() returns. A crash in between can lose an update but never an
 * unrecorded one. */
#include "engine/train/train_ledger.h"

#include "privacy/noise/clip.h"

#include <stdio.h>
#include <string.h>

/* ---- the plan */

/* Without a ledger the budget of the records could be spent again by the next run, so there is no
 * private training without one. */
static err check_files(const struct train_ledger_options *o)
{
    if (o->ledger && o->key) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "privacy: needs --ledger FILE and --ledger-key FILE (a key made by openssl "
                    "genpkey -algorithm ed25519), because each private update must be recorded");
}

/* The sampling rate defaults to the rows of a step over the number of records, so that a private
 * step uses as many rows as one without privacy on average. */
static err set_plan(struct train_ledger *l, uint64_t records)
{
    const struct train_ledger_options *o = &l->o;
    double rate = o->sampling;
    if (rate == 0) rate = (double)o->train->batch * o->train->accumulate / (double)records;
    l->how = (struct train_private_options){
        .train = o->train, .sampling = rate > 1 ? 1 : rate, .clip = o->clip};
    uint64_t steps = train_private_steps(&l->how);
    if (steps == 0 || steps > UINT32_MAX)
        return err_make(ERR_INPUT, "privacy: %llu steps in a round: expected 1 to %u",
                        (unsigned long long)steps, UINT32_MAX);
    l->plan = (struct plan){.unit = LEDGER_EXAMPLE,
                            .method = o->method,
                            .bases = o->basis_passes ? "gradient" : o->bases,
                            .epsilon = o->epsilon,
                            .delta = o->delta,
                            .noise = o->noise,
                            .sampling = l->how.sampling,
                            .clip = o->clip,
                            .units = records,
                            .dim = o->dim,
                            .rounds = o->rounds ? o->rounds : 1,
                            .steps = (uint32_t)steps,
                            .basis_passes = o->basis_passes,
                            .basis_noise = o->basis_noise,
                            .basis_clip = o->basis_clip,
                            .simulated = o->simulated};
    return ERR_NONE;
}

/* Half of `says` is for the plan, the rest for the state of the ledger. */
static err describe(struct train_ledger *l)
{
    struct bytes text = {.max = sizeof l->says / 2};
    err e = plan_text(&text, &l->plan, &l->summary);
    while (text.size && text.data[text.size - 1] == '\n')
        text.data[--text.size] = 0;
    if (!err_is(e)) memcpy(l->says, text.data, text.size + 1);
    bytes_close(&text);
    return e;
}

/* plan_check() returns how many rounds the budget allows. A plan with fewer rounds than asked for
 * is refused, because stopping in the middle would waste the budget of the first rounds. Dropout is
 * refused because the passes over single records do not implement it. */
err train_ledger_plan(struct train_ledger *out, const struct train_ledger_options *options,
                      uint64_t records)
{
    struct train_ledger l = {.o = *options};
    if (records == 0) return err_make(ERR_INPUT, "privacy: the data has no records");
    if (options->train->dropout > 0)
        return err_make(ERR_INPUT, "privacy: dropout %g is not possible with example-level privacy",
                        options->train->dropout);
    TRY(check_files(options));
    TRY(set_plan(&l, records));
    TRY(plan_check(&l.summary, &l.plan));
    if (l.summary.rounds < l.plan.rounds)
        return err_make(ERR_INPUT,
                        "privacy: noise multiplier %g spends epsilon %.4g after %llu of %u rounds: "
                        "use more noise or fewer rounds",
                        l.summary.noise, l.plan.epsilon, (unsigned long long)l.summary.rounds,
                        l.plan.rounds);
    l.how.noise = l.summary.noise;
    TRY(describe(&l));
    *out = l;
    return ERR_NONE;
}

/* ---- the ledger */

/* The privacy event of one round: `steps` Gaussian releases at the sampling rate. A pass of the
 * basis is one release over all records. */
static struct account_event event_of(const struct train_ledger *l, bool basis)
{
    if (basis)
        return (struct account_event){.noise = l->summary.basis_noise, .sampling = 1, .count = 1};
    return (struct account_event){
        .noise = l->summary.noise, .sampling = l->plan.sampling, .count = l->plan.steps};
}

static struct ledger_terms terms_of(const struct train_ledger *l, bool basis)
{
    return (basis ? plan_basis_terms : plan_terms)(&l->plan, &l->summary, l->o.job, l->o.party);
}

/* A new ledger gets its budget from the options, or from the caps of the caller if they are given;
 * an existing one keeps its own. */
static err open_ledger(struct ledger_file *out, const struct train_ledger *l)
{
    struct ledger_terms first = terms_of(l, l->plan.basis_passes > 0);
    if (l->o.cap_epsilon > 0) first.epsilon = l->o.cap_epsilon;
    if (l->o.cap_delta > 0) first.delta = l->o.cap_delta;
    return ledger_file_open(out, l->o.ledger, l->o.key, &first);
}

/* Whether an entry is a release of this job, of its basis or of its rounds. */
static bool is_ours(const struct ledger_entry *entry, const struct train_ledger *l, bool basis)
{
    return !strcmp(entry->kind, "release") && !strcmp(entry->terms->job, l->o.job) &&
           !strcmp(entry->terms->purpose, "basis") == basis;
}

/* Rounds, or basis passes, of this job that the ledger has not charged yet. After a restart the
 * charged ones must not be counted twice. */
static uint64_t still_to_do(const struct ledger_file *f, const struct train_ledger *l, bool basis)
{
    uint64_t all = basis ? l->plan.basis_passes : l->plan.rounds, done = 0;
    for (size_t i = 0; i < f->ledger.count && !l->o.afresh; i++)
        done += is_ours(&f->ledger.entry[i], l, basis);
    return done < all ? all - done : 0;
}

/* Charges the remaining releases of the plan to a copy of the account. */
static err add_rest(struct spend *all, const struct ledger_file *f, const struct train_ledger *l,
                    bool basis)
{
    struct account_event event = event_of(l, basis);
    event.count *= still_to_do(f, l, basis);
    return event.count ? spend_charge(all, &event) : ERR_NONE;
}

/* Adds the state of the ledger to the text for people. A mistyped file name creates a new ledger
 * with a full budget, and this line is where the user can see it. */
static void say_ledger(struct train_ledger *l, const struct ledger_file *f, double spent)
{
    size_t at = strlen(l->says), releases = 0;
    char *says = l->says + at;
    for (size_t i = 0; i < f->ledger.count; i++)
        releases += !strcmp(f->ledger.entry[i].kind, "release");
    if (!releases)
        at += (size_t)snprintf(says, sizeof l->says - at,
                               "\nprivacy: %.200s: new ledger without releases, nothing spent of "
                               "epsilon %.4g at delta %.3g",
                               f->path, f->spend.epsilon, f->spend.delta);
    else
        at += (size_t)snprintf(says, sizeof l->says - at,
                               "\nprivacy: %.200s: existing ledger, epsilon %.4g of %.4g at delta "
                               "%.3g spent by %zu release%s",
                               f->path, spent, f->spend.epsilon, f->spend.delta, releases,
                               releases == 1 ? "" : "s");
    uint64_t records = f->ledger.in_force->units;
    if (records != l->plan.units && at < sizeof l->says)
        snprintf(l->says + at, sizeof l->says - at,
                 "\nprivacy: warning: the ledger was last used with %llu records, these are %llu: "
                 "use one ledger for one set of records",
                 (unsigned long long)records, (unsigned long long)l->plan.units);
}

/* Adds the rest of the plan to a copy of the account of the ledger and compares the total with the
 * budget. Nothing is written: the real charges come round by round. */
static err ask(struct train_ledger *l, const struct ledger_file *f)
{
    struct spend all = {0};
    struct spend_total now = {0}, total = {0};
    err e = ERR_NONE;
    TRY(spend_open(&all, f->spend.epsilon, f->spend.delta));
    for (size_t i = 0; i < f->spend.count; i++)
        TRY_OUT(e, spend_charge(&all, &f->spend.event[i]));
    TRY_OUT(e, add_rest(&all, f, l, /*basis*/ true));
    TRY_OUT(e, add_rest(&all, f, l, /*basis*/ false));
    TRY_OUT(e, spend_after(&total, &all, NULL));
    TRY_OUT(e, spend_after(&now, &f->spend, NULL));
    if (total.epsilon <= all.epsilon)
        say_ledger(l, f, now.epsilon);
    else
        e = err_make(ERR_INPUT,
                     "%s: the privacy budget is not enough: epsilon %.4g of %.4g at delta %.3g is "
                     "spent, and %s would make it %.4g: expected a smaller epsilon, "
                     "more noise, or fewer steps",
                     f->path, now.epsilon, all.epsilon, all.delta, l->o.job, total.epsilon);
out:
    spend_close(&all);
    return e;
}

err train_ledger_ask(struct train_ledger *l)
{
    struct ledger_file f = {0};
    TRY(open_ledger(&f, l));
    err e = ask(l, &f);
    ledger_file_close(&f);
    return e;
}

/* Whether this very update was charged already: a member that restarts after the charge sends the
 * same bytes again without a second charge. */
static bool has(const struct ledger_file *f, const struct train_ledger *l,
                const struct train_ledger_made *made)
{
    for (size_t i = 0; i < f->ledger.count; i++) {
        const struct ledger_entry *entry = &f->ledger.entry[i];
        if (is_ours(entry, l, made->basis) && entry->release.round == made->round &&
            digest_equal(&entry->release.released, &made->digest))
            return true;
    }
    return false;
}

/* Whether the ledger lists a release with this digest. */
static bool released(const struct ledger_file *f, const struct digest *digest)
{
    for (size_t i = 0; i < f->ledger.count; i++)
        if (!strcmp(f->ledger.entry[i].kind, "release") &&
            digest_equal(&f->ledger.entry[i].release.released, digest))
            return true;
    return false;
}

/* Training that starts from values which this ledger released adds nothing about the records
 * (post-processing). Other starting values are recorded by their digest, so that an auditor can see
 * them. */
static void set_given(struct ledger_terms *terms, const struct ledger_file *f,
                      const struct digest *given)
{
    if (released(f, given))
        terms->bases = "private";
    else
        terms->given = *given;
}

/* sigma is computed again from clip norm and noise multiplier, with the rounding of the lattice
 * that the training used. */
err train_ledger_charge(const struct train_ledger *l, const struct train_ledger_made *made)
{
    struct ledger_file f = {0};
    struct clip_bound bound;
    struct ledger_terms terms = terms_of(l, made->basis);
    terms.dim = made->dim;
    struct ledger_release release = {.round = made->round,
                                     .charged = event_of(l, made->basis),
                                     .clip = terms.clip,
                                     .denominator = terms.denominator,
                                     .dim = made->dim,
                                     .released = made->digest};
    TRY(clip_bound_set(&bound, terms.clip));
    release.sigma = clip_sigma(&bound, terms.noise);
    TRY(open_ledger(&f, l));
    err e = ERR_NONE;
    if (!has(&f, l, made)) {
        set_given(&terms, &f, &made->given);
        e = ledger_file_plan(&f, &terms);
        if (!err_is(e)) e = ledger_file_charge(&f, &release);
    }
    ledger_file_close(&f);
    return e;
}

/* Opens the ledger and adds up all its releases: the result holds for everything the ledger
 * records, not only for this job. */
err train_ledger_spent(struct train_ledger_spent *out, const struct train_ledger *l)
{
    struct ledger_file f = {0};
    struct spend_total total = {0};
    TRY(open_ledger(&f, l));
    err e = spend_after(&total, &f.spend, NULL);
    if (!err_is(e))
        *out = (struct train_ledger_spent){.epsilon = total.epsilon,
                                           .budget = f.spend.epsilon,
                                           .delta = f.spend.delta,
                                           .lines = f.head.count,
                                           .head = f.head.hash};
    ledger_file_close(&f);
    return e;
}

json_t *train_ledger_json(const struct train_ledger_spent *spent, const char *path)
{
    char head[DIGEST_TEXT_BYTES];
    digest_text(head, &spent->head);
    return json_pack("{s:f, s:f, s:f, s:s, s:I, s:s}", "epsilon", spent->epsilon, "budget",
                     spent->budget, "delta", spent->delta, "ledger", path, "ledger_lines",
                     (json_int_t)spent->lines, "ledger_head", head);
}
