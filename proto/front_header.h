/* Header blocks of HTTP/2 (HPACK, RFC 7541) from a client, made safe for gRPC. The block is decoded
 * by libnghttp2 within bounds, and the headers that gRPC needs are written again as plain literals.
 * So gRPC sees no compressed header of a stranger. */
#ifndef PROTO_FRONT_HEADER_H
#define PROTO_FRONT_HEADER_H

#include "base/bytes.h"

enum {
    FRONT_HEADER_BLOCK_BYTES = 16384, /* of one block, with its continuations */
    FRONT_HEADER_LIST_BYTES = 8192,   /* names and values, and 32 a field, as RFC 7540 counts */
    FRONT_HEADER_FIELDS = 64,
};

struct front_header { /* of one connection, because HPACK keeps a table between blocks */
    struct nghttp2_hd_inflater *inflater;
};

err front_header_open(struct front_header *out);
void front_header_close(struct front_header *header); /* accepts a zeroed struct */
/* Appends the block for gRPC. `authority` takes the place of the client's. On an error the
 * connection must end, because the table may no longer agree with the client's. */
err front_header_rewrite(struct bytes *out, struct front_header *header, const struct bytes *block,
                         const char *authority);

#endif
