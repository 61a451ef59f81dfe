/* fedlora doctor: check what this machine offers and what would prevent work, before any is
 * started.
 *
 * Every check adds one finding with its value and, if needed, a problem. A failed check never stops
 * the others, because the list is most useful when it is complete. The exit status is 1 if any
 * check found a problem. */
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/command/doctor.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "kernels/backend.h"
#include "kernels/describe.h"

#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* The options of the connection are optional here. */
struct doctor_command {
    struct command_common common;
    struct remote_options remote; /* server NULL: the machine alone */
};

#define AT(member) offsetof(struct doctor_command, remote) + offsetof(struct remote_options, member)
static const struct option_row rows[] = {
    /* The rows of REMOTE_OPTION_ROWS, but none is required: without --server only the machine is
     * checked. */
    {.flag = "server",
     .key = "server.address",
     .kind = OPTION_TEXT,
     .at = AT(server),
     .value = "HOST:PORT",
     .help =
         "address of a coordinator whose connection is checked too; needs --ca, --cert and --key"},
    {.flag = "ca",
     .key = "server.ca",
     .kind = OPTION_TEXT,
     .at = AT(ca),
     .value = "FILE",
     .help = "certificate of the federation's authority (PEM)"},
    {.flag = "cert",
     .key = "server.cert",
     .kind = OPTION_TEXT,
     .at = AT(cert),
     .value = "FILE",
     .help = "certificate of this client (PEM)"},
    {.flag = "key",
     .key = "server.key",
     .kind = OPTION_TEXT,
     .at = AT(key),
     .value = "FILE",
     .help = "private key of this client (PEM)"},
    {.flag = "config",
     .kind = OPTION_TEXT,
     .at = AT(config),
     .value = "FILE",
     .help =
         "file with options, for instance the one of fedlora join; the command line overrides it"},
};

/* Mistakes in the sections of other commands are findings, so that the other checks still run. */
static const char *const skipped[] = {"join", "privacy", "policy", NULL};

struct finding *doctor_add(struct findings *f, const char *name)
{
    REQUIRE(f->count < FINDINGS_MAX);
    struct finding *added = &f->finding[f->count++];
    *added = (struct finding){.name = name};
    return added;
}

void doctor_number(struct findings *f, const char *name, double value)
{
    json_object_set_new(f->numbers, name, json_real(value));
}

/* The value of the first line "key : value" of a file in /proc, or "" if there is none. */
static void proc_value(char *out, size_t bytes, const char *text, const char *key)
{
    size_t n = strlen(key);
    *out = 0;
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) != 0) continue;
        const char *value = line + n + strspn(line + n, " \t");
        if (*value != ':') continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, bytes, "%.*s", (int)strcspn(value, "\n"), value);
        return;
    }
}

/* Whole words only: "fma" must not be found in "avx512ifma". */
static bool has_word(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = text; (p = strstr(p, word)); p += n)
        if ((p == text || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}

/* The features that the kernels use. Only AVX2 is treated as necessary, because without it every
 * kernel falls back to scalar code. */
static void find_processor(struct findings *f)
{
    static const char *const wanted[] = {"avx2",        "fma",      "avx512f", "avx512_vnni",
                                         "avx512_bf16", "amx_tile", "amx_bf16"};
    char *text = NULL, model[256], flags[8192];
    size_t size;
    struct finding *processor = doctor_add(f, "processor"), *features = doctor_add(f, "features");
    err e = file_read_all(&text, &size, "/proc/cpuinfo", 16 << 20);
    if (err_is(e)) {
        processor->problem = "cannot read /proc/cpuinfo";
        return;
    }
    proc_value(model, sizeof model, text, "model name");
    proc_value(flags, sizeof flags, text, "flags");
    snprintf(processor->value, sizeof processor->value, "%s", *model ? model : "unknown");
    size_t used = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (has_word(flags, wanted[i]))
            used += (size_t)snprintf(features->value + used, sizeof features->value - used, "%s%s",
                                     used ? " " : "", wanted[i]);
    if (!has_word(flags, "avx2")) features->problem = "training is very slow without AVX2";
    free(text);
}

/* Opens the engine's backend and asks it, instead of guessing from the processor's features. */
static void find_precision(struct findings *f, const struct command_common *common)
{
    const struct backend *backend = NULL;
    struct backend_context *context = NULL;
    struct backend_options options = {.threads = (int)common->threads};
    struct finding *precision = doctor_add(f, "precision auto");
    char why[BACKEND_WHY_BYTES];
    struct finding *gpu = doctor_add(f, "gpu");
    err e = backend_open(&backend, &context, common->device, &options, why);
    bool used = !err_is(e) && backend != &backend_cpu;
    snprintf(gpu->value, sizeof gpu->value, "%s%s%.480s", used ? "used" : "not used",
             *why ? ": " : "", why);
    if (err_is(e)) {
        snprintf(precision->value, sizeof precision->value, "%s", e.text);
        precision->problem = "the engine cannot start";
        return;
    }
    bool f32 = backend->precision(context) == DTYPE_F32;
    snprintf(precision->value, sizeof precision->value, "%s on %s%s",
             dtype_name(backend->precision(context)), backend->name,
             f32 ? " (BF16 is faster only with AMX)" : "");
    backend->close(context);
}

/* One product of each kind, because a device tries an algorithm when it is first used. It needs
 * weights that are not zero, because all orders of a sum give the same bits for zeros. Private
 * training repeats the check with the products of its own model. */
static err probe_rows(bool *alone, const struct backend *backend, struct backend_context *context)
{
    enum { SIDE = 512 };
    struct backend_weight *w = NULL;
    char *block = NULL;
    size_t at = 0, bytes = 0;
    enum dtype type = backend->precision(context);
    struct weight_source source = {.n = SIDE, .k = SIDE, .parts = 1};
    float *value = malloc((size_t)SIDE * SIDE * sizeof *value);
    if (!value) return err_sys(ENOMEM, "doctor");
    for (uint32_t i = 0; i < SIDE * SIDE; i++)
        value[i] = (float)(i * 2654435761u >> 8) * 0x1p-24f - 0.5f; /* any numbers */
    source.part[0] = (struct weight_part){value, DTYPE_F32, SIDE, 0};
    source.products = BACKEND_FORWARD | BACKEND_BACKWARD;
    for (int i = 0; i < 2; i++)
        (void)mat_take(NULL, &bytes, type, BACKEND_ROWS, SIDE);
    err e;
    TRY_OUT(e, backend->weight_pack(&w, context, &source));
    TRY_OUT(e, backend->memory_take(&block, context, bytes));
    struct mat x = mat_take(block, &at, type, BACKEND_ROWS, SIDE);
    struct mat y = mat_take(block, &at, type, BACKEND_ROWS, SIDE);
    backend->linear(context, y, x, w, NULL, NULL, BACKEND_ROWS, false);
    backend->linear_back(context, x, y, w, NULL, NULL, BACKEND_ROWS);
    TRY_OUT(e, backend->check(context));
    *alone = backend->rows_alone(context);
out:
    if (block) backend->memory_give(context, block);
    backend->weight_close(w);
    free(value);
    return e;
}

/* Private training needs gradients whose bits do not depend on the other rows of a pass, so the
 * line says in which precisions this device can do it. */
static void find_rows(struct findings *f, const struct command_common *common)
{
    static const struct {
        enum dtype type;
        const char *name;
    } all[] = {{DTYPE_F32, "f32"}, {DTYPE_BF16, "bf16"}};
    struct finding *line = doctor_add(f, "rows alone");
    size_t used = 0, room = sizeof line->value;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct backend *backend = NULL;
        struct backend_context *context = NULL;
        struct backend_options options = {.threads = (int)common->threads,
                                          .precision = all[i].type};
        char why[BACKEND_WHY_BYTES];
        bool alone = false;
        err e = backend_open(&backend, &context, common->device, &options, why);
        if (!err_is(e)) e = probe_rows(&alone, backend, context);
        if (context) backend->close(context);
        used += (size_t)snprintf(line->value + used, room - used, "%s%s: %.200s", i ? ", " : "",
                                 all[i].name, err_is(e) ? e.text : (alone ? "yes" : "no"));
        if (err_is(e)) return; /* the other precision would fail alike */
    }
}

/* The affinity mask, which containers and taskset reduce, and not the number of installed cores. */
static void find_cores(struct findings *f)
{
    cpu_set_t allowed;
    int usable = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
    struct finding *cores = doctor_add(f, "cores");
    snprintf(cores->value, sizeof cores->value, "%d", usable);
}

/* 1.5 GB is what SmolLM2-135M needs with the default batch. */
static void find_memory(struct findings *f)
{
    char *text = NULL, total[64], a[32], b[32];
    size_t size;
    struct finding *memory = doctor_add(f, "memory");
    uint64_t available = memory_available();
    err e = file_read_all(&text, &size, "/proc/meminfo", 1 << 20);
    if (err_is(e) || available == UINT64_MAX) {
        memory->problem = "cannot read /proc/meminfo";
        free(text);
        return;
    }
    proc_value(total, sizeof total, text, "MemTotal");
    text_size(a, sizeof a, available);
    text_size(b, sizeof b, strtoull(total, NULL, 10) * 1024);
    snprintf(memory->value, sizeof memory->value, "%s available of %s", a, b);
    if (available < 1500000000) memory->problem = "training a small model needs about 1.5 GB";
    free(text);
}

/* In the current directory, where outputs usually go. */
static void find_disk(struct findings *f)
{
    struct statvfs fs;
    struct finding *disk = doctor_add(f, "disk here");
    if (statvfs(".", &fs) != 0) {
        disk->problem = "cannot determine the free space of the current directory";
        return;
    }
    char text[32];
    uint64_t bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    text_size(text, sizeof text, bytes);
    snprintf(disk->value, sizeof disk->value, "%s free", text);
    if (bytes < 1000000000) disk->problem = "less than 1 GB is free";
}

/* Certificates are checked against this clock. A year before the program existed is a clock that
 * was never set. */
static void find_clock(struct findings *f)
{
    struct finding *clock = doctor_add(f, "clock");
    time_t now = (time_t)(text_wall_ms() / 1000);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(clock->value, sizeof clock->value, "%Y-%m-%d %H:%M:%S UTC", &tm);
    if (tm.tm_year + 1900 < 2024 || tm.tm_year + 1900 > 2100)
        clock->problem = "the clock is wrong: certificates will be refused";
}

/* Versions, for reports of mistakes. */
static void find_system(struct findings *f)
{
    struct utsname name;
    struct finding *system = doctor_add(f, "system");
    if (uname(&name) == 0)
        snprintf(system->value, sizeof system->value, "%s %s %s", name.sysname, name.release,
                 name.machine);
    struct finding *libraries = doctor_add(f, "libraries");
    char computing[200];
    describe_libraries(computing, sizeof computing);
    snprintf(libraries->value, sizeof libraries->value, "fedlora %s, %s, libsodium %s, jansson %s",
             FEDLORA_VERSION, computing, sodium_version_string(), jansson_version_str());
}

/* `ok` is the field for scripts. */
static err print_json(const struct findings *f, bool well)
{
    json_t *list = json_object(), *problems = json_array();
    for (size_t i = 0; i < f->count; i++) {
        json_object_set_new(list, f->finding[i].name, json_string(f->finding[i].value));
        if (f->finding[i].problem)
            json_array_append_new(
                problems, json_sprintf("%s: %s", f->finding[i].name, f->finding[i].problem));
    }
    json_t *all = json_pack("{s:b, s:o, s:o, s:O?}", "ok", well, "checks", list, "problems",
                            problems, "numbers", f->numbers);
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the report");
    json_decref(all);
    return e;
}

/* The first column marks problems, so that they can be found in a long list. */
static err print_table(const struct findings *f)
{
    struct table t;
    table_begin(&t, "lll");
    err e = ERR_NONE;
    for (size_t i = 0; i < f->count; i++) {
        TRY_OUT(e, table_cell(&t, "%s", f->finding[i].problem ? "!" : "ok"));
        TRY_OUT(e, table_cell(&t, "%s", f->finding[i].name));
        TRY_OUT(e, table_cell(&t, "%s%s%s", f->finding[i].value,
                              f->finding[i].problem && *f->finding[i].value ? ": " : "",
                              f->finding[i].problem ? f->finding[i].problem : ""));
    }
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* The checks of the machine need no network and come first. A failed check adds a problem and no
 * error, so all later checks still run. */
static err doctor_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments;
    const struct doctor_command *o = options;
    struct findings f = {.numbers = json_object()};
    find_system(&f);
    find_processor(&f);
    find_precision(&f, &o->common);
    find_rows(&f, &o->common);
    find_cores(&f);
    find_memory(&f);
    find_disk(&f);
    find_clock(&f);
    if (command_config(o) != NULL) doctor_join_file(&f, command_config(o), arena);
    if (o->remote.cert != NULL && o->remote.key != NULL) doctor_certificate(&f, &o->remote);
    if (o->remote.server != NULL) doctor_server(&f, &o->remote);
    size_t problems = 0;
    for (size_t i = 0; i < f.count; i++)
        problems += f.finding[i].problem != NULL;
    err e = o->common.json ? print_json(&f, problems == 0) : print_table(&f);
    json_decref(f.numbers);
    TRY(e);
    /* The findings have been printed; the error only sets the exit status and counts them. */
    if (problems == 0) return ERR_NONE;
    return err_make(ERR_MACHINE, "doctor: %zu of %zu checks failed", problems, f.count);
}

const struct command command_doctor = {
    .name = "doctor",
    .purpose = "check this machine and, with --server, the connection to a coordinator",
    .usage = "[--config FILE] [--server HOST:PORT --ca FILE --cert FILE --key FILE]",
    .example = "fedlora doctor --config north.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .skipped = skipped,
    .whole_config = true,
    .options_size = sizeof(struct doctor_command),
    .run = doctor_run,
};
