#include "coordinator/run/run_from.h"

#include "agg/adapter/adapter_file.h"
#include "base/json.h"
#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As large as a configuration that an operator may send (run_begin.c). */
enum { CONFIG_BYTES_MAX = 16 << 20 };

typedef Fedlora__V1__RunConfig run_config_t;

/* protobuf-c shares one constant for all empty strings, which must not be freed. */
static err set_text(char **out, const char *text)
{
    char *copy = strdup(text);
    if (!copy) return err_sys(ENOMEM, "a run's configuration");
    if (*out != protobuf_c_empty_string) free(*out);
    *out = copy;
    return ERR_NONE;
}

/* The message owns its bytes and frees them with free(). */
static err set_bytes(ProtobufCBinaryData *out, const void *data, size_t size)
{
    uint8_t *copy = malloc(size);
    if (!copy) return err_sys(ENOMEM, "a run's configuration");
    memcpy(copy, data, size);
    free(out->data);
    *out = (ProtobufCBinaryData){size, copy};
    return ERR_NONE;
}

/* ---- another run ---- */

/* A member that was dropped from the other run has left it, whatever its row says. */
static bool has_member(const run_config_t *c, const char *id)
{
    for (size_t i = 0; i < c->n_members; i++)
        if (!strcmp(c->members[i]->id, id)) return !c->members[i]->dropped;
    return false;
}

/* Everything but the name, and the members and rounds that were given. Members that were dropped
 * are no members of the new run. */
static err take_over(run_config_t **config, run_config_t **was)
{
    run_config_t *c = *config, *w = *was;
    TRY(set_text(&w->name, c->name));
    TRY(set_text(&w->from_run, c->from_run));
    if (c->rounds) w->rounds = c->rounds;
    /* The lists are swapped, so that each is freed with the message that holds it. */
    if (c->n_members) {
        size_t n = w->n_members;
        Fedlora__V1__MemberConfig **members = w->members;
        w->members = c->members;
        w->n_members = c->n_members;
        c->members = members;
        c->n_members = n;
    } else {
        size_t kept = 0;
        for (size_t i = 0; i < w->n_members; i++) {
            if (w->members[i]->dropped)
                message_free(w->members[i]);
            else
                w->members[kept++] = w->members[i];
        }
        w->n_members = kept;
    }
    *config = w;
    *was = c;
    return ERR_NONE;
}

/* Factors that members keep are on their machines, under the name of the origin. */
static err check_keepers(const run_config_t *config, const run_config_t *was,
                         const struct store_run *row)
{
    const struct method *method = method_find(was->method);
    /* The kept files of two runs that train at once would replace each other. */
    bool over = row->published >= was->rounds || !strcmp(row->hold, "stopped");
    if (method && method->keeps && !over)
        return err_make(ERR_INPUT,
                        "method %s: members keep factors under the name of run %s, which is not "
                        "over; stop it first",
                        method->name, row->name);
    for (size_t i = 0; method && method->keeps && i < config->n_members; i++)
        if (!has_member(was, config->members[i]->id))
            return err_make(ERR_INPUT,
                            "method %s: each member has kept factors of its own since round 1, "
                            "which %s does not have",
                            method->name, config->members[i]->id);
    return ERR_NONE;
}

/* The row and not the live run, because the row is the state that survives a crash: a round
 * that is being published at this moment counts only once it is committed. */
static err of_run(struct run_from *out, struct run_shop *shop, run_config_t **config)
{
    struct arena arena = {0};
    struct store_run *row = NULL;
    run_config_t *was = NULL;
    const char *name = (*config)->from_run;
    err e = ERR_NONE;
    TRY_OUT(e, store_run_named(&row, shop->store, name, &arena));
    if (!row) {
        e = err_make(ERR_INPUT, "there is no run \"%.100s\" to continue", name);
        goto out;
    }
    if (!row->state.size || !row->published) {
        e = err_make(ERR_STATE, "run %s has not published a state that could be continued", name);
        goto out;
    }
    TRY_OUT(e, message_unpack(&was, &fedlora__v1__run_config__descriptor, row->config,
                              row->config_size));
    TRY_OUT(e, check_keepers(*config, was, row));
    if (!*(*config)->method) TRY_OUT(e, take_over(config, &was));
    out->blobs.state = row->state;
    out->blobs.frozen = row->frozen;
    out->blobs.memory = row->memory;
out:
    message_free(was);
    arena_close(&arena);
    return e;
}

/* ---- a file ---- */

/* An upload, or a blob that another run has. */
static err find_blob(struct store_blob *out, struct run_shop *shop, const struct digest *digest,
                     const char *what)
{
    struct store_blob blob = {.digest = *digest};
    char text[DIGEST_TEXT_BYTES];
    bool known = false;
    TRY(store_blob_known(&known, shop->store, digest));
    digest_text(text, digest);
    if (!known || err_is(blob_size(&blob.size, shop->store->dir, digest)))
        return err_make(ERR_INPUT, "%s %.16s is missing; upload it first", what, text);
    *out = blob;
    return ERR_NONE;
}

/* The operator has uploaded the file before, so it is pinned until this run names it. */
static err of_file(struct run_from *out, struct run_shop *shop, const run_config_t *c)
{
    struct digest digest;
    if (c->from_state.len != DIGEST_BYTES)
        return err_make(ERR_INPUT, "from_state: %zu bytes, expected %d", c->from_state.len,
                        DIGEST_BYTES);
    memcpy(digest.byte, c->from_state.data, DIGEST_BYTES);
    return find_blob(&out->blobs.state, shop, &digest, "the state");
}

/* The files that belong to the state. The server optimizer's memory is never sent to anyone. */
static err find_parts(struct run_from *out, struct run_shop *shop, const run_config_t *c,
                      const struct adapter_file *state)
{
    const struct method *method = method_find(c->method);
    struct digest digest;
    if (adapter_file_needs_frozen(state)) {
        TRY(digest_parse(&digest, state->meta.frozen));
        TRY(find_blob(&out->blobs.frozen, shop, &digest, "the file of frozen factors"));
    } else if (method && method->frozen && *state->meta.frozen) {
        return err_make(ERR_INPUT,
                        "the state holds its frozen factors; export it with `fedlora run "
                        "export --parts`, which leaves them in a file of their own");
    }
    if (*c->from_run) return ERR_NONE;
    if (*state->meta.memory)
        return err_make(ERR_INPUT,
                        "the state belongs to a run with a server optimizer, whose memory never "
                        "leaves its coordinator; continue it there, with --from RUN");
    if (method && method->keeps)
        return err_make(ERR_INPUT,
                        "method %s: members have kept factors of their own; continue it on its own "
                        "coordinator, with --from RUN",
                        method->name);
    return ERR_NONE;
}

/* ---- the state says what the run was ---- */

/* A field that the operator left out is filled in; one that was given must agree, so that
 * nobody believes to train another method than the state has. */
static err same_text(char **field, const char *what, const char *is)
{
    if (!**field) return set_text(field, is);
    if (!strcmp(*field, is)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s %.100s, but the state is of %s %.100s", what, *field, what, is);
}

/* Sums of updates on different base weights mean nothing, so the digests must be equal. */
static err same_base(run_config_t *c, const char *text)
{
    struct digest digest;
    char wanted[DIGEST_TEXT_BYTES];
    TRY(digest_parse(&digest, text));
    if (!c->base_digest.len) return set_bytes(&c->base_digest, digest.byte, DIGEST_BYTES);
    if (c->base_digest.len == DIGEST_BYTES &&
        !memcmp(c->base_digest.data, digest.byte, DIGEST_BYTES))
        return ERR_NONE;
    memcpy(digest.byte, c->base_digest.data, c->base_digest.len < DIGEST_BYTES ? 0 : DIGEST_BYTES);
    digest_text(wanted, &digest);
    return err_make(ERR_INPUT, "base model %.16s, but the state is of base %.16s", wanted, text);
}

/* "key=value", as an operator would have given them. */
static err take_options(run_config_t *c, const char *text)
{
    json_t *map = NULL, *item;
    const char *key;
    err e = ERR_NONE;
    if (c->n_method_options || !*text) return ERR_NONE;
    TRY(json_parse(&map, text, strlen(text), "fedlora.options"));
    char **list = calloc(json_object_size(map) + 1, sizeof *list);
    if (!list) e = err_sys(ENOMEM, "a run's configuration");
    json_object_foreach(map, key, item)
    {
        char option[160];
        if (err_is(e)) break;
        if (json_is_string(item))
            snprintf(option, sizeof option, "%s=%s", key, json_string_value(item));
        else
            snprintf(option, sizeof option, "%s=%.17g", key, json_number_value(item));
        list[c->n_method_options] = strdup(option);
        if (!list[c->n_method_options++]) e = err_sys(ENOMEM, "a run's configuration");
    }
    json_decref(map);
    c->method_options = list;
    return e;
}

/* Shapes that an operator gives are those of the base, of which the state may have a part. */
static err give_modules(run_config_t *c, struct run_from *out, const struct bytes *packed)
{
    Fedlora__V1__HelloRequest *copy = NULL;
    TRY(message_unpack(&out->modules, &fedlora__v1__hello_request__descriptor, packed->data,
                       packed->size));
    if (c->n_modules) return ERR_NONE;
    TRY(message_unpack(&copy, &fedlora__v1__hello_request__descriptor, packed->data, packed->size));
    c->modules = copy->modules;
    c->n_modules = copy->n_modules;
    copy->modules = NULL;
    copy->n_modules = 0;
    message_free(copy);
    return ERR_NONE;
}

/* Shapes are in the metadata of every state. So the run knows its modules before any member has
 * said Hello, and its first round can open as soon as members are there. */
static err take_modules(struct run_from *out, run_config_t *c, const struct adapter_file *state)
{
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
    Fedlora__V1__ModuleShape *shape = calloc(state->count + 1, sizeof *shape);
    Fedlora__V1__ModuleShape **list = calloc(state->count + 1, sizeof *list);
    struct bytes packed = {.max = CONFIG_BYTES_MAX};
    err e = shape && list ? ERR_NONE : err_sys(ENOMEM, "the modules of a state");
    for (size_t i = 0; i < state->count && !err_is(e); i++) {
        fedlora__v1__module_shape__init(&shape[i]);
        shape[i].name = (char *)(uintptr_t)state->module[i].name;
        shape[i].d_out = state->module[i].d_out;
        shape[i].d_in = state->module[i].d_in;
        list[i] = &shape[i];
    }
    hello.modules = list;
    hello.n_modules = state->count;
    if (!err_is(e)) e = message_pack(&packed, &hello.base);
    if (!err_is(e)) e = give_modules(c, out, &packed);
    bytes_close(&packed);
    free(shape);
    free(list);
    return e;
}

/* A file that an operator made for the other run counts as given by the operator here too. */
static err take_frozen(run_config_t *c, const struct store_blob *frozen)
{
    struct method_options options;
    const struct method *method = method_find(c->method);
    if (!frozen->size || !method) return ERR_NONE;
    TRY(method_options_parse(&options, method, (const char *const *)c->method_options,
                             c->n_method_options));
    if (options.basis != METHOD_BASIS_WEIGHTS) return ERR_NONE;
    return set_bytes(&c->frozen_digest, frozen->digest.byte, DIGEST_BYTES);
}

/* Fields that were left out follow from the state. Its number is that of the round that it
 * starts. */
static err read_state(struct run_from *out, struct run_shop *shop, run_config_t *c)
{
    struct blob_path path = blob_path(shop->store->dir, &out->blobs.state.digest);
    struct adapter_file state = {0};
    char digest[DIGEST_TEXT_BYTES];
    err e = ERR_NONE;
    TRY(adapter_file_map(&state, path.text));
    const struct adapter_file_meta *meta = &state.meta;
    /* A start state (round 1) has nothing that a new run would not make by itself. */
    if (meta->kind != ADAPTER_FILE_STATE || !text_is_name(meta->run, LIMIT_NAME_BYTES - 1) ||
        meta->round < 2) {
        e = err_make(ERR_INPUT, "the file is not the published state of a run");
        goto out;
    }
    TRY_OUT(e, same_text(&c->method, "method", meta->method));
    TRY_OUT(e, same_base(c, meta->base));
    TRY_OUT(e, find_parts(out, shop, c, &state));
    TRY_OUT(e, take_options(c, meta->options));
    TRY_OUT(e, take_modules(out, c, &state));
    TRY_OUT(e, set_text(&c->origin, meta->run));
    TRY_OUT(e, set_bytes(&c->from_state, out->blobs.state.digest.byte, DIGEST_BYTES));
    TRY_OUT(e, take_frozen(c, &out->blobs.frozen));
    /* A state is numbered by the round that it starts. */
    c->from_round = meta->round - 1;
    if (!c->rank) c->rank = meta->rank;
    if (c->alpha == 0) c->alpha = meta->alpha;
    c->rslora |= meta->rslora;
    out->rank = meta->rank;
    out->alpha = meta->alpha;
    out->rslora = meta->rslora;
    snprintf(out->options, sizeof out->options, "%s", meta->options);
    digest_text(digest, &out->blobs.state.digest);
    snprintf(out->says, sizeof out->says, "round %u of run %s, state %.16s", c->from_round,
             *c->from_run ? c->from_run : meta->run, digest);
out:
    adapter_file_close(&state);
    return e;
}

err run_from_find(struct run_from *out, struct run_shop *shop, run_config_t **config)
{
    struct run_from from = {0};
    run_config_t *c = *config;
    err e = ERR_NONE;
    /* These two follow from the state; an operator cannot choose them. */
    c->from_round = 0;
    TRY(set_text(&c->origin, ""));
    /* An old client sends neither field, a hostile one may send both. */
    if (!*c->from_run && !c->from_state.len) return ERR_NONE;
    if (*c->from_run && c->from_state.len)
        return err_make(ERR_INPUT, "from_run and from_state: expected one of them");
    e = *c->from_run ? of_run(&from, shop, config) : of_file(&from, shop, c);
    if (!err_is(e)) e = read_state(&from, shop, *config);
    if (!err_is(e) && (*config)->rounds <= (*config)->from_round)
        e = err_make(ERR_INPUT,
                     "rounds: %u, but the state is that of round %u, and numbers of rounds go on; "
                     "expected more",
                     (*config)->rounds, (*config)->from_round);
    if (err_is(e)) {
        run_from_close(&from);
        return err_in(e, "--from");
    }
    *out = from;
    return ERR_NONE;
}

/* The blobs are files of the store and need no closing. */
void run_from_close(struct run_from *from)
{
    message_free(from->modules);
    from->modules = NULL;
}

/* A state's own factors have its rank and scale. Fresh factors are made for each round. */
static err check_scale(const struct run_from *from, const run_config_t *c)
{
    uint32_t rank = run_config_rank_max(c);
    double alpha = run_config_alpha(c, NULL, rank);
    if (run_config_method(c)->fresh) return ERR_NONE;
    if (rank != from->rank)
        return err_make(ERR_INPUT, "rank: %u, but the state has rank %u", rank, from->rank);
    if (alpha != from->alpha || c->rslora != from->rslora)
        return err_make(ERR_INPUT, "alpha: %g%s, but the state has alpha %g%s", alpha,
                        c->rslora ? " with rslora" : "", from->alpha,
                        from->rslora ? " with rslora" : "");
    return ERR_NONE;
}

/* The options are compared as the text that states carry, which has every option that is not at
 * its default. */
err run_from_check(const struct run_from *from, const run_config_t *c)
{
    struct method_options options;
    struct arena arena = {0};
    const char *text = NULL;
    if (!from->blobs.state.size) return ERR_NONE;
    if (c->privacy)
        return err_make(ERR_INPUT,
                        "--from: the ledger and the plan of a run with privacy cover all "
                        "of its rounds, so it cannot begin with the state of another run");
    err e = check_scale(from, c);
    run_config_options(&options, c);
    if (!err_is(e)) e = method_options_text(&text, &options, &arena);
    if (!err_is(e) && strcmp(text, from->options) != 0)
        e = err_make(ERR_INPUT, "options of the method: %s, but the state was made with %s",
                     *text ? text : "none", *from->options ? from->options : "none");
    arena_close(&arena);
    return err_is(e) ? err_in(e, "--from") : e;
}

/* Targets given by the operator could choose other modules than the state has; the text then
 * names the first that differs. */
err run_from_check_modules(const struct run_from *from, const struct run *run)
{
    struct digest is, wanted;
    if (!from->blobs.state.size) return ERR_NONE;
    REQUIRE(run->modules);
    TRY(run_config_modules_digest(&is, run->modules));
    TRY(run_config_modules_digest(&wanted, from->modules));
    if (digest_equal(&is, &wanted)) return ERR_NONE;
    TRY(run_config_same_modules(from->modules, run->modules, "the run's"));
    return err_make(ERR_INPUT, "--from: the run adapts %zu modules, but the state has %zu",
                    run->modules->n_modules, from->modules->n_modules);
}

/* As after a restart: the machine takes the round of the state for published and durable. */
void run_from_begin(struct run *run, const struct run_from *from)
{
    uint32_t round = run->config->from_round;
    if (!from->blobs.state.size) return;
    run->newest = from->blobs;
    run->opened_saved = round;
    round_restore(&run->round, &(struct round_restored){
                                   .shapes_known = true,
                                   .started = true,
                                   .published = round,
                                   .opened = round,
                               });
}
