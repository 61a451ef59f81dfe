/* Options of a simulation: client/command/simulate_options.h. */
#include "client/command/simulate_options.h"

#include "base/file.h"
#include "base/text.h"
#include "client/command/remote_json.h"
#include "kernels/backend.h"
#include "proto/message.h"
#include "sim/ranks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* "64,16,4": members take them in turn. */
static err take_ranks(struct fleet_options *f, const char *text, struct arena *arena)
{
    uint32_t *rank = NULL;
    if (!text) return ERR_NONE;
    TRY(arena_take(&rank, arena, strlen(text) + 1, sizeof *rank));
    for (const char *at = text;;) {
        char one[16];
        int64_t value = 0;
        size_t n = strcspn(at, ",");
        snprintf(one, sizeof one, "%.*s", (int)(n < 15 ? n : 15), at);
        err e = text_parse_int(&value, one, 1, LIMIT_RANK);
        if (err_is(e)) return err_in(e, "--ranks");
        rank[f->ranks++] = (uint32_t)value;
        if (!at[n]) break;
        at += n + 1;
    }
    f->rank = rank;
    return ERR_NONE;
}

/* All verbs share one table of options, so an option of another verb must be refused by hand. */
err simulate_check_verb(const struct simulate_command *o, enum simulate_verb verb)
{
    const struct command_given split[] = {{"write", o->write != NULL}};
    const struct command_given plan[] = {{"methods", o->methods != NULL}};
    if (verb != SIMULATE_SPLIT) TRY(command_check_unused(split, 1, "simulate split"));
    if (verb != SIMULATE_PLAN) TRY(command_check_unused(plan, 1, "simulate plan"));
    if (verb == SIMULATE_PLAN || o->train) return ERR_NONE;
    return err_make(ERR_INPUT, "--data is missing: expected training data, a file or a folder");
}

/* An empty text counts as absent, so that one cell of a sweep can turn the option off. */
static bool has_test(const struct simulate_command *o)
{
    return o->test && *o->test;
}

static err check_split(const struct simulate_command *o)
{
    bool needs = o->split != DEAL_IID && o->train && !file_is_dir(o->train);
    if (needs && (!o->by || !*o->by))
        return err_make(ERR_INPUT, "--split %s needs --by FIELD, the field with a row's label",
                        deal_kinds[o->split]);
    if (o->run.base == NULL) return err_make(ERR_INPUT, "--base is missing: expected a base model");
    return ERR_NONE;
}

err simulate_fleet_options(struct fleet_options *out, const struct simulate_command *o,
                           struct arena *arena)
{
    struct fleet_options f = {
        .base = o->run.base,
        .train = o->train,
        .test = has_test(o) ? o->test : NULL,
        .frozen = o->run.frozen,
        .by = o->by && *o->by ? o->by : NULL,
        .template = o->template && *o->template ? o->template : NULL,
        .split = {.kind = (enum deal_kind)o->split,
                  .members = (size_t)o->clients,
                  .alpha = o->split_alpha,
                  .shards = (size_t)o->shards,
                  .size_sigma = o->size_sigma,
                  .seed = (uint64_t)o->run.common.seed},
        .devices = {.jitter = o->jitter, .seed = (uint64_t)o->run.common.seed},
        .seq = (uint32_t)o->run.training.seq,
        .eos = o->run.training.eos,
        .bos = o->run.training.bos,
        .split_rows = o->run.training.boundary == TRAINING_BOUNDARY_SPLIT};
    TRY(check_split(o));
    err e = devices_parse(&f.devices, &o->classes);
    if (err_is(e)) return err_in(e, "--class");
    if (o->trace) e = devices_trace(&f.devices, o->trace, arena);
    if (err_is(e)) return err_in(e, "--trace");
    TRY(take_ranks(&f, o->ranks, arena));
    e = text_parse_part(&f.held_out, o->held_out, 0, 0.9);
    if (err_is(e)) return err_in(e, "--held-out");
    *out = f;
    return ERR_NONE;
}

/* Training of private records is in float32 unless bf16 is asked for (engine/train/
 * train_private.h). */
enum dtype simulate_precision(const struct simulate_command *o)
{
    enum dtype asked = training_dtype(o->run.common.precision);
    bool records = o->run.privacy == RUN_PRIVACY_EXAMPLE;
    return asked == DTYPE_NONE && records ? DTYPE_F32 : asked;
}

/* Several workers have one core each; a single one has the threads that the user allows. Only the
 * CPU can be shared, so a GPU is used by one worker, if it is asked for. */
struct pool_options simulate_pool_options(const struct simulate_command *o)
{
    /* Ranks of one machine share its cores, so each of them takes one unless the user says more. */
    bool one = ranks.count > 1 && !o->run.common.threads;
    int threads = backend_threads(one ? 1 : (int)o->run.common.threads);
    const char *device = o->run.common.device;
    bool cpu = !strcmp(device, "auto") || !strcmp(device, "cpu");
    return (struct pool_options){
        .workers = o->workers ? (size_t)o->workers
                   : cpu      ? (size_t)threads
                              : 1,
        .engine = {.device = cpu ? "cpu" : device,
                   .precision = simulate_precision(o),
                   .threads = threads,
                   .tokens = (size_t)(o->run.training.batch * o->run.training.seq),
                   .checkpoint = o->checkpoint}};
}

err simulate_attack(struct attack *out, const struct simulate_command *o)
{
    struct attack a = {.vanish = o->vanish, .seed = (uint64_t)o->run.common.seed};
    err e = attack_parse(&a, o->attack);
    if (err_is(e)) return err_in(e, "--attack");
    *out = a;
    return ERR_NONE;
}

/* A run without a rank of its own takes those that its members offer. */
err simulate_check_ranks(const struct fleet_options *f, const struct simulate_command *o)
{
    bool ranked = o->run.rank > 0 || f->ranks > 0;
    for (size_t i = 0; i < f->devices.classes && !ranked; i++)
        ranked = f->devices.class[i].rank > 0;
    return ranked ? ERR_NONE
                  : err_make(ERR_INPUT, "--rank or --ranks is missing: expected LoRA ranks");
}

/* "configs/tiny.ini" gives "tiny". A name that begins with a dot keeps it. A name that is too long
 * becomes empty and is refused below, since a cut name could be that of another run. */
err simulate_run_name(char out[LIMIT_NAME_BYTES], const struct simulate_command *o,
                      const struct option_list *arguments)
{
    const char *name = o->name ? o->name : "simulated";
    int n = (int)strlen(name);
    if (!o->name && arguments->count) {
        const char *slash = strrchr(arguments->item[0], '/');
        name = slash ? slash + 1 : arguments->item[0];
        const char *dot = strrchr(name, '.');
        n = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    }
    snprintf(out, LIMIT_NAME_BYTES, "%.*s", n < LIMIT_NAME_BYTES ? n : 0, name);
    if (text_is_name(out, LIMIT_NAME_BYTES - 1)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "\"%.60s\" is not a run name: expected letters, digits, '.', '_' and '-'; "
                    "--run NAME gives another one",
                    name);
}

/* The settings are kept with the results and name every choice that made them. The base is named by
 * its path and the fleet makes its own members, so the run's digest and members are left out. */
err simulate_settings(char **out, const struct simulate_command *o,
                      const Fedlora__V1__RunConfig *config)
{
    json_t *all = NULL;
    TRY(remote_json(&all, &config->base));
    json_object_del(all, "base_digest");
    json_object_del(all, "members");
    json_t *own =
        json_pack("{s:s,s:s,s:s,s:s*,s:s*,s:f,s:f,s:f}", "base", o->run.base, "data", o->train,
                  "split", deal_kinds[o->split], "by", o->by, "template", o->template,
                  "split_alpha", o->split_alpha, "size_sigma", o->size_sigma, "jitter", o->jitter);
    bool good = own && json_object_update(all, own) == 0;
    if (o->trace) good = json_object_set_new(all, "trace", json_string(o->trace)) == 0 && good;
    if (o->attack) good = json_object_set_new(all, "attack", json_string(o->attack)) == 0 && good;
    if (o->vanish > 0) good = json_object_set_new(all, "vanish", json_real(o->vanish)) == 0 && good;
    json_t *classes = json_array();
    for (size_t i = 0; i < o->classes.count; i++)
        good = json_array_append_new(classes, json_string(o->classes.item[i])) == 0 && good;
    good = json_object_set_new(all, "device_classes", classes) == 0 && good;
    if (good) *out = json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(10));
    json_decref(own);
    json_decref(all);
    return *out ? ERR_NONE : err_sys(ENOMEM, "simulate");
}

/* Members hold no rows back for the run, because the simulation measures its states itself. */
err simulate_setup(struct simulate_setup *out, const struct simulate_command *o,
                   const struct option_list *arguments, struct arena *arena)
{
    struct simulate_setup *s = out;
    *s = (struct simulate_setup){.config = FEDLORA__V1__RUN_CONFIG__INIT};
    TRY(simulate_run_name(s->name, o, arguments));
    err e = early_parse(&s->early, o->early);
    if (err_is(e)) return err_in(e, "--stop");
    if (s->early.any && !has_test(o))
        return err_make(ERR_INPUT, "--stop has no effect without --test");
    if ((o->base_line || o->pooled_line || o->alone_line) && !has_test(o))
        return err_make(ERR_INPUT, "reference lines are measured on --test, which is missing");
    /* A rate that trains nothing is most likely a forgotten line. */
    if (o->reference_lr > 0 && !o->pooled_line && !o->alone_line)
        return err_make(ERR_INPUT, "--reference-lr has no effect without --reference-pooled or "
                                   "--reference-alone");
    TRY(simulate_fleet_options(&s->fleet, o, arena));
    TRY(simulate_check_ranks(&s->fleet, o));
    TRY(run_options_config(&s->config, &o->run, arena));
    s->config.name = s->name;
    s->config.evaluate_every = 0;
    return ERR_NONE;
}

void simulate_setup_close(struct simulate_setup *s)
{
    message_free(s->config.training);
    s->config.training = NULL;
}
