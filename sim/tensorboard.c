#include "sim/tensorboard.h"

#include "base/file.h"
#include "sim/results.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 256 << 20, EVENT_BYTES_MAX = 1 << 16 };
enum { WIRE_VARINT = 0, WIRE_8_BYTES = 1, WIRE_TEXT = 2, WIRE_4_BYTES = 5 };

/* The polynomial of Castagnoli, lowest bit first. A file is small, so bit by bit is fast enough. */
uint32_t tensorboard_crc(const void *data, size_t size)
{
    const uint8_t *at = data;
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

/* ---- bytes ---- */

static err put_little(struct bytes *out, uint64_t value, size_t bytes)
{
    uint8_t byte[8];
    for (size_t i = 0; i < bytes; i++)
        byte[i] = (uint8_t)(value >> 8 * i);
    return bytes_append(out, byte, bytes);
}

/* As TensorFlow masks a CRC, because a CRC of data that contains CRCs is weak. */
static err put_crc(struct bytes *out, const void *data, size_t size)
{
    uint32_t crc = tensorboard_crc(data, size);
    return put_little(out, (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8), 4);
}

static err put_varint(struct bytes *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        TRY(put_little(out, (value & 0x7f) | 0x80, 1));
    return put_little(out, value, 1);
}

static err put_key(struct bytes *out, uint32_t field, uint32_t wire)
{
    return put_varint(out, field << 3 | wire);
}

static err put_double(struct bytes *out, uint32_t field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    TRY(put_key(out, field, WIRE_8_BYTES));
    return put_little(out, bits, 8);
}

static err put_float(struct bytes *out, uint32_t field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    TRY(put_key(out, field, WIRE_4_BYTES));
    return put_little(out, bits, 4);
}

static err put_text(struct bytes *out, uint32_t field, const void *text, size_t size)
{
    TRY(put_key(out, field, WIRE_TEXT));
    TRY(put_varint(out, size));
    return bytes_append(out, text, size);
}

static err put_record(struct bytes *out, const struct bytes *event)
{
    size_t start = out->size;
    TRY(put_little(out, event->size, 8));
    TRY(put_crc(out, out->data + start, 8));
    TRY(bytes_append(out, event->data, event->size));
    return put_crc(out, event->data, event->size);
}

/* ---- events ---- */

err tensorboard_begin(struct bytes *out)
{
    static const char version[] = "brain.Event:2";
    struct bytes event = {.max = EVENT_BYTES_MAX};
    err e = put_double(&event, 1, 0);
    if (!err_is(e)) e = put_text(&event, 3, version, strlen(version));
    if (!err_is(e)) e = put_record(out, &event);
    bytes_close(&event);
    return e;
}

/* An inner message is written first, because its size stands in front of it. */
static err put_value(struct bytes *summary, const struct tensorboard_value *v)
{
    struct bytes value = {.max = EVENT_BYTES_MAX};
    err e = put_text(&value, 1, v->tag, strlen(v->tag));
    if (!err_is(e)) e = put_float(&value, 2, (float)v->value);
    if (!err_is(e)) e = put_text(summary, 1, value.data, value.size);
    bytes_close(&value);
    return e;
}

err tensorboard_add(struct bytes *out, const struct tensorboard_event *event)
{
    struct bytes summary = {.max = EVENT_BYTES_MAX}, message = {.max = EVENT_BYTES_MAX};
    err e = ERR_NONE;
    for (size_t i = 0; i < event->values && !err_is(e); i++)
        if (isfinite(event->value[i].value)) e = put_value(&summary, &event->value[i]);
    if (!err_is(e)) e = put_double(&message, 1, event->wall_s);
    if (!err_is(e)) e = put_key(&message, 2, WIRE_VARINT);
    if (!err_is(e)) e = put_varint(&message, event->step);
    if (!err_is(e) && summary.size) e = put_text(&message, 5, summary.data, summary.size);
    if (!err_is(e)) e = put_record(out, &message);
    bytes_close(&summary);
    bytes_close(&message);
    return e;
}

static err add_round(struct bytes *out, const struct simulate_round *r)
{
    const struct tensorboard_value value[] = {
        {"test/loss", r->loss},
        {"test/accuracy", r->accuracy < 0 ? NAN : r->accuracy},
        {"members/training_loss", r->train_loss},
        {"round/error", r->error},
        {"round/updates", (double)r->updates},
        {"sent/up_bytes", (double)r->bytes_up},
        {"sent/down_bytes", (double)r->bytes_down},
    };
    return tensorboard_add(out,
                           &(struct tensorboard_event){.wall_s = (double)r->virtual_ms / 1000,
                                                       .step = r->round,
                                                       .value = value,
                                                       .values = sizeof value / sizeof *value});
}

err tensorboard_write(const char *to, const char *from)
{
    struct bytes out = {.max = FILE_BYTES_MAX};
    struct arena arena = {0};
    struct simulate_round *round = NULL;
    size_t rounds = 0;
    char path[LIMIT_PATH_BYTES];
    err e;
    TRY_OUT(e, results_read(&round, &rounds, from, &arena));
    TRY_OUT(e, tensorboard_begin(&out));
    for (size_t i = 0; i < rounds; i++)
        TRY_OUT(e, add_round(&out, &round[i]));
    TRY_OUT(e, file_make_dirs(to));
    TRY_OUT(e, file_join(path, sizeof path, to, "events.out.tfevents.0.fedlora"));
    TRY_OUT(e, file_write(path, out.data, out.size, true));
out:
    bytes_close(&out);
    arena_close(&arena);
    return e;
}
