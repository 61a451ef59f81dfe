/* The real SmolLM2-135M-Instruct (Q4_1 GGUF) against ../shared/golden/smollm2: likelihoods, next
 * tokens and greedy continuations; and training in bfloat16 against float32. The path
 * of the file is FEDLORA_SMOLLM2, by default the one to which deploy/demo.sh downloads it. */
#include "base/json.h"
#include "engine/generate.h"
#include "engine/train/train.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct real {
    struct model model;
    struct engine *engine;
    json_t *expect;
};

static void find_model(char path[SUPPORT_PATH_BYTES])
{
    const char *given = getenv("FEDLORA_SMOLLM2"), *home = getenv("HOME");
    snprintf(path, SUPPORT_PATH_BYTES, "%s", given ? given : "");
    if (!given)
        snprintf(path, SUPPORT_PATH_BYTES, "%s/.cache/fedlora/SmolLM2-135M-Instruct.Q4_1.gguf",
                 home ? home : "");
    if (!file_exists(path)) cr_skip_test("no SmolLM2-135M-Instruct.Q4_1.gguf (FEDLORA_SMOLLM2)");
}

static void real_open(struct real *r, const char *name)
{
    char path[SUPPORT_PATH_BYTES], file[SUPPORT_PATH_BYTES];
    find_model(path);
    support_shared(file, sizeof file, name);
    struct engine_options o = {.device = "cpu", .precision = DTYPE_F32, .inference = true};
    ok(model_open(&r->model, path));
    ok(engine_open(&r->engine, &r->model, &o));
    ok(json_open(&r->expect, file, 1 << 20));
}

static void real_close(struct real *r)
{
    engine_close(r->engine);
    model_close(&r->model);
    json_decref(r->expect);
}

static uint32_t ids_of(int32_t *out, size_t most, const json_t *object, const char *key)
{
    const json_t *list = json_object_get(object, key);
    size_t n = json_array_size(list);
    cr_assert(n > 0 && n <= most);
    for (size_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)n;
}

Test(smollm2, gives_every_text_the_likelihood_pytorch_does)
{
    struct real r;
    real_open(&r, "golden/smollm2/texts.json");
    for (size_t i = 0; i < json_array_size(r.expect); i++) {
        const json_t *text = json_array_get(r.expect, i);
        int32_t id[1024];
        struct engine_row row = {.id = id, .label = id};
        row.count = ids_of(id, 1024, text, "input_ids");
        double nll = 0.0, want = json_number_value(json_object_get(text, "nll_sum"));
        ok(engine_nll(&nll, r.engine, &row, 1));
        cr_expect(fabs(nll - want) <= 1e-5 * fabs(want) + 1e-4, "text %zu: %.6f, expected %.6f", i,
                  nll, want);
        uint32_t vocab = r.model.arch.vocab;
        float *logits = malloc((size_t)row.count * vocab * sizeof *logits);
        ok(engine_logits(logits, r.engine, &row));
        const float *last = logits + (size_t)(row.count - 1) * vocab;
        const json_t *top = json_object_get(text, "next_top5");
        for (size_t k = 0; k < json_array_size(top); k++) {
            const json_t *pair = json_array_get(top, k);
            size_t token = (size_t)json_integer_value(json_array_get(pair, 0));
            double logit = json_number_value(json_array_get(pair, 1));
            cr_expect_float_eq((double)last[token], logit, 5e-4, "text %zu, token %zu", i, token);
        }
        free(logits);
    }
    real_close(&r);
}

Test(smollm2, continues_every_chat_as_pytorch_does)
{
    struct real r;
    real_open(&r, "golden/smollm2/chats.json");
    enum { CHATS = 16, TOKENS = 40 };
    static int32_t id[CHATS][1024], out[CHATS][TOKENS], want[CHATS][TOKENS];
    struct generate_prompt prompt[CHATS];
    int32_t *outs[CHATS];
    uint32_t count[CHATS], wanted[CHATS];
    size_t n = json_array_size(r.expect);
    cr_assert_leq(n, CHATS);
    for (size_t i = 0; i < n; i++) {
        const json_t *chat = json_array_get(r.expect, i);
        prompt[i] = (struct generate_prompt){id[i], ids_of(id[i], 1024, chat, "input_ids"), TOKENS};
        wanted[i] = ids_of(want[i], TOKENS, chat, "greedy_ids");
        outs[i] = out[i];
    }
    struct generate_options o = {.tokens = TOKENS};
    o.stop = r.model.eos;
    o.stops = r.model.eos_count;
    ok(generate_many(outs, count, r.engine, NULL, prompt, n, &o));
    for (size_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < r.model.eos_count;
             k++) /* the list ends with the stop; ours does not */
            if (wanted[i] && want[i][wanted[i] - 1] == r.model.eos[k]) wanted[i]--;
        cr_expect_eq(count[i], wanted[i], "chat %zu: %u tokens, expected %u", i, count[i],
                     wanted[i]);
        for (uint32_t t = 0; t < count[i] && t < wanted[i]; t++)
            cr_expect_eq(out[i][t], want[i][t], "chat %zu, token %u", i, t);
    }
    real_close(&r);
}

enum { CURVE = 20, CURVE_ROWS = 40 };
static const char CURVE_DATA[] = "data/gsm8k/train.jsonl";

/* The first questions and answers as rows of prompts and completions. */
static void write_rows(const char *path, const char *from)
{
    FILE *in = fopen(from, "r"), *out = fopen(path, "w");
    char *line = NULL;
    size_t room = 0;
    cr_assert(in && out);
    for (int i = 0; i < CURVE_ROWS && getline(&line, &room, in) > 0; i++) {
        json_t *row;
        ok(json_parse(&row, line, strlen(line), from));
        json_t *made = json_pack("{s:O, s:O}", "prompt", json_object_get(row, "question"),
                                 "completion", json_object_get(row, "answer"));
        cr_assert(made && json_dumpf(made, out, 0) == 0 && fputc('\n', out) == '\n');
        json_decref(made);
        json_decref(row);
    }
    free(line);
    fclose(in);
    cr_assert_eq(fclose(out), 0);
}

static bool keep_loss(void *user, const struct train_step *s)
{
    ((double *)user)[s->step] = s->loss;
    return true;
}

static void curve(double loss[CURVE], const struct model *m, const struct dataset *data,
                  enum dtype precision)
{
    struct engine *e;
    struct adapter ad;
    struct train_options o;
    struct train_result result;
    struct engine_options options = {.device = "cpu", .precision = precision};
    struct adapter_fresh fresh = {
        .targets = "q,k,v,o,gate,up,down", .rank = 16, .alpha = 32, .seed = 1};
    ok(engine_open(&e, m, &options));
    if (engine_precision(e) != DTYPE_F32 && precision == DTYPE_F32) cr_assert_fail("not float32");
    bool narrow = engine_precision(e) == DTYPE_BF16 || precision == DTYPE_F32;
    if (narrow) {
        ok(adapter_open_fresh(&ad, &m->arch, &fresh));
        train_defaults(&o);
        o.steps = CURVE;
        o.batch = 2;
        o.lr = 1e-3;
        o.seed = 1;
        o.on_step = keep_loss;
        o.user = loss;
        ok(train_run(&result, &ad, e, data, &o));
        adapter_close(&ad);
    }
    engine_close(e);
    if (!narrow) cr_skip_test("this processor has no fast bfloat16");
}

Test(smollm2, trains_in_bfloat16_along_the_curve_of_float32)
{
#if defined(__SANITIZE_ADDRESS__)
    cr_skip_test("minutes under a sanitizer; the release build runs it");
#endif
    char path[SUPPORT_PATH_BYTES], from[SUPPORT_PATH_BYTES], dir[SUPPORT_PATH_BYTES];
    char rows[SUPPORT_PATH_BYTES + 16];
    struct model model;
    struct dataset data;
    double narrow[CURVE], wide[CURVE];
    support_shared(from, sizeof from, CURVE_DATA);
    find_model(path);
    support_dir_make(dir);
    snprintf(rows, sizeof rows, "%s/rows.jsonl", dir);
    write_rows(rows, from);
    ok(model_open(&model, path));
    struct tokenizer *tokenizer = NULL;
    ok(tokenizer_open(&tokenizer, path));
    struct data_options options = {.tokenizer = tokenizer, .seq = 128};
    ok(data_open(&data, rows, &options));
    curve(narrow, &model, &data, DTYPE_NONE);
    curve(wide, &model, &data, DTYPE_F32);
    double worst = 0.0;
    for (int i = 0; i < CURVE; i++)
        worst = fmax(worst, fabs(narrow[i] / wide[i] - 1.0));
    cr_log_info("bfloat16 departs from float32 by %.2e, loss %.3f to %.3f", worst, wide[0],
                wide[CURVE - 1]);
    for (int i = 0; i < CURVE; i++)
        cr_expect(fabs(narrow[i] / wide[i] - 1.0) <= 0.01, "step %d: %.5f, float32 %.5f", i,
                  narrow[i], wide[i]);
    cr_expect_lt(wide[CURVE - 1], 0.9 * wide[0], "nothing was learned: %.4f to %.4f", wide[0],
                 wide[CURVE - 1]);
    data_close(&data);
    tokenizer_close(tokenizer);
    model_close(&model);
    support_dir_remove(dir);
}
