#include "proto/front_header.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <string.h>

enum { HEADER_VALUE_BYTES = 512, HEADER_FIELD_OVERHEAD = 32 };

/* The fields that are passed on, pseudo-headers first, as HTTP/2 requires. Others are dropped:
 * nothing reads them. */
static const struct kept {
    const char *name;
    size_t value_max;
} kept[] = {{":method", 16},      {":scheme", 16},      {":path", HEADER_VALUE_BYTES}, {"te", 64},
            {"content-type", 64}, {"grpc-timeout", 16}, {"grpc-encoding", 32}};

enum { HEADER_KEPT = sizeof kept / sizeof kept[0] };

struct fields { /* the values found, by index of kept */
    char value[HEADER_KEPT][HEADER_VALUE_BYTES + 1];
    bool found[HEADER_KEPT];
    size_t count, bytes;
};

err front_header_open(struct front_header *out)
{
    nghttp2_hd_inflater *inflater = NULL;
    if (nghttp2_hd_inflate_new(&inflater) != 0) return err_sys(ENOMEM, "header tables");
    out->inflater = inflater;
    return ERR_NONE;
}

void front_header_close(struct front_header *header)
{
    if (header->inflater != NULL) nghttp2_hd_inflate_del(header->inflater);
    header->inflater = NULL;
}

static bool is_plain(const uint8_t *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (text[i] < 0x20 || text[i] > 0x7e) return false;
    return true;
}

static err take_field(struct fields *out, const nghttp2_nv *nv)
{
    out->count++;
    out->bytes += nv->namelen + nv->valuelen + HEADER_FIELD_OVERHEAD;
    if (out->count > FRONT_HEADER_FIELDS || out->bytes > FRONT_HEADER_LIST_BYTES)
        return err_make(ERR_INPUT, "headers of more than %d bytes or %d fields",
                        FRONT_HEADER_LIST_BYTES, FRONT_HEADER_FIELDS);
    for (size_t i = 0; i < HEADER_KEPT; i++) {
        if (nv->namelen != strlen(kept[i].name) || memcmp(nv->name, kept[i].name, nv->namelen) != 0)
            continue;
        if (out->found[i] || nv->valuelen > kept[i].value_max || !is_plain(nv->value, nv->valuelen))
            return err_make(ERR_INPUT, "a malformed header %s", kept[i].name);
        memcpy(out->value[i], nv->value, nv->valuelen);
        out->value[i][nv->valuelen] = 0;
        out->found[i] = true;
    }
    return ERR_NONE;
}

static err decode(struct fields *out, struct front_header *header, const struct bytes *block)
{
    const uint8_t *at = block->data;
    size_t left = block->size;
    for (;;) {
        nghttp2_nv nv;
        int flags = 0;
        ssize_t used = nghttp2_hd_inflate_hd2(header->inflater, &nv, &flags, at, left, /*final*/ 1);
        if (used < 0) return err_make(ERR_INPUT, "headers that cannot be decoded");
        if (used > 0) at += used; /* an empty block has no address */
        left -= (size_t)used;
        if (flags & NGHTTP2_HD_INFLATE_EMIT) TRY(take_field(out, &nv));
        if (flags & NGHTTP2_HD_INFLATE_FINAL) break;
        if (!(flags & NGHTTP2_HD_INFLATE_EMIT) && left == 0) break;
    }
    nghttp2_hd_inflate_end_headers(header->inflater);
    return ERR_NONE;
}

/* A length in HPACK's form with a prefix of 7 bits, without Huffman coding. */
static err put_text(struct bytes *out, const char *text)
{
    uint8_t length[4];
    size_t size = strlen(text), used = 0;
    if (size < 127) {
        length[used++] = (uint8_t)size;
    } else {
        size_t rest = size - 127;
        length[used++] = 127;
        for (; rest >= 128; rest >>= 7)
            length[used++] = (uint8_t)(rest | 128);
        length[used++] = (uint8_t)rest;
    }
    TRY(bytes_append(out, length, used));
    return bytes_append(out, text, size);
}

/* The first byte 0 means a literal that enters no table. */
static err put_field(struct bytes *out, const char *name, const char *value)
{
    TRY(bytes_append(out, "", 1));
    TRY(put_text(out, name));
    return put_text(out, value);
}

err front_header_rewrite(struct bytes *out, struct front_header *header, const struct bytes *block,
                         const char *authority)
{
    struct fields fields;
    memset(fields.found, 0, sizeof fields.found);
    fields.count = fields.bytes = 0;
    TRY(decode(&fields, header, block));
    TRY(put_field(out, ":authority", authority));
    for (size_t i = 0; i < HEADER_KEPT; i++)
        if (fields.found[i]) TRY(put_field(out, kept[i].name, fields.value[i]));
    return ERR_NONE;
}
