/* Shared by cuda_on_cpu.cpp (fibers and launches) and cuda_block.cpp (barriers, collectives, shared
 * memory). Neither is instrumented, because the sanitizers must see the kernels' accesses alone.
 * SHIM_TSAN and SHIM_ASAN tell how the kernels are compiled. */
#ifndef TESTS_CUDA_ON_CPU_CUDA_BLOCK_H
#define TESTS_CUDA_ON_CPU_CUDA_BLOCK_H

#include "cuda_on_cpu.h"
#include "shim.h"

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

namespace fibers
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
inline void acquire(char *word)
{
    __tsan_acquire(word);
}
inline void release(char *word)
{
    __tsan_release(word);
}
#else
inline void acquire(char *) {}
inline void release(char *) {}
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

extern fiber all[THREADS];
extern warp warps[WARPS];
extern block now;
extern fiber *current; /* NULL: the scheduler runs */
extern struct shim_schedule schedule;

void leave(fiber *f, bool end); /* to the scheduler; `end`: it does not come back */
char *shared_take(size_t bytes);
void shared_give(char *p, size_t bytes); /* and looks whether something beyond was written */
} // namespace fibers
#endif
