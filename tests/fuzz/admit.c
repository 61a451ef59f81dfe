/* An untrusted update of a run is refused, or it is admitted and combined with an honest one. The
 * first byte of the input chooses the method, the rest is the file. The next state has the run's
 * modules and finite values, or the round fails with a reason; admission alone changes nothing. */
#include "agg/methods/methods.h"
#include "agg/round/method.h"
#include "base/rng.h"
#include "tests/fuzz/folder.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/admit.flora",  "tests/fuzz/seeds/admit.fed-sb",
                                  "tests/fuzz/seeds/admit.ffa",    "tests/fuzz/seeds/admit.hetlora",
                                  "tests/fuzz/seeds/admit.fedsvd", NULL};
const int fuzz_runs = 250;

enum { RANK = 2, MODULES = 2 };

static const struct method_module modules[MODULES] = {{"layers.0.q_proj", 6, 4},
                                                      {"layers.0.v_proj", 4, 4}};
static const char *const names[] = {"layers.0.q_proj", "layers.0.v_proj"};
static const char base[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/* One run for each method. */
struct place {
    const struct method *method;
    char state[FOLDER_PATH_BYTES], frozen[FOLDER_PATH_BYTES], honest[FOLDER_PATH_BYTES];
    char frozen_digest[DIGEST_TEXT_BYTES];
};
static struct place places[32];
static size_t place_count;

static void must(err e)
{
    if (!err_is(e)) return;
    fprintf(stderr, "%s\n", e.text);
    abort();
}

static void fill(float *out, uint32_t rows, uint32_t cols, const char *what)
{
    struct rng rng;
    rng_init(&rng, "fuzz admit", 1, what, 0);
    rng_fill_uniform(&rng, out, (size_t)rows * cols, 0.25);
}

static void write_update(const struct place *p, const char *path, const char *member)
{
    static float value[MODULES][3][32];
    struct adapter_file_module module[MODULES] = {0};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "fuzz",
                                     .method = p->method->name,
                                     .base = base,
                                     .frozen = p->frozen_digest,
                                     .member = member,
                                     .round = 1,
                                     .rank = RANK,
                                     .alpha = RANK};
    unsigned sends = p->method->factors(1);
    for (size_t i = 0; i < MODULES; i++) {
        uint32_t rows[] = {RANK, modules[i].d_out, RANK}, cols[] = {modules[i].d_in, RANK, RANK};
        module[i].name = modules[i].name;
        module[i].rank = RANK;
        module[i].alpha = RANK;
        for (int k = 0; k < 3; k++) {
            if (!(sends & 1u << k)) continue;
            fill(value[i][k], rows[k], cols[k], member);
            module[i].factor[k] = (struct adapter_file_factor){value[i][k], rows[k], cols[k], NULL};
        }
    }
    struct bytes bytes = {.max = 1 << 20};
    must(adapter_file_write_bytes(&bytes, &meta, module, MODULES));
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes.data, 1, bytes.size, f) != bytes.size || fclose(f) != 0) abort();
    bytes_close(&bytes);
}

static void make_place(struct place *p, const struct method *method)
{
    struct method_start start = {.run = "fuzz",
                                 .base = base,
                                 .seed = 1,
                                 .rank = RANK,
                                 .alpha = RANK,
                                 .module = modules,
                                 .module_count = MODULES,
                                 .threads = 1};
    char name[64];
    p->method = method;
    snprintf(name, sizeof name, "%s.state", method->name);
    folder_path(p->state, name);
    snprintf(name, sizeof name, "%s.frozen", method->name);
    folder_path(p->frozen, name);
    snprintf(name, sizeof name, "%s.honest", method->name);
    folder_path(p->honest, name);
    if (method->frozen) {
        struct digest digest;
        must(method_make_frozen(method, p->frozen, &start));
        must(digest_of_file(&digest, p->frozen));
        digest_text(p->frozen_digest, &digest);
        start.frozen_path = p->frozen;
        start.frozen_digest = p->frozen_digest;
    }
    must(method_start(method, p->state, &start));
    write_update(p, p->honest, "honest");
}

static struct method_expect expected(const struct adapter_file *state, const char *member)
{
    return (struct method_expect){.state = state,
                                  .member = member,
                                  .round = 1,
                                  .rank = RANK,
                                  .alpha = RANK,
                                  .module = names,
                                  .module_count = MODULES};
}

/* The seeds are honest updates: FUZZ_WRITE_SEEDS names the folder to write them to. */
static void write_seeds(const char *to)
{
    char path[FOLDER_PATH_BYTES], update[FOLDER_PATH_BYTES], bytes[8192];
    for (size_t i = 0; i < place_count; i++) {
        folder_path(update, "seed");
        write_update(&places[i], update, "fuzz");
        snprintf(path, sizeof path, "%s/admit.%s", to, places[i].method->name);
        FILE *in = fopen(update, "rb"), *out = fopen(path, "wb");
        if (!in || !out) abort();
        fputc((int)i, out);
        size_t n = fread(bytes, 1, sizeof bytes, in);
        fwrite(bytes, 1, n, out);
        fclose(in);
        fclose(out);
    }
}

static void begin(void)
{
    for (const char *const *name = method_names(); *name; name++)
        make_place(&places[place_count++], method_find(*name));
    for (size_t i = 0; i < place_count; i++) {
        struct adapter_file state = {0};
        must(adapter_file_map(&state, places[i].state));
        struct method_expect expect = expected(&state, "honest");
        must(method_check_update(places[i].method, places[i].honest, &expect));
        adapter_file_close(&state);
    }
    if (getenv("FUZZ_WRITE_SEEDS")) write_seeds(getenv("FUZZ_WRITE_SEEDS"));
}

static void check_state(const char *path)
{
    struct adapter_file made = {0};
    must(adapter_file_open(&made, path));
    if (made.count != MODULES) abort();
    for (size_t i = 0; i < made.count; i++) {
        if (strcmp(made.module[i].name, names[i])) abort();
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
            const struct adapter_file_factor *x = &made.module[i].factor[r];
            for (size_t k = 0; x->f32 && k < (size_t)x->rows * x->cols; k++)
                if (!isfinite(x->f32[k])) abort();
        }
    }
    adapter_file_close(&made);
}

static void combine(const struct place *p, const char *update)
{
    char made[FOLDER_PATH_BYTES];
    const struct contribution from[] = {{"fuzz", 3, update}, {"honest", 5, p->honest}};
    struct method_report report = {0};
    const struct method_next next = {.state_path = p->state,
                                     .frozen_path = p->method->frozen ? p->frozen : NULL,
                                     .contribution = from,
                                     .count = 2,
                                     .carry_error = 1e-4,
                                     .rounds = 3,
                                     .threads = 1};
    folder_path(made, "made");
    err e = method_next(&report, p->method, made, &next);
    if (!err_is(e)) check_state(made);
    method_report_close(&report);
    unlink(made);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char update[FOLDER_PATH_BYTES];
    struct adapter_file state = {0};
    if (folder_begin()) begin();
    if (size < 2) return 0;
    const struct place *p = &places[data[0] % place_count];
    folder_put("update", data + 1, size - 1);
    folder_path(update, "update");
    must(adapter_file_map(&state, p->state));
    struct method_expect expect = expected(&state, "fuzz");
    bool admitted = !err_is(method_check_update(p->method, update, &expect));
    adapter_file_close(&state);
    if (admitted) combine(p, update);
    return 0;
}
