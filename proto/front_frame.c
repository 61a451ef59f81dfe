#include "proto/front_frame.h"

#include <stdio.h>
#include <string.h>

enum frame_type {
    FRAME_DATA,
    FRAME_HEADERS,
    FRAME_PRIORITY,
    FRAME_RST_STREAM,
    FRAME_SETTINGS,
    FRAME_PUSH_PROMISE,
    FRAME_PING,
    FRAME_GOAWAY,
    FRAME_WINDOW_UPDATE,
    FRAME_CONTINUATION,
    FRAME_TYPES
};

enum {
    FLAG_ACK = 1,
    FLAG_END_STREAM = 1,
    FLAG_END_HEADERS = 4,
    FLAG_PADDED = 8,
    FLAG_PRIORITY = 32,
    FRAME_PREFACE = 24,
    FRAME_CONTINUATIONS = 8, /* of one block; one frame holds all that a client of gRPC sends */
    FRAME_WINDOW_EARNED = 2,
};

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* Sizes of payloads, in bytes. DATA may have any size; gRPC compares it with its settings. */
static const struct size_rule {
    const char *name;
    uint32_t least, most, multiple;
} size_rule[FRAME_TYPES] = {
    [FRAME_DATA] = {"DATA", 0, 0xffffff, 1},
    [FRAME_HEADERS] = {"HEADERS", 0, FRONT_HEADER_BLOCK_BYTES, 1},
    [FRAME_PRIORITY] = {"PRIORITY", 5, 5, 1},
    [FRAME_RST_STREAM] = {"RST_STREAM", 4, 4, 1},
    [FRAME_SETTINGS] = {"SETTINGS", 0, 32 * 6, 6},
    [FRAME_PUSH_PROMISE] = {"PUSH_PROMISE", 0, 0xffffff, 1},
    [FRAME_PING] = {"PING", 8, 8, 1},
    [FRAME_GOAWAY] = {"GOAWAY", 8, 4096, 1},
    [FRAME_WINDOW_UPDATE] = {"WINDOW_UPDATE", 4, 4, 1},
    [FRAME_CONTINUATION] = {"CONTINUATION", 0, FRONT_HEADER_BLOCK_BYTES, 1},
};

static uint32_t read_24(const uint8_t *at)
{
    return (uint32_t)at[0] << 16 | (uint32_t)at[1] << 8 | at[2];
}

/* The first bit is reserved. */
static uint32_t read_31(const uint8_t *at)
{
    return ((uint32_t)at[0] << 24 | read_24(at + 1)) & 0x7fffffff;
}

static err fault(const char *what)
{
    return err_make(ERR_INPUT, "broken HTTP/2: %s", what);
}

static err charge(struct front_frame *f, enum front_cost cost, double amount)
{
    if (front_budget_take(f->budget, cost, amount)) return ERR_NONE;
    const struct front_rule *rule = &front_rule[cost];
    return err_make(ERR_LIMIT, "too many %s: more than %.0f, and %.0f a second", rule->what,
                    rule->burst, rule->per_second);
}

/* ---------------------------------------------------------------- streams */

static bool stream_find(uint32_t *at, const struct front_frame *f, uint32_t stream)
{
    for (uint32_t i = 0; i < f->open_count; i++)
        if (f->open[i] == stream) {
            *at = i;
            return true;
        }
    return false;
}

static void stream_end(struct front_frame *f, uint32_t stream)
{
    uint32_t at;
    if (stream_find(&at, f, stream)) f->open[at] = f->open[--f->open_count];
}

/* Until the client has acknowledged the server's settings, it does not know streams_max. */
static err stream_begin(struct front_frame *f, uint32_t stream)
{
    uint32_t most = f->acknowledged ? f->streams_max : FRONT_FRAME_STREAMS_EARLY;
    if (stream % 2 == 0) return fault("a stream with an even number");
    if (stream <= f->last_stream) return fault("a second header block of one stream");
    if (f->open_count >= most)
        return err_make(ERR_LIMIT, "more than %u calls at once on one connection", most);
    TRY(charge(f, FRONT_COST_STREAM, 1));
    f->last_stream = stream;
    f->open[f->open_count++] = stream;
    return ERR_NONE;
}

/* ---------------------------------------------------------------- header blocks */

/* Takes padding and priority off a HEADERS payload. */
static err strip(const uint8_t **at, size_t *size, uint8_t flags)
{
    size_t before = (flags & FLAG_PADDED ? 1 : 0) + (flags & FLAG_PRIORITY ? 5 : 0);
    size_t after = flags & FLAG_PADDED && *size > 0 ? (*at)[0] : 0;
    if (before + after > *size) return fault("a HEADERS frame with too much padding");
    if (before > 0) *at += before; /* an empty payload has no address */
    *size -= before + after;
    return ERR_NONE;
}

static err put_headers(struct bytes *out, struct front_frame *f)
{
    struct bytes plain = {.max = FRONT_HEADER_BLOCK_BYTES};
    err e;
    TRY_OUT(e, front_header_rewrite(&plain, &f->header, &f->block, f->authority));
    uint32_t n = (uint32_t)plain.size, s = f->block_stream;
    const uint8_t head[FRONT_FRAME_HEAD] = {(uint8_t)(n >> 16),
                                            (uint8_t)(n >> 8),
                                            (uint8_t)n,
                                            FRAME_HEADERS,
                                            FLAG_END_HEADERS | (f->block_flags & FLAG_END_STREAM),
                                            (uint8_t)(s >> 24),
                                            (uint8_t)(s >> 16),
                                            (uint8_t)(s >> 8),
                                            (uint8_t)s};
    TRY_OUT(e, bytes_append(out, head, sizeof head));
    TRY_OUT(e, bytes_append(out, plain.data, plain.size));
out:
    bytes_close(&plain);
    return e;
}

/* One HEADERS or CONTINUATION frame has arrived whole. */
static err add_block(struct bytes *out, struct front_frame *f)
{
    const uint8_t *at = f->part.data;
    size_t size = f->part.size;
    if (f->type == FRAME_HEADERS) {
        TRY(strip(&at, &size, f->flags));
        f->block_stream = f->stream;
        f->block_flags = f->flags;
        f->continuations = 0;
    }
    if (size > 0 && err_is(bytes_append(&f->block, at, size)))
        return err_make(ERR_LIMIT, "a header block of more than %d bytes",
                        FRONT_HEADER_BLOCK_BYTES);
    if (!(f->flags & FLAG_END_HEADERS)) return ERR_NONE;
    err e = put_headers(out, f);
    f->block_stream = 0;
    bytes_close(&f->part); /* calls are rare, and connections many */
    bytes_close(&f->block);
    return e;
}

/* ---------------------------------------------------------------- one frame */

static err check_data(struct front_frame *f)
{
    uint32_t at;
    bool ends = f->flags & FLAG_END_STREAM;
    if (f->stream == 0 || f->stream > f->last_stream) return fault("DATA for no stream");
    if (!ends && f->left == 0) TRY(charge(f, FRONT_COST_EMPTY, 1));
    if (!ends && f->left < FRONT_FRAME_SMALL) TRY(charge(f, FRONT_COST_SMALL, 1));
    if (!stream_find(&at, f, f->stream)) TRY(charge(f, FRONT_COST_STRAY, f->left));
    return ERR_NONE;
}

static err check_headers(struct front_frame *f)
{
    f->use = FRONT_FRAME_COLLECT;
    bytes_clear(&f->part);
    return stream_begin(f, f->stream);
}

static err check_continuation(struct front_frame *f)
{
    f->use = FRONT_FRAME_COLLECT;
    bytes_clear(&f->part);
    if (f->block_stream == 0 || f->stream != f->block_stream)
        return fault("a CONTINUATION frame of no header block");
    if (++f->continuations > FRAME_CONTINUATIONS)
        return err_make(ERR_LIMIT, "more than %d CONTINUATION frames of one header block",
                        FRAME_CONTINUATIONS);
    return ERR_NONE;
}

static err check_reset(struct front_frame *f)
{
    if (f->stream == 0 || f->stream > f->last_stream) return fault("RST_STREAM for no stream");
    stream_end(f, f->stream);
    return charge(f, FRONT_COST_RESET, 1);
}

static err check_settings(struct front_frame *f)
{
    if (f->stream != 0) return fault("SETTINGS on a stream");
    if (f->flags & FLAG_ACK && f->left != 0) return fault("an acknowledgement with a payload");
    if (f->flags & FLAG_ACK) f->acknowledged = true;
    bool first = !f->has_settings; /* every connection has one */
    f->has_settings = true;
    return first ? ERR_NONE : charge(f, FRONT_COST_SETTINGS, 1);
}

static err check_connection(struct front_frame *f, enum front_cost cost)
{
    if (f->stream != 0) return fault("PING or GOAWAY on a stream");
    return charge(f, cost, 1);
}

static err check_window(struct front_frame *f)
{
    if (f->stream > f->last_stream) return fault("WINDOW_UPDATE for no stream");
    return charge(f, FRONT_COST_WINDOW, 1);
}

static err check_dropped(struct front_frame *f, enum front_cost cost)
{
    f->use = FRONT_FRAME_DROP;
    return charge(f, cost, 1);
}

static err check_frame(struct front_frame *f)
{
    f->use = FRONT_FRAME_PASS;
    switch (f->type) {
    case FRAME_DATA:
        return check_data(f);
    case FRAME_HEADERS:
        return check_headers(f);
    case FRAME_PRIORITY:
        return check_dropped(f, FRONT_COST_PRIORITY);
    case FRAME_RST_STREAM:
        return check_reset(f);
    case FRAME_SETTINGS:
        return check_settings(f);
    case FRAME_PUSH_PROMISE:
        return fault("PUSH_PROMISE from a client");
    case FRAME_PING:
        return check_connection(f, FRONT_COST_PING);
    case FRAME_GOAWAY:
        return check_connection(f, FRONT_COST_SETTINGS);
    case FRAME_WINDOW_UPDATE:
        return check_window(f);
    case FRAME_CONTINUATION:
        return check_continuation(f);
    default:
        return check_dropped(f, FRONT_COST_OTHER);
    }
}

/* The nine bytes of a frame's head are complete. */
static err begin_frame(struct bytes *out, struct front_frame *f)
{
    f->left = read_24(f->head);
    f->type = f->head[3];
    f->flags = f->head[4];
    f->stream = read_31(f->head + 5);
    f->head_size = 0;
    if (f->type < FRAME_TYPES) {
        const struct size_rule *rule = &size_rule[f->type];
        if (f->left < rule->least || f->left > rule->most || f->left % rule->multiple != 0)
            return err_make(ERR_INPUT, "broken HTTP/2: a %s frame of %u bytes", rule->name,
                            f->left);
    }
    if (!f->has_settings && (f->type != FRAME_SETTINGS || f->flags & FLAG_ACK))
        return fault("the first frame is not SETTINGS");
    if (f->block_stream != 0 && f->type != FRAME_CONTINUATION)
        return fault("another frame inside a header block");
    TRY(check_frame(f));
    if (f->use == FRONT_FRAME_PASS) TRY(bytes_append(out, f->head, FRONT_FRAME_HEAD));
    if (f->left == 0 && f->use == FRONT_FRAME_COLLECT) return add_block(out, f);
    return ERR_NONE;
}

static err payload(struct bytes *out, struct front_frame *f, const uint8_t *data, size_t size)
{
    f->left -= (uint32_t)size;
    if (f->use == FRONT_FRAME_DROP) return ERR_NONE;
    TRY(bytes_append(f->use == FRONT_FRAME_PASS ? out : &f->part, data, size));
    if (f->left == 0 && f->use == FRONT_FRAME_COLLECT) return add_block(out, f);
    return ERR_NONE;
}

/* ---------------------------------------------------------------- streams of bytes */

err front_frame_open(struct front_frame *out, const char *authority, uint32_t streams_max,
                     struct front_budget *budget)
{
    *out = (struct front_frame){.budget = budget,
                                .streams_max = streams_max < FRONT_FRAME_STREAMS_EARLY
                                                   ? streams_max
                                                   : FRONT_FRAME_STREAMS_EARLY,
                                .part.max = FRONT_HEADER_BLOCK_BYTES,
                                .block.max = FRONT_HEADER_BLOCK_BYTES};
    snprintf(out->authority, sizeof out->authority, "%s", authority);
    return front_header_open(&out->header);
}

void front_frame_close(struct front_frame *f)
{
    front_header_close(&f->header);
    bytes_close(&f->part);
    bytes_close(&f->block);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

err front_frame_feed(struct bytes *out, struct front_frame *f, const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t n;
        if (f->left > 0) {
            n = least(size, f->left);
            TRY(payload(out, f, data, n));
        } else {
            size_t whole = f->started ? FRONT_FRAME_HEAD : FRAME_PREFACE;
            n = least(size, whole - f->head_size);
            memcpy(f->head + f->head_size, data, n);
            f->head_size += n;
            if (!f->started && memcmp(f->head, preface, f->head_size) != 0)
                return fault("this client does not speak HTTP/2");
            if (f->head_size == whole && f->started) {
                TRY(begin_frame(out, f));
            } else if (f->head_size == whole) {
                f->started = true;
                f->head_size = 0;
                TRY(bytes_append(out, preface, FRAME_PREFACE));
            }
        }
        data += n;
        size -= n;
    }
    return ERR_NONE;
}

/* gRPC's own frames are trusted to be well formed. A stream that the server has ended is over: its
 * client may open another one as soon as it has seen that. */
static void back_frame(struct front_frame *f)
{
    uint8_t type = f->back[3];
    bool carries = type == FRAME_DATA || type == FRAME_HEADERS;
    f->back_left = read_24(f->back);
    f->back_size = 0;
    bool asks = !(f->back[4] & FLAG_ACK); /* the client must answer */
    if (type == FRAME_DATA) front_budget_earn(f->budget, FRONT_COST_WINDOW, FRAME_WINDOW_EARNED);
    if (type == FRAME_SETTINGS && asks) front_budget_earn(f->budget, FRONT_COST_SETTINGS, 1);
    if (type == FRAME_PING && asks) front_budget_earn(f->budget, FRONT_COST_PING, 1);
    if (type == FRAME_RST_STREAM || (carries && f->back[4] & FLAG_END_STREAM))
        stream_end(f, read_31(f->back + 5));
}

void front_frame_back(struct front_frame *f, const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t n = least(size, f->back_left > 0 ? f->back_left : FRONT_FRAME_HEAD - f->back_size);
        if (f->back_left > 0) {
            f->back_left -= (uint32_t)n;
        } else {
            memcpy(f->back + f->back_size, data, n);
            f->back_size += n;
            if (f->back_size == FRONT_FRAME_HEAD) back_frame(f);
        }
        data += n;
        size -= n;
    }
}

bool front_frame_is_between(const struct front_frame *f)
{
    return f->back_left == 0 && f->back_size == 0;
}
