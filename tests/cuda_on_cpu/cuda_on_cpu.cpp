/* The scheduler: fibers and launches.
 *
 * A fiber is announced to both sanitizers. To the thread sanitizer a switch orders nothing, and a
 * barrier is a release and an acquire of one of two words. The words alternate, because the release
 * of a fast thread at its next barrier must not reach a slow thread that still acquires at this
 * one. */
#include "cuda_block.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sys/mman.h>

using namespace fibers;

dim3 threadIdx, blockIdx, blockDim, gridDim;
fiber fibers::all[THREADS];
warp fibers::warps[WARPS];
block fibers::now;
fiber *fibers::current;
struct shim_schedule fibers::schedule;

namespace
{
const char *const state_name[] = {"ready", "at a barrier", "at a collective of its warp",
                                  "returned"};
const char *kernel_name = "";
const std::function<void()> *body;
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

void fibers::leave(fiber *f, bool end)
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
