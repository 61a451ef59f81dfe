/* Checks the frames of one HTTP/2 connection (RFC 7540) before gRPC sees them. Bytes may arrive cut
 * anywhere; the output does not depend on the cuts. Memory is bounded: only header blocks are held
 * back, up to FRONT_HEADER_BLOCK_BYTES.
 *
 *     client to server   front_frame_feed(): the bytes for gRPC, or why the connection must end
 *     server to client   front_frame_back(): only looks, to know which calls are over
 *
 * Passed on: DATA, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE. HEADERS and CONTINUATION
 * become one HEADERS frame that front_header.h has written again. Dropped: PRIORITY and unknown
 * types, which gRPC would ignore. Windows and the size of DATA frames are checked by gRPC. */
#ifndef PROTO_FRONT_FRAME_H
#define PROTO_FRONT_FRAME_H

#include "proto/front_budget.h"
#include "proto/front_header.h"

enum {
    FRONT_FRAME_HEAD = 9,
    FRONT_FRAME_SMALL = 256, /* bytes; smaller DATA frames are counted */
    /* A client may open more streams than allowed until it has seen the server's settings. */
    FRONT_FRAME_STREAMS_EARLY = 128,
    FRONT_FRAME_AUTHORITY = 33,
};

enum front_frame_use { FRONT_FRAME_PASS, FRONT_FRAME_DROP, FRONT_FRAME_COLLECT };

struct front_frame {
    struct front_budget *budget; /* borrowed; of the client's identity */
    char authority[FRONT_FRAME_AUTHORITY];
    uint32_t streams_max;
    struct front_header header;
    /* The frame that is arriving. */
    uint8_t head[24]; /* its first bytes; at the start, the client's preface */
    size_t head_size;
    uint32_t left, stream;
    uint8_t type, flags;
    enum front_frame_use use;
    bool started, has_settings, acknowledged;
    /* The header block that is arriving: of block_stream, 0: none. */
    struct bytes part, block;
    uint32_t block_stream;
    uint8_t block_flags;
    int continuations;
    /* Streams that the client has opened and neither side has ended. */
    uint32_t open[FRONT_FRAME_STREAMS_EARLY], open_count, last_stream;
    /* The server's frames. */
    uint8_t back[FRONT_FRAME_HEAD];
    size_t back_size;
    uint32_t back_left;
};

/* `out` must not move the budget away while it is in use. */
err front_frame_open(struct front_frame *out, const char *authority, uint32_t streams_max,
                     struct front_budget *budget);
void front_frame_close(struct front_frame *frame); /* accepts a zeroed struct */
/* Appends to `out`. An error names what the client did; then the connection must end. */
err front_frame_feed(struct bytes *out, struct front_frame *frame, const uint8_t *data,
                     size_t size);
void front_frame_back(struct front_frame *frame, const uint8_t *data, size_t size);
/* True between two frames of the server, where another frame may be put in. */
bool front_frame_is_between(const struct front_frame *frame);

#endif
