#include "client/train_ledger.h"

#include "privacy/clip.h"

#include <string.h>

static struct account_event event_of(const struct train_ledger *l)
{
    return (struct account_event){
        .noise = l->summary.noise, .sampling = l->plan.sampling, .count = l->plan.steps};
}

static err judge(struct train_ledger *l, const struct train_ledger_options *o,
                 const struct adapter *adapter, const struct dataset *data)
{
    struct bytes text = {.max = sizeof l->says - 1};
    double records = (double)data->count;
    if (data->count == 0) return err_make(ERR_INPUT, "privacy: there is no record");
    double rate = o->sampling > 0 ? o->sampling : o->train->batch / records;
    l->how = (struct train_private_options){
        .train = o->train, .sampling = rate > 1 ? 1 : rate, .clip = o->clip};
    uint64_t steps = train_private_steps(&l->how);
    if (steps == 0 || steps > UINT32_MAX)
        return err_make(ERR_INPUT, "privacy: %llu steps", (unsigned long long)steps);
    l->plan = (struct plan){.unit = LEDGER_EXAMPLE,
                            .method = "lora",
                            .bases = "seed",
                            .epsilon = o->epsilon,
                            .delta = o->delta,
                            .noise = o->noise,
                            .sampling = l->how.sampling,
                            .clip = o->clip,
                            .units = data->count,
                            .dim = adapter->value_count,
                            .rounds = 1,
                            .steps = (uint32_t)steps};
    TRY(plan_check(&l->summary, &l->plan));
    l->how.noise = l->summary.noise;
    err e = plan_text(&text, &l->plan, &l->summary);
    while (text.size && text.data[text.size - 1] == '\n')
        text.data[--text.size] = 0;
    if (!err_is(e)) memcpy(l->says, text.data, text.size + 1);
    bytes_close(&text);
    return e;
}

err train_ledger_begin(struct train_ledger *out, const struct train_ledger_options *o,
                       const struct adapter *adapter, const struct dataset *data)
{
    struct train_ledger l = {0};
    struct spend_total total;
    if (!o->ledger || !o->key)
        return err_make(ERR_INPUT, "privacy: expected --ledger FILE and --ledger-key FILE: what is "
                                   "not recorded may not leave");
    TRY(judge(&l, o, adapter, data));
    struct ledger_terms terms = plan_terms(&l.plan, &l.summary, o->job, "local");
    TRY(ledger_file_open(&l.file, o->ledger, o->key, &terms));
    struct account_event event = event_of(&l);
    err e = ledger_file_allows(&total, &l.file, &event);
    if (err_is(e))
        train_ledger_close(&l);
    else
        *out = l;
    return e;
}

err train_ledger_run(struct train_result *out, struct train_ledger *l, struct adapter *adapter,
                     struct engine *e, const struct dataset *data)
{
    struct clip_bound bound;
    TRY(train_private_run(out, adapter, e, data, &l->how));
    TRY(clip_bound_set(&bound, l->how.clip));
    struct ledger_release release = {
        .round = 1,
        .charged = event_of(l),
        .clip = l->how.clip,
        .sigma = clip_sigma(&bound, l->how.noise),
        .denominator = l->summary.denominator,
        .dim = adapter->value_count,
        .released = digest_of(adapter->value, adapter->value_count * sizeof *adapter->value)};
    return ledger_file_charge(&l->file, &release);
}

void train_ledger_close(struct train_ledger *l)
{
    ledger_file_close(&l->file);
    *l = (struct train_ledger){0};
}
