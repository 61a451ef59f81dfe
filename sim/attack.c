#include "sim/attack.h"

#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ---- */

static const struct attack_word {
    const char *name;
    enum attack_kind kind;
    bool takes_amount;
    double amount;
} words[] = {{"sign-flip", ATTACK_SCALE, false, -1},
             {"scale", ATTACK_SCALE, true, 0},
             {"noise", ATTACK_NOISE, true, 0},
             {"nan", ATTACK_NAN, false, 0},
             {"label-shuffle", ATTACK_LABELS, false, 0}};
enum { WORDS = sizeof words / sizeof *words };

static const struct attack_word *find_word(const char *name)
{
    for (size_t i = 0; i < WORDS; i++)
        if (!strcmp(words[i].name, name)) return &words[i];
    return NULL;
}

/* NAME[:AMOUNT] SHARE% */
err attack_parse(struct attack *out, const char *text)
{
    char name[64], *share, *amount;
    double percent = 0;
    if (!text || !*text) return ERR_NONE;
    snprintf(name, sizeof name, "%.63s", text);
    if ((share = strchr(name, ' '))) *share++ = 0;
    if ((amount = strchr(name, ':'))) *amount++ = 0;
    const struct attack_word *word = find_word(name);
    if (!word)
        return err_make(ERR_INPUT,
                        "\"%.40s\": expected sign-flip, scale:FACTOR, noise:SIGMA, nan or "
                        "label-shuffle",
                        name);
    if (word->takes_amount != (amount != NULL))
        return err_make(ERR_INPUT, "%s: expected %s", name,
                        amount ? "no number after it" : "a number after a colon");
    double value = word->amount;
    if (amount) TRY(text_parse_num(&value, amount, -1e30, 1e30));
    if (!share || !strchr(share, '%'))
        return err_make(ERR_INPUT, "\"%.40s\": expected a share of the members, as \"%s 5%%\"",
                        text, word->name);
    *strchr(share, '%') = 0;
    TRY(text_parse_num(&percent, share, 0, 100));
    out->kind = percent > 0 ? word->kind : ATTACK_NONE;
    out->share = percent / 100;
    out->amount = value;
    snprintf(out->name, sizeof out->name, "%s", word->name);
    return ERR_NONE;
}

void attack_digest(struct digest_stream *s, const struct attack *a)
{
    const double numbers[] = {a->share, a->amount, a->vanish};
    if (a->kind == ATTACK_NONE && a->vanish <= 0) return;
    digest_add(s, a->name, sizeof a->name);
    digest_add(s, numbers, sizeof numbers);
    digest_add(s, &a->seed, sizeof a->seed);
}

/* ---- the members ---- */

static err take_share(bool *is, double share, size_t members, struct rng *rng, struct arena *arena)
{
    uint32_t *order = NULL;
    TRY(arena_take(&order, arena, members, sizeof *order));
    for (size_t i = 0; i < members; i++)
        order[i] = (uint32_t)i;
    rng_shuffle(rng, order, members);
    size_t count = (size_t)(share * (double)members + 0.5);
    for (size_t i = 0; i < count; i++)
        is[order[i]] = true;
    return ERR_NONE;
}

/* The prompt of one row and the rest of another, cut at `most` tokens. */
static err join_rows(struct data_row *out, const struct data_row *prompt,
                     const struct data_row *answer, size_t most, struct arena *arena)
{
    int32_t *id = NULL;
    size_t n = prompt->prompt, rest = answer->count - answer->prompt;
    size_t count = n + rest < most ? n + rest : most;
    TRY(arena_take(&id, arena, 2 * (n + rest), sizeof *id));
    int32_t *label = id + n + rest;
    memcpy(id, prompt->id, n * sizeof *id);
    memcpy(label, prompt->label, n * sizeof *id);
    memcpy(id + n, answer->id + answer->prompt, rest * sizeof *id);
    memcpy(label + n, answer->label + answer->prompt, rest * sizeof *id);
    *out = (struct data_row){.id = id,
                             .label = label,
                             .count = (uint32_t)count,
                             .prompt = (uint32_t)(n < count ? n : count),
                             .line = prompt->line,
                             .completion = answer->completion};
    for (size_t i = 1; i < count; i++)
        out->learned += label[i] != DATA_IGNORE;
    return ERR_NONE;
}

/* Each row gets the answer of the next one in a random order, so none keeps its own. */
static err swap_answers(struct dataset *out, const struct dataset *own, struct rng *rng,
                        struct arena *arena)
{
    struct dataset d = {.count = own->count};
    uint32_t *order = NULL;
    size_t most = 0;
    TRY(arena_take(&d.row, arena, own->count, sizeof *d.row));
    TRY(arena_take(&order, arena, own->count, sizeof *order));
    for (size_t i = 0; i < own->count; i++) {
        order[i] = (uint32_t)i;
        if (own->row[i].count > most) most = own->row[i].count;
    }
    rng_shuffle(rng, order, own->count);
    for (size_t i = 0; i < own->count; i++) {
        struct data_row *row = &d.row[order[i]];
        TRY(join_rows(row, &own->row[order[i]], &own->row[order[(i + 1) % own->count]], most,
                      arena));
        data_count(&d, row, row->count);
    }
    *out = d;
    return ERR_NONE;
}

static err plan_labels(struct attack_plan *p, const struct fleet *f)
{
    struct rng rng;
    TRY(arena_take(&p->data, &p->arena, f->members, sizeof *p->data));
    for (size_t i = 0; i < f->members; i++) {
        if (!p->is[i]) continue;
        rng_init(&rng, "swapped answers", p->attack->seed, f->member[i].id, 0);
        TRY(swap_answers(&p->data[i], &f->member[i].data, &rng, &p->arena));
    }
    return ERR_NONE;
}

static err plan_vanishing(struct attack_plan *p, size_t members, uint32_t rounds)
{
    bool *is = NULL;
    struct rng rng;
    TRY(arena_take(&is, &p->arena, members, sizeof *is));
    rng_init(&rng, "vanish", p->attack->seed, "members", 0);
    TRY(take_share(is, p->attack->vanish, members, &rng, &p->arena));
    for (size_t i = 0; i < members; i++)
        if (is[i]) p->vanishes[i] = 1 + (uint32_t)rng_below(&rng, rounds);
    return ERR_NONE;
}

err attack_open(struct attack_plan *out, const struct attack *a, const struct fleet *f,
                uint32_t rounds)
{
    struct attack_plan p = {.attack = a};
    struct rng rng;
    err e;
    TRY_OUT(e, arena_take(&p.is, &p.arena, f->members, sizeof *p.is));
    TRY_OUT(e, arena_take(&p.vanishes, &p.arena, f->members, sizeof *p.vanishes));
    rng_init(&rng, "attack", a->seed, "members", 0);
    if (a->kind != ATTACK_NONE) TRY_OUT(e, take_share(p.is, a->share, f->members, &rng, &p.arena));
    if (a->kind == ATTACK_LABELS) TRY_OUT(e, plan_labels(&p, f));
    TRY_OUT(e, plan_vanishing(&p, f->members, rounds));
    *out = p;
    return ERR_NONE;
out:
    arena_close(&p.arena);
    return e;
}

void attack_close(struct attack_plan *p)
{
    arena_close(&p->arena);
    *p = (struct attack_plan){0};
}

const struct dataset *attack_data(const struct attack_plan *p, const struct fleet *f, size_t member)
{
    return p->data && p->is[member] ? &p->data[member] : &f->member[member].data;
}

/* ---- updates ---- */

/* Writes the changed values over those that the member started from. A pruned member has sent
 * leading columns only. */
static void change_factor(float *start, uint32_t stride, const struct adapter_file_factor *trained,
                          const struct attack *a, struct rng *rng)
{
    for (uint32_t i = 0; start && i < trained->rows; i++)
        for (uint32_t j = 0; j < trained->cols; j++) {
            float *x = &start[(size_t)i * stride + j];
            double to = trained->f32[(size_t)i * trained->cols + j];
            if (a->kind == ATTACK_SCALE) to = *x + a->amount * (to - *x);
            if (a->kind == ATTACK_NOISE) to += a->amount * rng_normal(rng);
            *x = (float)to;
        }
}

static err change_module(struct adapter *adapter, const struct adapter_file_module *trained,
                         const struct attack *a, struct rng *rng)
{
    uint32_t layer = 0;
    enum module_kind kind = MODULE_Q;
    TRY(model_module_parse(&layer, &kind, trained->name));
    struct adapter_module *m = adapter_find(adapter, layer, kind);
    if (!m) return err_make(ERR_STATE, "the update has a module %s of its own", trained->name);
    change_factor(m->a, m->d_in, &trained->factor[ADAPTER_FILE_A], a, rng);
    change_factor(m->b, m->rank, &trained->factor[ADAPTER_FILE_B], a, rng);
    change_factor(m->r, m->rank, &trained->factor[ADAPTER_FILE_R], a, rng);
    return ERR_NONE;
}

/* Changes the bytes of the file, because this program writes no values that are not finite. The
 * header is kept: its length in 8 bytes, little-endian, then its text. */
static err write_nan(const char *path)
{
    char *text = NULL;
    size_t bytes = 0, head = 8;
    TRY(file_read_all(&text, &bytes, path, SIZE_MAX / 2));
    for (size_t i = 0; i < 8 && bytes >= 8; i++)
        head += (size_t)(uint8_t)text[i] << (8 * i);
    if (head < bytes) memset(text + head, 0xff, bytes - head);
    err e = file_write(path, text, bytes, /*replace*/ true);
    free(text);
    return e;
}

/* The mean of gradients is no change of the state's factors, so it starts from 0. */
static err write_changed(const char *path, const struct attack *a, const struct arch *arch,
                         const struct member_round *round)
{
    struct member_adapter start = {0};
    struct adapter_file trained = {0};
    struct rng rng;
    uint32_t rank = 0;
    err e;
    rng_init(&rng, "attack", a->seed, round->member, round->round);
    TRY_OUT(e, adapter_file_map(&trained, path));
    TRY_OUT(e, member_adapter_open(&start, arch, round));
    if (round->gradient)
        memset(start.adapter.value, 0, start.adapter.value_count * sizeof *start.adapter.value);
    for (size_t i = 0; i < trained.count; i++) {
        TRY_OUT(e, change_module(&start.adapter, &trained.module[i], a, &rng));
        if (trained.module[i].rank > rank) rank = trained.module[i].rank;
    }
    e = member_adapter_write(path, &start, round, round->prune_lambda > 0 ? rank : 0);
out:
    member_adapter_close(&start);
    adapter_file_close(&trained);
    return e;
}

err attack_update(struct pool_task *t, const struct attack_plan *p, const struct fleet *f,
                  size_t member)
{
    struct member_round round = t->round;
    enum attack_kind kind = p->attack->kind;
    round.state = NULL; /* it belongs to a worker */
    if (!p->is[member] || kind == ATTACK_LABELS) return ERR_NONE;
    TRY(kind == ATTACK_NAN ? write_nan(t->path)
                           : write_changed(t->path, p->attack, &f->model.arch, &round));
    return pool_describe(t);
}
