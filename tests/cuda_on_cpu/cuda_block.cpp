/* Inside a block: barriers, collectives of a warp, shared memory and asynchronous copies. */
#include "cuda_block.h"

#include <cstdlib>

using namespace fibers;

unsigned shim_syncthreads(bool value, const void *site)
{
    block *b = &now;
    unsigned phase = b->phase & 1;
    if (b->arrived && b->site != site)
        shim_fail("__syncthreads: other threads of the block wait at another one");
    if (b->returned) shim_fail("__syncthreads: %u threads of the block have returned", b->returned);
    if (b->arrived++ == 0) b->yes[phase] = 0;
    b->site = site;
    b->yes[phase] += value;
    release(b->word[phase]);
    current->state = AT_BARRIER;
    if (b->arrived == b->size) {
        b->arrived = 0;
        b->phase++;
        for (unsigned i = 0; i < b->size; i++)
            all[i].state = READY;
    }
    leave(current, false);
    acquire(b->word[phase]);
    return b->yes[phase];
}

/* Waits for the lanes of the warp. The last to come calls `last`, then all see the words. */
static const uint64_t *meet(const uint64_t *mine, size_t words, const void *site,
                            void (*last)(warp *, unsigned phase))
{
    fiber *f = current;
    unsigned lane = f->number % 32, first = f->number - lane;
    warp *w = &warps[f->number / 32];
    unsigned phase = w->phase & 1;
    if (w->arrived && w->site != site) shim_fail("lanes of a warp wait at another collective");
    w->site = site;
    for (size_t i = 0; i < words; i++)
        w->slot[phase][lane * words + i] = mine[i];
    f->state = AT_WARP;
    if (++w->arrived == w->size) {
        if (last) last(w, phase);
        w->arrived = 0;
        w->phase++;
        for (unsigned i = 0; i < w->size; i++)
            all[first + i].state = READY;
    } else
        leave(f, false);
    return w->slot[phase];
}

static void check_mask(unsigned mask)
{
    if (mask != 0xffffffffu) shim_fail("a collective with the mask %08x, must be full", mask);
}
const uint64_t *shim_exchange(uint64_t mine, unsigned mask, const void *site)
{
    check_mask(mask);
    return meet(&mine, 1, site, nullptr);
}

void shim_syncwarp(unsigned mask, const void *site)
{
    check_mask(mask);
    warp *w = &warps[current->number / 32];
    unsigned phase = w->phase & 1;
    uint64_t nothing = 0;
    release(w->word[phase]);
    meet(&nothing, 1, site, nullptr);
    acquire(w->word[phase]);
}

static float half_of(uint64_t word, unsigned at)
{
    return __uint_as_float((unsigned)(word >> 16 * at & 0xffff) << 16);
}
/* Gathers the fragments of mma.m16n8k16: lane 4 g + t has rows g and g + 8 of a, column g of b. */
static void multiply(warp *w, unsigned phase)
{
    if (w->size != 32) shim_fail("mma in a warp of %u lanes", w->size);
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const uint64_t *m = w->slot[phase] + lane * 3;
        unsigned g = lane >> 2, t = 2 * (lane & 3);
        for (unsigned k = 0; k < 2; k++) {
            a[g][t + k] = half_of(m[0], k);
            a[g + 8][t + k] = half_of(m[0], 2 + k);
            a[g][t + 8 + k] = half_of(m[1], k);
            a[g + 8][t + 8 + k] = half_of(m[1], 2 + k);
            b[t + k][g] = half_of(m[2], k);
            b[t + 8 + k][g] = half_of(m[2], 2 + k);
        }
    }
    for (unsigned i = 0; i < 16; i++) {
        float sum[8] = {};
        for (unsigned k = 0; k < 16; k++)
            for (unsigned j = 0; j < 8; j++)
                sum[j] += a[i][k] * b[k][j];
        for (unsigned j = 0; j < 8; j++)
            w->product[phase][i][j] = sum[j];
    }
}
void shim_mma(float c[4], const unsigned a[4], const unsigned b[2], const void *site)
{
    uint64_t mine[3] = {a[0] | (uint64_t)a[1] << 32, a[2] | (uint64_t)a[3] << 32,
                        b[0] | (uint64_t)b[1] << 32};
    warp *w = &warps[current->number / 32];
    unsigned phase = w->phase & 1, g = current->number % 32 >> 2, t = 2 * (current->number & 3);
    meet(mine, 3, site, multiply);
    for (unsigned i = 0; i < 4; i++)
        c[i] += w->product[phase][g + 8 * (i >> 1)][t + (i & 1)];
}

/* ---- Shared memory and asynchronous copies. */

/* A read beyond the end finds NaNs; a write is found in shared_give(), if it is near. */
enum { BEYOND = 128 };
char *fibers::shared_take(size_t bytes)
{
    size_t room = (bytes + 127) / 128 * 128 + BEYOND;
    char *p = static_cast<char *>(aligned_alloc(128, room));
    if (!p) shim_fail("no memory");
    memset(p, 0xff, room);
#ifdef SHIM_ASAN
    __asan_poison_memory_region(p + bytes, room - bytes);
#endif
    return p;
}
void fibers::shared_give(char *p, size_t bytes)
{
    size_t room = (bytes + 127) / 128 * 128 + BEYOND;
#ifdef SHIM_ASAN
    __asan_unpoison_memory_region(p, room);
#endif
    for (size_t i = bytes; i < room; i++)
        if (p[i] != -1) shim_fail("wrote %zu bytes beyond %zu of shared memory", i - bytes, bytes);
    free(p);
}

void *shim_shared(const void *site, size_t bytes)
{
    quiet q;
    for (const shared_array &s : now.shared)
        if (s.site == site) return s.p;
    now.static_bytes += bytes;
    if (now.static_bytes > STATIC_BYTES || now.static_bytes + now.dynamic_bytes > SHARED_BYTES)
        shim_fail("%zu bytes of static and %zu of dynamic shared memory", now.static_bytes,
                  now.dynamic_bytes);
    now.shared.push_back({site, shared_take(bytes), bytes});
    return now.shared.back().p;
}
void *shim_dynamic_shared()
{
    if (!now.dynamic) shim_fail("DYNAMIC_SHARED in a launch without dynamic shared memory");
    return now.dynamic;
}

bool shim_cp_async(void *to, const void *from, bool valid)
{
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(valid ? from : nullptr)) &
        15)
        shim_fail("cp.async: addresses %p and %p: not 16 n", to, from);
    if (schedule.eager) return true;
    quiet q;
    current->copies.push_back({to, valid ? from : nullptr, current->group});
    return false;
}
void shim_cp_async_commit()
{
    current->group++;
}
size_t shim_cp_async_due(size_t keep, void ***to, const void ***from)
{
    quiet q;
    fiber *f = current;
    size_t n = 0, end = f->group > keep ? f->group - keep : 0;
    f->due_to.clear();
    f->due_from.clear();
    for (; n < f->copies.size() && f->copies[n].group < end; n++) {
        f->due_to.push_back(f->copies[n].to);
        f->due_from.push_back(f->copies[n].from);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + (ptrdiff_t)n);
    *to = f->due_to.data();
    *from = f->due_from.data();
    return n;
}
