#include "proto/front_frame.h"

#include "base/rng.h"

#include <criterion/criterion.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION, STRANGE };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, WITH_PRIORITY = 32 };

static struct bytes fresh(void)
{
    return (struct bytes){.max = 8u << 20};
}

static void ok(err e)
{
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
}

static void put(struct bytes *out, int type, int flags, uint32_t stream, const void *data,
                size_t size)
{
    const uint8_t head[9] = {
        (uint8_t)(size >> 16),   (uint8_t)(size >> 8),   (uint8_t)size,
        (uint8_t)type,           (uint8_t)flags,         (uint8_t)(stream >> 24),
        (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
    ok(bytes_append(out, head, sizeof head));
    if (size > 0) ok(bytes_append(out, data, size));
}

static void put_start(struct bytes *out)
{
    ok(bytes_append(out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24));
    put(out, SETTINGS, 0, 0, "\0\4\0\0\xff\xff", 6);
}

#define NV(n, v)                                                                                   \
    {                                                                                              \
        (uint8_t *)(uintptr_t)(n), (uint8_t *)(uintptr_t)(v), sizeof(n) - 1, sizeof(v) - 1, 0      \
    }

/* A block as a client's library writes it, with Huffman codes and entries of the table. */
static size_t encode(uint8_t out[1024], nghttp2_hd_deflater *deflater)
{
    nghttp2_nv nv[] = {NV(":method", "POST"),          NV(":scheme", "https"),
                       NV(":path", "/test.T/Echo"),    NV(":authority", "evil.example"),
                       NV("te", "trailers"),           NV("content-type", "application/grpc"),
                       NV("user-agent", "some/1.0"),   NV("grpc-timeout", "5S"),
                       NV("fedlora-connection", "no"), NV("x-data-bin", "AAAA")};
    ssize_t n = nghttp2_hd_deflate_hd(deflater, out, 1024, nv, sizeof nv / sizeof nv[0]);
    cr_assert_gt(n, 0);
    return (size_t)n;
}

struct frames {
    struct front_budget budget;
    struct front_frame frame;
    struct bytes out;
};

static void frames_open(struct frames *f)
{
    f->out = fresh();
    front_budget_fill(&f->budget, 1000);
    ok(front_frame_open(&f->frame, "0123456789abcdef0123456789abcdef", 16, &f->budget));
}

static void frames_close(struct frames *f)
{
    front_frame_close(&f->frame);
    bytes_close(&f->out);
}

/* Calls, with everything that is rewritten or dropped. */
static void put_conversation(struct bytes *in, int calls)
{
    nghttp2_hd_deflater *deflater;
    uint8_t block[1024], padded[1100] = {7, 0, 0, 0, 0, 200};
    cr_assert_eq(nghttp2_hd_deflate_new(&deflater, 4096), 0);
    put_start(in);
    for (int i = 0; i < calls; i++) {
        uint32_t stream = 1 + 2 * (uint32_t)i;
        size_t n = encode(block, deflater);
        if (i % 3 == 0) {
            put(in, HEADERS, END_HEADERS, stream, block, n);
        } else if (i % 3 == 1) {
            put(in, HEADERS, 0, stream, block, n / 2);
            put(in, CONTINUATION, 0, stream, NULL, 0);
            put(in, CONTINUATION, END_HEADERS, stream, block + n / 2, n - n / 2);
        } else {
            memcpy(padded + 6, block, n);
            put(in, HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, stream, padded, 6 + n + 7);
        }
        put(in, PRIORITY, 0, stream, "12345", 5);
        put(in, DATA, 0, stream, padded, sizeof padded);
        put(in, STRANGE, 3, 0, "what", 4);
        put(in, PING, 0, 0, "12345678", 8);
        put(in, WINDOW, 0, stream, "\0\0\1\0", 4);
        put(in, DATA, END_STREAM, stream, NULL, 0);
    }
    nghttp2_hd_deflate_del(deflater);
}

Test(front_frame, the_output_does_not_depend_on_the_cuts)
{
    struct bytes in = fresh();
    struct frames whole = {0};
    put_conversation(&in, 12);
    frames_open(&whole);
    ok(front_frame_feed(&whole.out, &whole.frame, in.data, in.size));
    struct rng rng;
    rng_init(&rng, "test", 7, "cuts", 0);
    for (int run = 0; run < 30; run++) {
        struct frames cut = {0};
        frames_open(&cut);
        for (size_t at = 0, n; at < in.size; at += n) {
            n = run == 0 ? 1 : 1 + (size_t)rng_below(&rng, run < 15 ? 12 : 600);
            if (n > in.size - at) n = in.size - at;
            ok(front_frame_feed(&cut.out, &cut.frame, in.data + at, n));
        }
        cr_assert_eq(cut.out.size, whole.out.size);
        cr_assert(memcmp(cut.out.data, whole.out.data, whole.out.size) == 0, "run %d", run);
        frames_close(&cut);
    }
    frames_close(&whole);
    bytes_close(&in);
}

/* Decodes with a table of size 0, which a compressed block would not survive. */
static size_t list_fields(char *out, size_t size, const uint8_t *block, size_t left)
{
    nghttp2_hd_inflater *inflater;
    size_t used = 0;
    int flags = 0;
    cr_assert_eq(nghttp2_hd_inflate_new(&inflater), 0);
    while (!(flags & NGHTTP2_HD_INFLATE_FINAL)) {
        nghttp2_nv nv;
        flags = 0;
        ssize_t n = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, block, left, 1);
        cr_assert_geq(n, 0);
        block += n;
        left -= (size_t)n;
        if (flags & NGHTTP2_HD_INFLATE_EMIT)
            used += (size_t)snprintf(out + used, size - used, "%s=%s\n", (char *)nv.name,
                                     (char *)nv.value);
    }
    cr_expect_eq(nghttp2_hd_inflate_get_num_table_entries(inflater), 61, "only the static table");
    nghttp2_hd_inflate_del(inflater);
    return used;
}

Test(front_frame, headers_come_out_plain_with_our_authority_and_nothing_unknown)
{
    struct bytes in = fresh();
    struct frames f = {0};
    int blocks = 0, strange = 0;
    put_conversation(&in, 6);
    frames_open(&f);
    ok(front_frame_feed(&f.out, &f.frame, in.data, in.size));
    cr_assert(memcmp(f.out.data, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24) == 0);
    for (size_t at = 24; at < f.out.size;) {
        const uint8_t *head = f.out.data + at;
        size_t size = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
        if (head[3] == HEADERS) {
            char fields[2000];
            list_fields(fields, sizeof fields, head + 9, size);
            cr_assert_str_eq(fields, ":authority=0123456789abcdef0123456789abcdef\n"
                                     ":method=POST\n:scheme=https\n:path=/test.T/Echo\n"
                                     "te=trailers\ncontent-type=application/grpc\n"
                                     "grpc-timeout=5S\n");
            cr_assert_eq(head[4], END_HEADERS);
            cr_assert_eq(head[8], 1 + 2 * blocks);
            blocks++;
        }
        strange += head[3] == CONTINUATION || head[3] == PRIORITY || head[3] == STRANGE;
        at += 9 + size;
    }
    cr_assert_eq(blocks, 6);
    cr_assert_eq(strange, 0);
    frames_close(&f);
    bytes_close(&in);
}

struct broken {
    const char *text;
    int type, flags;
    uint32_t stream;
    const char *data;
    size_t size;
};

Test(front_frame, broken_frames_end_the_connection_with_the_reason)
{
    static const char zeros[20000];
    const struct broken cases[] = {
        {"even number", HEADERS, END_HEADERS, 2, "\x82", 1},
        {"second header block", HEADERS, END_HEADERS, 1, "\x82", 1},
        {"cannot be decoded", HEADERS, END_HEADERS, 3, "\xff\xff\xff\xff\xff\xff\xff\xff", 8},
        {"too much padding", HEADERS, END_HEADERS | PADDED, 3, "\x09\x82", 2},
        {"HEADERS frame of 20000 bytes", HEADERS, END_HEADERS, 3, zeros, sizeof zeros},
        {"malformed header :method", HEADERS, END_HEADERS, 3, "\x82\x82", 2},
        {"of no header block", CONTINUATION, 0, 1, "\x82", 1},
        {"RST_STREAM frame of 3", RST, 0, 1, "123", 3},
        {"RST_STREAM for no stream", RST, 0, 9, "1234", 4},
        {"SETTINGS frame of 7", SETTINGS, 0, 0, "1234567", 7},
        {"SETTINGS on a stream", SETTINGS, 0, 1, "", 0},
        {"with a payload", SETTINGS, ACK, 0, "123456", 6},
        {"PUSH_PROMISE", PUSH, 0, 1, "1234", 4},
        {"PING frame of 7", PING, 0, 0, "1234567", 7},
        {"on a stream", PING, 0, 1, "12345678", 8},
        {"GOAWAY frame of 0", GOAWAY, 0, 0, "", 0},
        {"WINDOW_UPDATE frame of 0", WINDOW, 0, 1, "", 0},
        {"WINDOW_UPDATE for no stream", WINDOW, 0, 7, "1234", 4},
        {"DATA for no stream", DATA, 0, 0, "x", 1},
        {"DATA for no stream", DATA, 0, 5, "x", 1},
        {"PRIORITY frame of 4", PRIORITY, 0, 1, "1234", 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes in = fresh();
        struct frames f = {0};
        frames_open(&f);
        put_start(&in);
        put(&in, HEADERS, END_HEADERS, 1, "\x83\x87", 2);
        ok(front_frame_feed(&f.out, &f.frame, in.data, in.size));
        bytes_clear(&in);
        put(&in, cases[i].type, cases[i].flags, cases[i].stream, cases[i].data, cases[i].size);
        err e = front_frame_feed(&f.out, &f.frame, in.data, in.size);
        cr_expect_eq(e.kind, ERR_INPUT, "%zu", i);
        cr_expect(strstr(e.text, cases[i].text) != NULL, "%zu: %s", i, e.text);
        frames_close(&f);
        bytes_close(&in);
    }
}

Test(front_frame, a_connection_begins_with_the_preface_and_settings)
{
    const char *starts[] = {"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"};
    for (size_t i = 0; i < 2; i++) {
        struct frames f = {0};
        frames_open(&f);
        err e = front_frame_feed(&f.out, &f.frame, (const uint8_t *)starts[i], strlen(starts[i]));
        cr_assert(strstr(e.text, "does not speak HTTP/2") != NULL, "%s", e.text);
        cr_assert_eq(f.out.size, 0);
        frames_close(&f);
    }
    struct bytes in = fresh();
    struct frames f = {0};
    frames_open(&f);
    ok(bytes_append(&in, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24));
    put(&in, SETTINGS, ACK, 0, NULL, 0);
    err e = front_frame_feed(&f.out, &f.frame, in.data, in.size);
    cr_assert(strstr(e.text, "first frame is not SETTINGS") != NULL, "%s", e.text);
    frames_close(&f);
    bytes_close(&in);
}

Test(front_frame, header_bombs_and_endless_blocks_are_cut)
{
    /* "x: 3000 bytes" once, then that entry of the table three times: 9 kB from 3 kB. */
    static uint8_t bomb[3100];
    size_t n = 0;
    const uint8_t literal[] = {0x40, 1, 'x', 0x7f, 0xb9, 0x16};
    memcpy(bomb, literal, sizeof literal);
    n = sizeof literal + 3000;
    memset(bomb + sizeof literal, 'a', 3000);
    memset(bomb + n, 0xbe, 3);
    for (int i = 0; i < 3; i++) {
        struct bytes in = fresh();
        struct frames f = {0};
        static uint8_t many[65 * 1];
        memset(many, 0x90, sizeof many);
        frames_open(&f);
        put_start(&in);
        if (i == 0) {
            put(&in, HEADERS, END_HEADERS, 1, bomb, n + 3);
        } else if (i == 1) {
            put(&in, HEADERS, END_HEADERS, 1, many, sizeof many);
        } else {
            put(&in, HEADERS, 0, 1, "\x83", 1);
            for (int k = 0; k < 9; k++)
                put(&in, CONTINUATION, 0, 1, NULL, 0);
        }
        err e = front_frame_feed(&f.out, &f.frame, in.data, in.size);
        cr_expect(err_is(e));
        cr_expect(strstr(e.text, i < 2 ? "more than 8192 bytes or 64 fields"
                                       : "more than 8 CONTINUATION frames") != NULL,
                  "%d: %s", i, e.text);
        frames_close(&f);
        bytes_close(&in);
    }
}

Test(front_frame, a_call_ends_when_the_server_ends_it_or_the_client_resets_it)
{
    struct bytes in = fresh(), back = fresh();
    struct frames f = {0};
    frames_open(&f);
    put_start(&in);
    put(&in, SETTINGS, ACK, 0, NULL, 0);
    for (uint32_t i = 0; i < 16; i++)
        put(&in, HEADERS, END_HEADERS, 1 + 2 * i, "\x83", 1);
    ok(front_frame_feed(&f.out, &f.frame, in.data, in.size));
    put(&back, SETTINGS, 0, 0, "123456", 6);
    put(&back, HEADERS, END_HEADERS, 1, "\x88", 1);
    put(&back, DATA, END_STREAM, 1, "answer", 6);
    put(&back, HEADERS, END_HEADERS | END_STREAM, 3, "\x88", 1);
    put(&back, RST, 0, 5, "1234", 4);
    for (size_t i = 0; i < back.size; i++) {
        cr_expect_eq(front_frame_is_between(&f.frame),
                     i == 0 || i == 15 || i == 25 || i == 40 || i == 50, "%zu", i);
        front_frame_back(&f.frame, back.data + i, 1);
    }
    cr_expect_eq(f.frame.open_count, 13);
    bytes_clear(&in);
    put(&in, RST, 0, 7, "1234", 4);
    for (uint32_t i = 16; i < 20; i++)
        put(&in, HEADERS, END_HEADERS, 1 + 2 * i, "\x83", 1);
    ok(front_frame_feed(&f.out, &f.frame, in.data, in.size));
    bytes_clear(&in);
    put(&in, HEADERS, END_HEADERS, 101, "\x83", 1);
    err e = front_frame_feed(&f.out, &f.frame, in.data, in.size);
    cr_expect_eq(e.kind, ERR_LIMIT);
    cr_expect(strstr(e.text, "more than 16 calls at once") != NULL, "%s", e.text);
    frames_close(&f);
    bytes_close(&in);
    bytes_close(&back);
}

/* Sends one frame until the connection ends; returns how many were let through. */
static int flood(int type, int flags, uint32_t stream, const char *data, size_t size, int most)
{
    struct bytes in = fresh();
    struct frames f = {0};
    int sent = 0;
    frames_open(&f);
    put_start(&in);
    put(&in, HEADERS, END_HEADERS, 1, "\x83", 1);
    ok(front_frame_feed(&f.out, &f.frame, in.data, in.size));
    bytes_clear(&in);
    put(&in, type, flags, stream, data, size);
    for (; sent < most; sent++) {
        err e = front_frame_feed(&f.out, &f.frame, in.data, in.size);
        if (err_is(e)) {
            cr_expect_eq(e.kind, ERR_LIMIT);
            cr_expect(strstr(e.text, "too many ") != NULL, "%s", e.text);
            break;
        }
    }
    bytes_close(&in);
    frames_close(&f);
    return sent;
}

Test(front_frame, floods_end_and_slower_ones_wait)
{
    cr_expect_eq(flood(RST, 0, 1, "1234", 4, 1000), 200);
    cr_expect_eq(flood(PING, 0, 0, "12345678", 8, 1000), 200);
    cr_expect_eq(flood(SETTINGS, 0, 0, "", 0, 1000), 100);
    cr_expect_eq(flood(DATA, 0, 1, "", 0, 1000), 50);
    cr_expect_eq(flood(PRIORITY, 0, 1, "12345", 5, 1000), 100);
    cr_expect_eq(flood(STRANGE, 0, 1, "12345", 5, 1000), 100);
    cr_expect_eq(flood(WINDOW, 0, 1, "\0\0\0\1", 4, 5000), 5000);
    cr_expect_eq(flood(DATA, 0, 1, "x", 1, 5000), 5000);
}
