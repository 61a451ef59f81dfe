/* fedlora verify: compare a published state with its manifest, without the coordinator.
 *
 * The manifest says which base, method, updates and programs the state was made from, and is signed
 * with the key of the coordinator's audit log. Each difference is named. */
#include "client/command/command.h"

#include "agg/adapter/adapter_file.h"
#include "agg/adapter/state_whole.h"
#include "base/file.h"
#include "client/output/report.h"
#include "lineage/manifest.h"

#include <stdio.h>
#include <string.h>

struct verify_command {
    struct command_common common;
    const char *key;
};
static const struct option_row rows[] = {
    {.flag = "key",
     .kind = OPTION_TEXT,
     .required = true,
     .at = offsetof(struct verify_command, key),
     .value = "FILE",
     .help = "public key (PEM) of the coordinator's audit log, audit.pub"},
};

struct verify {
    const struct verify_command *o;
    const json_t *about; /* of the manifest */
    json_t *differences;
};

/* Each as soon as it is found: the first one may be all that a person needs. */
static void differs(void *context, const char *text)
{
    struct verify *v = context;
    json_array_append_new(v->differences, json_string(text));
    if (!v->o->common.json) printf("%s\n", text);
}

static const char *about(const struct verify *v, const char *key)
{
    const char *text = json_string_value(json_object_get(v->about, key));
    return text ? text : "";
}

/* run export --parts has left frozen factors beside the state. */
static err compare_frozen(struct verify *v, const char *state)
{
    char path[LIMIT_PATH_BYTES], is[DIGEST_TEXT_BYTES], text[512];
    struct digest digest;
    if ((size_t)snprintf(path, sizeof path, "%s.frozen", state) >= sizeof path ||
        !*about(v, "frozen") || !file_exists(path))
        return ERR_NONE;
    TRY(digest_of_file(&digest, path));
    digest_text(is, &digest);
    if (!strcmp(is, about(v, "frozen"))) return ERR_NONE;
    snprintf(text, sizeof text, "frozen factors: %.128s has %s, the manifest %s", path, is,
             about(v, "frozen"));
    differs(v, text);
    return ERR_NONE;
}

/* A state to which its frozen factors were added has another digest than was published. */
static err refuse_whole(const struct verify *v, const char *path, const struct digest *digest)
{
    struct digest needs;
    char is[DIGEST_TEXT_BYTES];
    bool needed = true;
    digest_text(is, digest);
    if (!*about(v, "frozen") || !strcmp(is, about(v, "state"))) return ERR_NONE;
    TRY(state_whole_needs(&needed, &needs, path));
    if (needed) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: has the frozen factors in it, so it is not the file that was published; "
                    "fedlora run export --parts writes that one",
                    path);
}

/* The digest alone decides whether the file is the published one. The metadata is compared as well
 * because it names what a wrong file is. */
static err compare(struct verify *v, const json_t *manifest, const char *path)
{
    struct adapter_file file = {0};
    struct manifest_state state = {0};
    err e = ERR_NONE;
    TRY(digest_of_file(&state.digest, path));
    TRY(refuse_whole(v, path, &state.digest));
    TRY(adapter_file_map(&file, path));
    if (file.meta.kind != ADAPTER_FILE_STATE) {
        e = err_make(ERR_INPUT, "%s: is not a state of fedlora run export", path);
    } else {
        state.run = file.meta.run;
        state.method = file.meta.method;
        state.base = file.meta.base;
        state.frozen = file.meta.frozen;
        manifest_compare(manifest, &state, differs, v);
        e = compare_frozen(v, path);
    }
    adapter_file_close(&file);
    return e;
}

static size_t count_updates(const json_t *manifest)
{
    const json_t *round;
    size_t i, n = 0;
    json_array_foreach(json_object_get(manifest, "rounds"), i, round) n +=
        (size_t)json_integer_value(json_object_get(round, "counted"));
    return n;
}

/* The facts that people ask for first; --json has all of them. */
static err print(const struct verify *v, const json_t *manifest, const char *path)
{
    const json_t *head = json_object_get(v->about, "audit");
    json_int_t published = json_integer_value(json_object_get(v->about, "published"));
    size_t updates = count_updates(manifest);
    if (v->o->common.json) {
        json_t *all = json_pack("{s:s, s:O, s:I, s:O}", "state", path, "about", v->about, "updates",
                                (json_int_t)updates, "differences", v->differences);
        err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
        json_decref(all);
        return e;
    }
    if (json_array_size(v->differences)) return ERR_NONE;
    printf("%s: the state of round %" JSON_INTEGER_FORMAT " of run %s, as its manifest says\n",
           path, published, about(v, "run"));
    printf("  method     %s, of base %s\n", about(v, "method"), about(v, "base"));
    printf("  made from  %zu updates, in a run of %" JSON_INTEGER_FORMAT " members%s%s\n", updates,
           json_integer_value(json_object_get(v->about, "members")),
           *about(v, "withheld") ? "; not listed: " : "", about(v, "withheld"));
    printf("  made by    %s\n", about(v, "coordinator"));
    if (*about(v, "privacy")) printf("  %s\n", about(v, "privacy"));
    printf("  audit log  line %" JSON_INTEGER_FORMAT ", hash %s\n",
           json_integer_value(json_object_get(head, "seq")),
           json_string_value(json_object_get(head, "hash")));
    return ERR_NONE;
}

/* The signature is checked before anything of the manifest is shown or compared. */
static err verify_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct verify_command *o = options;
    const char *state = arguments->item[0], *path = arguments->item[1];
    struct verify v = {.o = o, .differences = json_array()};
    uint8_t key[32];
    json_t *manifest = NULL;
    err e = v.differences ? ERR_NONE : err_make(ERR_MACHINE, "no memory for the differences");
    (void)arena;
    if (!err_is(e)) e = ledger_public_open(key, o->key);
    if (!err_is(e)) e = manifest_read(&manifest, path, key);
    v.about = json_object_get(manifest, "about");
    if (!err_is(e)) e = compare(&v, manifest, state);
    if (!err_is(e)) e = print(&v, manifest, state);
    size_t count = json_array_size(v.differences);
    if (!err_is(e) && count)
        e = err_make(ERR_INPUT, "%s: %zu differences from %s", state, count, path);
    json_decref(v.differences);
    json_decref(manifest);
    return e;
}

const struct command command_verify = {
    .name = "verify",
    .purpose = "compare a published state with its signed manifest",
    .usage = "STATE MANIFEST --key FILE",
    .example = "fedlora verify state.safetensors state.safetensors.manifest.json --key audit.pub",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct verify_command),
    .least = 2,
    .most = 2,
    .run = verify_run,
};
