#include "engine/generate.h"
#include "base/rng.h"
#include "engine/pass.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* At most 64 sequences at once, and 256 MiB of caches (unless a single sequence needs more). */
enum { GENERATE_ROWS = 64, CACHE_BYTES = 256 << 20 };

/* `next` is the token chosen last: the input of the next pass. */
struct sequence {
    const struct generate_prompt *prompt;
    struct cache cache;
    int32_t *out, next;
    uint32_t made, most;
    bool done;
};
struct generation {
    struct engine *e;
    const struct generate_options *o;
    struct factors *factors;
    struct sequence sequence[GENERATE_ROWS];
    size_t sequences;
    float *logits, *inv; /* device: (GENERATE_ROWS, vocab rounded up), (GENERATE_ROWS) */
    float *host;         /* (GENERATE_ROWS, vocab rounded up) */
    uint32_t *sorted;    /* (vocab), sampling only */
    struct rng rng;
};

/* Rows of logits are padded to a multiple of 16 columns, as products require. */
static size_t vocab_ld(const struct generation *g)
{
    return (g->e->model->arch.vocab + (size_t)15) / 16 * 16;
}

/* Accepts one that generation_open() could open only in part. */
static void generation_close(struct generation *g)
{
    struct engine *e = g->e;
    for (size_t i = 0; i < g->sequences; i++)
        if (g->sequence[i].cache.memory) e->be->memory_give(e->ctx, g->sequence[i].cache.memory);
    g->sequences = 0;
    if (g->logits) e->be->memory_give(e->ctx, g->logits);
    if (g->inv) e->be->memory_give(e->ctx, g->inv);
    factors_close(g->factors);
    free(g->host);
    free(g->sorted);
}

static err generation_open(struct generation *g, const struct adapter *adapter)
{
    struct engine *e = g->e;
    size_t ld = vocab_ld(g);
    rng_init(&g->rng, "generate", g->o->seed, "", 0);
    g->host = malloc(GENERATE_ROWS * ld * sizeof(float));
    g->sorted = malloc(ld * sizeof *g->sorted);
    if (!g->host || !g->sorted) return err_sys(ENOMEM, "generate");
    TRY(e->be->memory_take(&g->logits, e->ctx, GENERATE_ROWS * ld * sizeof(float)));
    TRY(e->be->memory_take(&g->inv, e->ctx, GENERATE_ROWS * sizeof(float)));
    if (!adapter) return ERR_NONE;
    return factors_open(&g->factors, e, adapter);
}

/* Keys and values of all layers: positions * layers * 2 * kv_heads * head_dim numbers. */
static size_t cache_bytes(const struct engine *e, size_t positions)
{
    const struct arch *a = &e->model->arch;
    size_t size = engine_precision(e) == DTYPE_F32 ? 4 : 2;
    return positions * a->layers * 2 * a->kv_heads * a->head_dim * size;
}

/* A prompt may have a limit of its own, because accuracy allows each row only the length of its
 * completion. */
static uint32_t most_tokens(const struct generate_prompt *p, const struct generate_options *o)
{
    return p->tokens ? p->tokens : o->tokens;
}

/* Checks ids, which index the embedding, and takes the cache for prompt and new tokens at once: it
 * never grows while generating. */
static err sequence_open(struct generation *g, const struct generate_prompt *p, int32_t *out)
{
    if (!p->count || p->count > LIMIT_SEQUENCE)
        return err_make(ERR_INPUT, "prompt of %u tokens: expected 1 to %u", p->count,
                        LIMIT_SEQUENCE);
    for (uint32_t i = 0; i < p->count; i++)
        if (p->id[i] < 0 || (uint32_t)p->id[i] >= g->e->model->arch.vocab)
            return err_make(ERR_INPUT, "prompt: token id %d, expected 0 to %u", p->id[i],
                            g->e->model->arch.vocab - 1);
    struct sequence *s = &g->sequence[g->sequences++];
    *s = (struct sequence){.prompt = p, .out = out, .most = most_tokens(p, g->o)};
    s->done = s->most == 0;
    s->cache.capacity = p->count + s->most;
    return g->e->be->memory_take(&s->cache.memory, g->e->ctx, cache_bytes(g->e, s->cache.capacity));
}

/* Runs the rows through all layers, which fills the caches. The result is in resid. All sequences
 * share one adapter and so one segment. */
static err run(struct generation *g, struct batch *b)
{
    struct segment segment = {.factors = g->factors, .tokens = b->tokens};
    b->segment = &segment;
    b->segments = 1;
    err er = pass_run(g->e, b);
    b->segment = NULL;
    return er;
}

/* Logits after the last token of each row, copied to g->host; other positions of a prompt need
 * none. */
static err last_logits(struct generation *g, const struct batch *b)
{
    struct engine *e = g->e;
    struct pass *p = &e->pass;
    const struct arch *a = &e->model->arch;
    struct mat logits = {g->logits, DTYPE_F32, vocab_ld(g)}, none = {0};
    struct norm_shape norm = {b->rows, 1, a->d_model, a->rms_eps};
    e->be->learned_take(e->ctx, p->last, p->resid, p->batch, 0, b->rows, a->d_model);
    e->be->norm(e->ctx, p->last_normed, g->inv, none, p->last, e->final_norm, &norm);
    e->be->linear(e->ctx, logits, p->last_normed, e->head, NULL, p->batch, b->rows, false);
    e->be->copy_out(e->ctx, g->host, g->logits, b->rows * vocab_ld(g) * sizeof(float));
    return e->be->check(e->ctx);
}

/* Descending; equal logits by id, so that sampling does not depend on the sorting algorithm. */
static int compare_logits(const void *a, const void *b, void *logits)
{
    const float *x = logits;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (x[i] != x[j]) return x[i] > x[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

/* Nucleus sampling: with p_i proportional to exp(logit_i / temperature), keep the most likely
 * tokens until their sum reaches top_p, at least one, and draw among them. The largest logit is
 * subtracted first, so the exponentials cannot overflow. Rounding may leave `at` just above 0 after
 * the last kept token; then the most likely token is taken. */
static int32_t sample(struct generation *g, float *logits)
{
    uint32_t vocab = g->e->model->arch.vocab, n = 0;
    double top_p = g->o->top_p > 0.0 && g->o->top_p < 1.0 ? g->o->top_p : 1.0;
    for (uint32_t i = 0; i < vocab; i++)
        g->sorted[i] = i;
    qsort_r(g->sorted, vocab, sizeof *g->sorted, compare_logits, logits);
    double max = (double)logits[g->sorted[0]], total = 0.0, kept = 0.0;
    for (uint32_t i = 0; i < vocab; i++)
        total += exp(((double)logits[i] - max) / g->o->temperature);
    for (; n < vocab && (n == 0 || kept < top_p * total); n++)
        kept += exp(((double)logits[g->sorted[n]] - max) / g->o->temperature);
    double at = rng_unit(&g->rng) * kept;
    for (uint32_t i = 0; i < n; i++) {
        at -= exp(((double)logits[g->sorted[i]] - max) / g->o->temperature);
        if (at < 0.0) return (int32_t)g->sorted[i];
    }
    return (int32_t)g->sorted[0];
}

/* Greedy choice takes the lowest id of equal logits, so results are reproducible. */
static int32_t choose(struct generation *g, size_t row)
{
    uint32_t best = 0;
    float *logits = g->host + row * vocab_ld(g);
    if (g->o->temperature > 0.0) return sample(g, logits);
    for (uint32_t i = 1; i < g->e->model->arch.vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Takes the token chosen after a pass. Returns false if the sequence ends: at a stop token, which
 * is not part of the output, on request of the caller, or when it has all its tokens. */
static bool accept(struct generation *g, struct sequence *s, int32_t id)
{
    for (size_t i = 0; i < g->o->stops; i++)
        if (g->o->stop[i] == id) return false;
    s->out[s->made++] = id;
    s->next = id;
    if (g->o->on_token && !g->o->on_token(g->o->user, id)) return false;
    return s->made < s->most;
}

/* One pass over the sequences that have not ended: the whole prompts the first time, then one token
 * each at the position after its cache. Finished sequences leave the batch, which is why the lists
 * are built again each time. */
static err advance(struct generation *g, bool first, bool *any)
{
    struct engine_row row[GENERATE_ROWS];
    struct sequence *live[GENERATE_ROWS];
    struct cache *cache[GENERATE_ROWS];
    struct batch b = {0};
    size_t n = 0;
    for (size_t i = 0; i < g->sequences; i++) {
        struct sequence *s = &g->sequence[i];
        if (s->done) continue;
        live[n] = s;
        cache[n] = &s->cache;
        row[n] = (struct engine_row){.id = &s->next, .count = 1};
        if (first) row[n].id = s->prompt->id, row[n].count = s->prompt->count;
        n++;
    }
    *any = n > 0;
    if (!n) return ERR_NONE;
    err er;
    TRY_OUT(er, batch_open(&b, row, n, BATCH_LAST));
    b.cache = cache;
    b.decode = !first;
    for (size_t i = 0; i < n && !first; i++) {
        b.position[i] = cache[i]->length;
        if (cache[i]->length >= b.positions) b.positions = cache[i]->length + (size_t)1;
    }
    TRY_OUT(er, run(g, &b));
    TRY_OUT(er, last_logits(g, &b));
    for (size_t i = 0; i < n; i++) {
        cache[i]->length += row[i].count;
        live[i]->done = !accept(g, live[i], choose(g, i));
    }
out:
    batch_close(&b);
    return er;
}

/* Caches are given back even after a failure, because the next group takes its own. */
static err generate_group(int32_t *const *out, uint32_t *count, struct generation *g,
                          const struct generate_prompt *prompt, size_t prompts)
{
    err er = ERR_NONE;
    bool any = true;
    for (size_t i = 0; i < prompts && !err_is(er); i++)
        er = sequence_open(g, &prompt[i], out[i]);
    for (bool first = true; any && !err_is(er); first = false)
        er = advance(g, first, &any);
    for (size_t i = 0; i < prompts && !err_is(er); i++)
        count[i] = g->sequence[i].made;
    for (size_t i = 0; i < g->sequences; i++)
        if (g->sequence[i].cache.memory)
            g->e->be->memory_give(g->e->ctx, g->sequence[i].cache.memory);
    g->sequences = 0;
    return er;
}

/* Prompts are taken in order into groups whose caches fit; the first of a group is taken in any
 * case. */
err generate_many(int32_t *const *out, uint32_t *count, struct engine *e,
                  const struct adapter *adapter, const struct generate_prompt *prompt,
                  size_t prompts, const struct generate_options *o)
{
    struct generation *g = calloc(1, sizeof *g);
    if (!g) return err_sys(ENOMEM, "generate");
    g->e = e;
    g->o = o;
    err er = generation_open(g, adapter);
    for (size_t first = 0, n; first < prompts && !err_is(er); first += n) {
        size_t bytes = 0;
        for (n = 0; n < GENERATE_ROWS && first + n < prompts; n++) {
            const struct generate_prompt *p = &prompt[first + n];
            bytes += cache_bytes(e, (size_t)p->count + most_tokens(p, o));
            if (n && bytes > CACHE_BYTES) break;
        }
        er = generate_group(out + first, count + first, g, prompt + first, n);
    }
    generation_close(g);
    free(g);
    return er;
}

/* A group of one prompt, so on_token() is called in the order of the text. */
err generate_one(int32_t *out, uint32_t *count, struct engine *e, const struct adapter *adapter,
                 const struct generate_prompt *prompt, const struct generate_options *o)
{
    return generate_many(&out, count, e, adapter, prompt, 1, o);
}
