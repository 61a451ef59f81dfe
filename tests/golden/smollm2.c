/* The real SmolLM2-135M-Instruct (Q4_1 GGUF) against ../shared/golden/smollm2: likelihoods, next
 * tokens and greedy continuations. The file is FEDLORA_SMOLLM2, or where deploy/demo.sh keeps it.
 */
#include "base/json.h"
#include "client/generate.h"
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

static void real_open(struct real *r, const char *name)
{
    char path[SUPPORT_PATH_BYTES], file[SUPPORT_PATH_BYTES];
    const char *given = getenv("FEDLORA_SMOLLM2"), *home = getenv("HOME");
    snprintf(path, sizeof path, "%s", given ? given : "");
    if (!given)
        snprintf(path, sizeof path, "%s/.cache/fedlora/SmolLM2-135M-Instruct.Q4_1.gguf",
                 home ? home : "");
    if (!file_exists(path)) cr_skip_test("no SmolLM2-135M-Instruct.Q4_1.gguf (FEDLORA_SMOLLM2)");
    support_shared(file, sizeof file, name);
    struct engine_options o = {.precision = DTYPE_F32, .inference = true};
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
