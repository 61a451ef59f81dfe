/* The scheduler: fibers, barriers, collectives of a warp, shared memory, blocks.
 *
 * It is compiled without instrumentation, because the sanitizers must see the kernels' accesses
 * alone. SHIM_TSAN and SHIM_ASAN say how the kernels are compiled. A fiber is announced to both
 * sanitizers. To the thread sanitizer a switch orders nothing; a barrier is a release and an
 * acquire of one of two words. The words alternate, because the release of a fast thread at its
 * next barrier must not reach a slow thread that still acquires at this one. */
#include "cuda_on_cpu.h"
#include "shim.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sys/mman.h>
#include <vector>

#ifdef SHIM_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags); /* flag 1: orders nothing */
void __tsan_acquire(void *address);
void __tsan_release(void *address);
void AnnotateIgnoreReadsBegin(const char *, int);
void AnnotateIgnoreReadsEnd(const char *, int);
void AnnotateIgnoreWritesBegin(const char *, int);
void AnnotateIgnoreWritesEnd(const char *, int);
}
#endif
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace
{

/* Memory taken while one exists is new to the thread sanitizer, not written by the taker. */
struct quiet {
#ifdef SHIM_TSAN
    quiet()
    {
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~quiet()
    {
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
    }
#else
    quiet() {}
    ~quiet() {}
#endif
};
#ifdef SHIM_TSAN
void acquire(char *word)
{
    __tsan_acquire(word);
}
void release(char *word)
{
    __tsan_release(word);
}
#else
void acquire(char *) {}
void release(char *) {}
#endif

enum {
    GUARD = 4096,         /* bytes below each stack that no one may touch */
    STACK = 256 << 10,    /* only touched pages exist */
    THREADS = 1024,       /* of a block */
    WARPS = THREADS / 32, /* of a block */
    STATIC_BYTES = 48 << 10,
    SHARED_BYTES = 227 << 10,
    WORDS = 3, /* of a lane in a collective */
};
enum state { READY, AT_BARRIER, AT_WARP, RETURNED };
const char *const state_name[] = {"ready", "at a barrier", "at a collective of its warp",
                                  "returned"};

struct copy {
    void *to;
    const void *from;
    size_t group;
};
struct fiber {
    void *sp;
    char *stack;
    enum state state;
    unsigned number;
    dim3 index;
    const void *fake, *tsan;    /* of the sanitizers */
    size_t group;               /* of the next copy */
    std::vector<copy> copies;   /* asynchronous, not yet done */
    std::vector<void *> due_to; /* of the last wait */
    std::vector<const void *> due_from;
};
struct warp {
    unsigned size, arrived, phase;
    const void *site;
    uint64_t slot[2][32 * WORDS]; /* two, because lanes read one while others write the next */
    float product[2][16][8];
    char word[2][8]; /* of the thread sanitizer */
};
struct shared_array {
    const void *site;
    char *p;
    size_t bytes;
};
struct block {
    unsigned size, arrived, returned, phase, yes[2];
    const void *site;
    std::vector<shared_array> shared;
    size_t static_bytes;
    char *dynamic;
    size_t dynamic_bytes;
    char word[2][8], start_word[8], end_word[8]; /* of the thread sanitizer */
};

fiber all[THREADS];
warp warps[WARPS];
block now;
fiber *current; /* NULL: the scheduler runs */
const char *kernel_name = "";
const std::function<void()> *body;
struct shim_schedule schedule;
uint64_t threads_run, switches;
void *scheduler_sp;
#ifdef SHIM_TSAN
void *scheduler_fiber;
#endif
#ifdef SHIM_ASAN
const void *scheduler_stack;
size_t scheduler_stack_bytes;
#endif

} // namespace

void shim_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: ");
    if (*kernel_name)
        fprintf(stderr, "%s: block (%u,%u,%u) thread %u: ", kernel_name, blockIdx.x, blockIdx.y,
                blockIdx.z, current ? current->number : 0);
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    abort();
}

/* ---- Switching. */

#ifndef __x86_64__
#error "shim_switch() is written for x86-64"
#endif
/* Saves the registers that a function must preserve and the stack pointer, and loads another's. */
extern "C" void shim_switch(void **save, void *to);
asm(".text\n.globl shim_switch\n.type shim_switch,@function\nshim_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size shim_switch,.-shim_switch\n");

/* From a fiber to the scheduler; `end` if the fiber does not come back. */
static void leave(fiber *f, bool end)
{
#ifdef SHIM_TSAN
    __tsan_switch_to_fiber(scheduler_fiber, 1);
#endif
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(end ? nullptr : const_cast<void **>(&f->fake), scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    (void)end;
    shim_switch(&f->sp, scheduler_sp);
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(const_cast<void *>(f->fake), &scheduler_stack,
                                    &scheduler_stack_bytes);
#endif
}

static void resume(fiber *f)
{
    current = f;
    threadIdx = f->index;
    switches++;
#ifdef SHIM_TSAN
    __tsan_switch_to_fiber(const_cast<void *>(f->tsan), 1);
#endif
#ifdef SHIM_ASAN
    void *fake;
    __sanitizer_start_switch_fiber(&fake, f->stack, STACK);
#endif
    shim_switch(&scheduler_sp, f->sp);
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    current = nullptr;
}

static void fiber_main()
{
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    acquire(now.start_word);
    (*body)();
    current->state = RETURNED;
    now.returned++;
    release(now.end_word);
    leave(current, true);
    abort(); /* no one resumes it */
}

/* A fiber is kept for the next blocks, because making one costs the thread sanitizer 0.5 ms. */
static void fiber_open(fiber *f)
{
    if (!f->stack) {
        char *p = static_cast<char *>(mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) shim_fail("no memory for stacks");
        f->stack = p + GUARD;
    }
#ifdef SHIM_TSAN
    if (!f->tsan) f->tsan = __tsan_create_fiber(0);
#endif
}

static void fiber_start(fiber *f, unsigned number)
{
    fiber_open(f);
    f->number = number;
    f->index = dim3(number, 0, 0);
    f->state = READY;
    f->group = 0;
    f->copies.clear();
    void **top = reinterpret_cast<void **>(f->stack + STACK);
    *--top = nullptr; /* the return address of fiber_main(), which also aligns its frame */
    *--top = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++)
        *--top = nullptr; /* the registers */
    f->sp = top;
}

/* New fibers do not know what the last block did, so that its races with this one show. */
static void forget_fibers()
{
#ifdef SHIM_TSAN
    for (fiber &f : all) {
        if (f.tsan) __tsan_destroy_fiber(const_cast<void *>(f.tsan));
        f.tsan = nullptr;
    }
#endif
}

/* ---- Barriers and collectives. */

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
static char *shared_take(size_t bytes)
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
static void shared_give(char *p, size_t bytes)
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

/* ---- A launch. */

static void make_order(std::vector<unsigned> *out, unsigned n, std::mt19937 *rng)
{
    out->resize(n);
    for (unsigned i = 0; i < n; i++)
        (*out)[i] = schedule.order == SHIM_DESCENDING ? n - 1 - i : i;
    if (schedule.order == SHIM_SHUFFLED) std::shuffle(out->begin(), out->end(), *rng);
}

/* Runs the warps in turn, each as far as it comes without the others. */
static void run_block(unsigned n, std::mt19937 *rng)
{
    static std::vector<unsigned> warp_order, lane_order;
    unsigned count = (n + 31) / 32;
    now.size = n;
    now.arrived = now.returned = now.phase = 0;
    now.static_bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        warps[i].size = min(32u, n - 32 * i);
        warps[i].arrived = warps[i].phase = 0;
    }
    for (unsigned i = 0; i < n; i++)
        fiber_start(&all[i], i);
    now.dynamic = now.dynamic_bytes ? shared_take(now.dynamic_bytes) : nullptr;
    make_order(&warp_order, count, rng);
    make_order(&lane_order, 32, rng);
    while (now.returned < n) {
        bool any = false;
        for (unsigned w : warp_order)
            for (bool more = true; more;) {
                more = false;
                for (unsigned l : lane_order)
                    if (32 * w + l < n && all[32 * w + l].state == READY) {
                        resume(&all[32 * w + l]);
                        more = any = true;
                    }
            }
        if (any) continue;
        for (unsigned i = n; i-- > 0;)
            if (all[i].state != RETURNED) current = &all[i];
        shim_fail("no thread can go on: this one is %s, %u have returned",
                  state_name[current->state], now.returned);
    }
    for (const shared_array &s : now.shared)
        shared_give(s.p, s.bytes);
    now.shared.clear();
    if (now.dynamic) shared_give(now.dynamic, now.dynamic_bytes);
}

void shim_run_grid(const char *name, dim3 grid, dim3 shape, size_t dynamic,
                   const std::function<void()> &thread)
{
    quiet q;
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    kernel_name = name;
    if (shape.y * shape.z != 1) shim_fail("launch: blocks must have one dimension");
    if (shape.x == 0 || shape.x > THREADS || dynamic > SHARED_BYTES || blocks == 0 ||
        grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
        shim_fail("launch: grid (%u,%u,%u), %u threads, %zu bytes of shared memory", grid.x, grid.y,
                  grid.z, shape.x, dynamic);
    body = &thread;
    blockDim = shape;
    gridDim = grid;
    now.dynamic_bytes = dynamic;
    threads_run += blocks * shape.x;
#ifdef SHIM_TSAN
    scheduler_fiber = __tsan_get_current_fiber();
#endif
    static const char *const wanted = getenv("SHIM_RACE_BLOCKS");
    bool fresh = wanted && *wanted == '1';
    std::mt19937 rng(schedule.seed);
    std::vector<unsigned> order;
    make_order(&order, (unsigned)blocks, &rng);
    release(now.start_word);
    for (unsigned i : order) {
        blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        if (fresh) forget_fibers();
        run_block(shape.x, &rng);
    }
    acquire(now.end_word);
    kernel_name = "";
    blockIdx = dim3(0, 0, 0);
}

void shim_schedule_set(struct shim_schedule s)
{
    schedule = s;
}
struct shim_schedule shim_schedule_now()
{
    return schedule;
}
void shim_statistics(uint64_t *threads, uint64_t *switched, bool reset)
{
    *threads = threads_run;
    *switched = switches;
    if (reset) threads_run = switches = 0;
}
