/* fedlora inspect: show the contents of a base model, adapter, state, update or GGUF file.
 *
 * The kind is recognised by the contents, not by the name. All results are built as one JSON object
 * and printed from it, so that --json and the tables cannot differ. */
#include "base/file.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "client/command/command.h"
#include "client/command/inspect.h"
#include "client/output/report.h"
#include "engine/model/model.h"
#include "engine/tokens/chat.h"
#include "engine/tokens/tokenizer.h"

#include <stdio.h>
#include <string.h>

struct inspect_command {
    struct command_common common;
    bool digest;
};

static const struct option_row rows[] = {
    {.flag = "digest",
     .kind = OPTION_FLAG,
     .at = offsetof(struct inspect_command, digest),
     .fallback = "yes",
     .help = "do not compute digests, which read the whole file"},
};

/* ---- a base model ---- */

/* Totals over the tensors of a base model, and the list of them. */
struct sums {
    uint64_t parameters;
    uint64_t count[DTYPE_COUNT]; /* tensors of each type */
    json_t *tensors;
};

/* Names are those of Hugging Face also for a GGUF, so that two formats of one model can be
 * compared. */
static void add_weight(void *user, const char *name, const struct weight *w)
{
    struct sums *s = user;
    s->parameters += (uint64_t)w->rows * w->cols;
    s->count[w->dtype]++;
    json_t *shape = w->cols == 1 ? json_pack("[i]", (int)w->rows)
                                 : json_pack("[i, i]", (int)w->rows, (int)w->cols);
    json_array_append_new(s->tensors, json_pack("{s:s, s:s, s:o}", "name", name, "dtype",
                                                dtype_name(w->dtype), "shape", shape));
}

/* Only the fields that the kind of scaling uses. */
static json_t *rope_json(const struct rope *r)
{
    static const char *const name[] = {"default", "linear",   "llama3", "factors",
                                       "yarn",    "longrope", "dynamic"};
    json_t *o = json_pack("{s:s, s:f}", "kind", name[r->kind], "theta", r->theta);
    if (r->factor > 0) json_object_set_new(o, "factor", json_real(r->factor));
    if (r->kind == ROPE_LLAMA3) {
        json_object_set_new(o, "low_freq_factor", json_real(r->low_freq_factor));
        json_object_set_new(o, "high_freq_factor", json_real(r->high_freq_factor));
    }
    if (r->kind == ROPE_YARN) {
        json_object_set_new(o, "beta_fast", json_real(r->beta_fast));
        json_object_set_new(o, "beta_slow", json_real(r->beta_slow));
    }
    if (r->attention_factor > 0)
        json_object_set_new(o, "attention_factor", json_real((double)r->attention_factor));
    if (r->original_positions > 0)
        json_object_set_new(o, "original_positions", json_integer(r->original_positions));
    return o;
}

/* Switches that are not the usual ones. */
static void add_switches(json_t *out, const struct arch *a)
{
    const struct {
        const char *key;
        float value;
    } factor[] = {{"embed_scale", a->embed_scale},         {"residual_scale", a->residual_scale},
                  {"attention_scale", a->attention_scale}, {"attention_cap", a->attention_cap},
                  {"logit_scale", a->logit_scale},         {"logit_cap", a->logit_cap}};
    if (a->rotary_dim > 0) json_object_set_new(out, "rotary_dim", json_integer(a->rotary_dim));
    if (a->fused) json_object_set_new(out, "fused", json_true());
    if (a->norms != NORMS_BEFORE)
        json_object_set_new(out, "norms",
                            json_string(a->norms == NORMS_AFTER ? "after" : "around"));
    if (a->activation == ACTIVATION_GELU_TANH)
        json_object_set_new(out, "activation", json_string("gelu_tanh"));
    for (size_t i = 0; i < sizeof factor / sizeof *factor; i++)
        if (factor[i].value != 0)
            json_object_set_new(out, factor[i].key, json_real((double)factor[i].value));
}

/* The keys are the names of struct arch. Two bases with equal values here can still differ in their
 * weights, which only the digest shows. */
static void add_arch(json_t *out, const struct arch *a)
{
    const struct {
        const char *key;
        uint32_t value;
    } number[] = {{"layers", a->layers},     {"d_model", a->d_model},
                  {"heads", a->heads},       {"kv_heads", a->kv_heads},
                  {"head_dim", a->head_dim}, {"d_ffn", a->d_ffn},
                  {"vocab", a->vocab},       {"max_positions", a->max_positions},
                  {"window", a->window}};
    json_object_set_new(out, "family", json_string(a->family->model_type));
    for (size_t i = 0; i < sizeof number / sizeof *number; i++)
        json_object_set_new(out, number[i].key, json_integer(number[i].value));
    json_object_set_new(out, "rope", rope_json(&a->rope));
    json_object_set_new(out, "rms_eps", json_real((double)a->rms_eps));
    json_object_set_new(out, "tied", json_boolean(a->tied));
    json_object_set_new(out, "qkv_bias", json_boolean(a->qkv_bias));
    json_object_set_new(out, "qk_norm", json_boolean(a->qk_norm != QK_NORM_NONE));
    add_switches(out, a);
}

/* A base without a usable tokenizer can still be trained on rows of token ids, so the reason is
 * shown as a field and is not an error. */
static void add_tokenizer(json_t *out, const char *path)
{
    struct tokenizer *t = NULL;
    struct chat *chat = NULL;
    err e = tokenizer_open(&t, path);
    if (err_is(e)) {
        json_object_set_new(out, "tokenizer", json_null());
        json_object_set_new(out, "tokenizer_problem", json_string(e.text));
        return;
    }
    json_object_set_new(out, "tokenizer", json_string(tokenizer_kind(t)));
    e = chat_open(&chat, t, NULL);
    json_object_set_new(out, "chat_template", err_is(e) ? json_null() : json_string("own"));
    chat_close(chat);
    if (err_is(e) && tokenizer_template(t, "default"))
        json_object_set_new(out, "chat_template_problem", json_string(e.text));
    tokenizer_close(t);
}

/* The digest by which runs name their base; it reads all weights. */
static err digest_add_model(json_t *out, const struct model *m)
{
    struct digest d;
    char text[DIGEST_TEXT_BYTES];
    TRY(model_digest(&d, m));
    digest_text(text, &d);
    json_object_set_new(out, "digest", json_string(text));
    return ERR_NONE;
}

/* The list of tensors comes last, because it is the longest part of the output. */
static err inspect_base(json_t *out, const struct inspect_command *o, const char *path)
{
    struct model m = {0};
    TRY(model_open(&m, path));
    struct sums s = {.tensors = json_array()};
    json_object_set_new(out, "kind", json_string("base"));
    json_object_set_new(out, "path", json_string(path));
    json_object_set_new(out, "format", json_string(model_is_gguf(&m) ? "GGUF" : "Hugging Face"));
    add_arch(out, &m.arch);
    if (m.images) json_object_set_new(out, "image_tensors_not_used", json_integer(m.image_tensors));
    err e = model_each_weight(&m, add_weight, &s);
    json_t *types = json_object();
    for (int t = 0; t < DTYPE_COUNT; t++)
        if (s.count[t])
            json_object_set_new(types, dtype_name((enum dtype)t),
                                json_integer((json_int_t)s.count[t]));
    json_object_set_new(out, "parameters", json_integer((json_int_t)s.parameters));
    json_object_set_new(out, "tensors_by_dtype", types);
    add_tokenizer(out, path);
    if (o->digest && !err_is(e)) e = digest_add_model(out, &m);
    if (model_is_gguf(&m)) inspect_gguf_add(out, &m.gguf, false);
    json_object_set_new(out, "tensors", s.tensors);
    model_close(&m);
    return e;
}

/* ---- what is it? ---- */

/* A path that is too long contains nothing that could be opened. */
static bool holds(const char *dir, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    err e = file_join(path, sizeof path, dir, name);
    return !err_is(e) && file_exists(path);
}

/* By the magic number: files of Ollama have no extension. */
static bool is_gguf(const char *path)
{
    struct file_map map = {0};
    err e = file_map_open(&map, path);
    bool found = !err_is(e) && map.size >= 4 && memcmp(map.data, "GGUF", 4) == 0;
    file_map_close(&map);
    return found;
}

/* A file that ends with its list of tensors is a valid listing (of gguf-split, or of a test). A
 * file that ends inside the data of its tensors is broken. */
static err open_gguf(struct gguf *out, const char *path)
{
    err whole = gguf_open(out, path, GGUF_WITH_DATA);
    if (!err_is(whole)) return whole;
    TRY(gguf_open(out, path, GGUF_HEADER_ONLY));
    if (out->map.size <= out->data_offset) return ERR_NONE;
    gguf_close(out);
    return whole;
}

/* A GGUF that is not a base model (an adapter, a vocabulary, an unsupported architecture) is listed
 * by its keys and tensors, together with the reason why it cannot be a base. */
static err inspect_gguf(json_t *out, const struct inspect_command *o, const char *path)
{
    err base = inspect_base(out, o, path);
    if (!err_is(base)) return ERR_NONE;
    struct gguf g = {0};
    TRY(open_gguf(&g, path));
    json_object_clear(out);
    json_object_set_new(out, "kind", json_string("gguf"));
    json_object_set_new(out, "path", json_string(path));
    json_object_set_new(out, "no_base_because", json_string(base.text));
    inspect_gguf_add(out, &g, true);
    err e = o->digest ? inspect_digest_add(out, path) : ERR_NONE;
    gguf_close(&g);
    return e;
}

/* An adapter directory may contain a config.json too, so adapter_config.json is looked for
 * first. */
static err inspect_any(json_t *out, const struct inspect_command *o, const char *path)
{
    if (!file_exists(path)) return err_make(ERR_INPUT, "%s: no such file or directory", path);
    if (file_is_dir(path)) {
        if (holds(path, "adapter_config.json")) return inspect_adapter(out, path, o->digest);
        if (holds(path, "config.json")) return inspect_base(out, o, path);
        return err_make(ERR_INPUT,
                        "%s: expected a directory with config.json (base model) or "
                        "adapter_config.json (adapter)",
                        path);
    }
    if (is_gguf(path)) return inspect_gguf(out, o, path);
    return inspect_safetensors(out, path, o->digest);
}

/* Tables show 14 rows unless --verbose is given: a model has hundreds of tensors. */
static err inspect_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    const struct inspect_command *o = options;
    json_t *out = json_object();
    if (!out) return err_make(ERR_MACHINE, "no memory for the report");
    err e = inspect_any(out, o, arguments->item[0]);
    if (err_is(e)) {
        json_decref(out);
        return e;
    }
    struct report_options how = {.json = o->common.json, .rows_max = o->common.verbose ? 0 : 14};
    return report_print(out, &how);
}

const struct command command_inspect = {
    .name = "inspect",
    .purpose = "show the contents of a base model, adapter, state, update or GGUF file",
    .usage = "PATH [--json] [--verbose] [--no-digest]",
    .example = "fedlora inspect SmolLM2-135M-Instruct",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct inspect_command),
    .least = 1,
    .most = 1,
    .run = inspect_run,
};
