#include "sim/farm_wire.h"

#include <string.h>

err farm_put_text(struct bytes *b, const char *text)
{
    uint64_t size = text ? strlen(text) + 1 : 0;
    TRY(bytes_append(b, &size, sizeof size));
    return bytes_append(b, text, size);
}

err farm_take(void *out, struct farm_reader *r, size_t bytes)
{
    if (bytes > r->size - r->at) return err_make(ERR_INPUT, "a message of another rank is cut");
    memcpy(out, r->data + r->at, bytes);
    r->at += bytes;
    return ERR_NONE;
}

err farm_take_text(const char **out, struct farm_reader *r, struct arena *arena)
{
    uint64_t size = 0;
    TRY(farm_take(&size, r, sizeof size));
    *out = NULL;
    if (!size) return ERR_NONE;
    if (size > r->size - r->at) return err_make(ERR_INPUT, "a message of another rank is cut");
    TRY(arena_text(out, arena, (const char *)r->data + r->at, size - 1));
    r->at += size;
    return ERR_NONE;
}

/* Every pointer of the round but `state`, in the order of the struct. */
static err put_round(struct bytes *b, const struct member_round *r)
{
    const char *text[] = {r->run,        r->member,      r->method,       r->base,
                          r->state_path, r->frozen_path, r->frozen_digest};
    TRY(bytes_append(b, r, sizeof *r));
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        TRY(farm_put_text(b, text[i]));
    for (size_t i = 0; i < r->adapts_count; i++)
        TRY(farm_put_text(b, r->adapts[i]));
    return ERR_NONE;
}

static err take_round(struct member_round *out, struct farm_reader *in, struct arena *arena)
{
    struct member_round r;
    const char **adapts = NULL;
    TRY(farm_take(&r, in, sizeof r));
    r.state = NULL;
    const char **text[] = {&r.run,        &r.member,      &r.method,       &r.base,
                           &r.state_path, &r.frozen_path, &r.frozen_digest};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        TRY(farm_take_text(text[i], in, arena));
    TRY(arena_take(&adapts, arena, r.adapts_count + 1, sizeof *adapts));
    for (size_t i = 0; i < r.adapts_count; i++)
        TRY(farm_take_text(&adapts[i], in, arena));
    r.adapts = (char *const *)(uintptr_t)adapts;
    *out = r;
    return ERR_NONE;
}

/* The rows without their texts, which training does not read. */
static err put_rows(struct bytes *b, const struct dataset *d)
{
    TRY(bytes_append(b, d, sizeof *d));
    for (size_t i = 0; i < d->count; i++) {
        const struct data_row *row = &d->row[i];
        TRY(bytes_append(b, row, sizeof *row));
        TRY(bytes_append(b, row->id, row->count * sizeof *row->id));
        TRY(bytes_append(b, row->label, row->count * sizeof *row->label));
    }
    return ERR_NONE;
}

static err take_ids(const int32_t **out, struct farm_reader *in, size_t count, struct arena *arena)
{
    int32_t *id = NULL;
    TRY(arena_take(&id, arena, count + 1, sizeof *id));
    *out = id;
    return farm_take(id, in, count * sizeof *id);
}

static err take_rows(struct dataset *out, struct farm_reader *in, struct arena *arena)
{
    TRY(farm_take(out, in, sizeof *out));
    out->arena = (struct arena){0};
    TRY(arena_take(&out->row, arena, out->count + 1, sizeof *out->row));
    for (size_t i = 0; i < out->count; i++) {
        struct data_row *row = &out->row[i];
        TRY(farm_take(row, in, sizeof *row));
        row->completion = row->by = NULL;
        TRY(take_ids(&row->id, in, row->count, arena));
        TRY(take_ids(&row->label, in, row->count, arena));
    }
    return ERR_NONE;
}

err farm_put_order(struct bytes *b, const struct pool_task *t)
{
    TRY(put_round(b, &t->round));
    TRY(bytes_append(b, t->training, sizeof *t->training));
    TRY(bytes_append(b, &t->checkpoint, sizeof t->checkpoint));
    return put_rows(b, t->data);
}

err farm_take_order(struct farm_order *out, struct farm_reader *in, struct arena *arena)
{
    *out = (struct farm_order){.task = {.training = &out->training, .data = &out->data}};
    TRY(take_round(&out->task.round, in, arena));
    TRY(farm_take(&out->training, in, sizeof out->training));
    TRY(farm_take(&out->task.checkpoint, in, sizeof out->task.checkpoint));
    return take_rows(&out->data, in, arena);
}
