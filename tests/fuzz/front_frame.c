/* A stranger's bytes of HTTP/2: checked whole and cut into pieces, with the same output and the
 * same verdict. They are also taken as the bytes of a server, which must not move the check out of
 * its bounds. */
#include "proto/front_frame.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/http2.bin", NULL};
const int fuzz_runs = 3000;

static enum err_kind feed(struct bytes *out, const uint8_t *data, size_t size, size_t piece)
{
    struct front_budget budget;
    struct front_frame frame;
    enum err_kind kind = ERR_OK;
    front_budget_fill(&budget, 1);
    if (err_is(front_frame_open(&frame, "name", 16, &budget))) abort();
    for (size_t at = 0, n; at < size && kind == ERR_OK; at += n) {
        n = size - at < piece ? size - at : piece;
        kind = front_frame_feed(out, &frame, data + at, n).kind;
        if (frame.open_count > FRONT_FRAME_STREAMS_EARLY) abort();
    }
    front_frame_back(&frame, data, size);
    front_frame_close(&frame);
    return kind;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes whole = {.max = 64u << 20}, cut = {.max = 64u << 20};
    size_t piece = size > 0 ? 1 + data[size - 1] % 40 : 1;
    if (feed(&whole, data, size, size + 1) != feed(&cut, data, size, piece)) abort();
    if (whole.size != cut.size || (whole.size > 0 && memcmp(whole.data, cut.data, whole.size) != 0))
        abort();
    bytes_close(&whole);
    bytes_close(&cut);
    return 0;
}
