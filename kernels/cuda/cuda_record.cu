/* Recorded passes: a CUDA graph for each key, so that a pass of a thousand launches costs the host
 * one call.
 *
 * The first call with a key runs the work directly, which grows scratch memory, chooses algorithms
 * and loads kernels. The second one captures and launches it, and later ones launch the graph. A
 * graph keeps the addresses that the work used. Memory that was given back since may be one of
 * them, so the key then starts again. */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>

enum { GRAPHS_MAX = 16 };

struct graph { /* of one key */
    uint64_t key;
    uint64_t used;        /* number of the last call with it; 0: the place is free */
    uint64_t given;       /* c->given after the work ran directly, which is equal for its graph */
    bool ran;             /* directly, with c->given as it is in `given` */
    bool plain;           /* it cannot be captured */
    cudaGraphExec_t exec; /* or NULL */
};
struct backend_record {
    struct backend_context *context;
    uint64_t calls;
    struct graph graph[GRAPHS_MAX];
};

/* Waits, because the graph may still be running. */
static void drop(struct backend_context *c, struct graph *g)
{
    if (g->exec) {
        cuda_begin(c);
        cuda_wait(c);
        (void)cudaGraphExecDestroy(g->exec);
    }
    *g = {};
}

/* The graph of the key, or a new one in place of that which was not used for longest. */
static struct graph *graph_of(struct backend_record *r, uint64_t key)
{
    struct graph *oldest = &r->graph[0];
    r->calls++;
    for (size_t i = 0; i < GRAPHS_MAX; i++) {
        struct graph *g = &r->graph[i];
        if (g->used && g->key == key) {
            g->used = r->calls;
            return g;
        }
        if (g->used < oldest->used) oldest = g;
    }
    drop(r->context, oldest);
    oldest->key = key;
    oldest->used = r->calls;
    return oldest;
}

/* After the graph the host does not know which weight the scratch of converted weights holds. */
static void launch_graph(struct backend_context *c, const struct graph *g)
{
    cuda_begin(c);
    cuda_good(c, cudaGraphLaunch(g->exec, c->stream), "running a recorded pass");
    (void)cudaGetLastError(); /* the same error once more */
    cuda_products_forget(c->products);
}

/* Operations between the start and the end of a capture are not run. The graph must not rely on
 * converted weights that an operation before it left. */
static cudaError_t capture(cudaGraph_t *out, struct backend_context *c, void (*work)(void *user),
                           void *user)
{
    cuda_begin(c);
    cudaError_t status = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal);
    if (status != cudaSuccess) return status;
    cuda_products_forget(c->products);
    c->uncapturable = false;
    c->capturing = true;
    work(user);
    c->capturing = false;
    return cudaStreamEndCapture(c->stream, out);
}

/* If CUDA refuses the capture or the graph, the work runs directly from now on; a failure of the
 * device shows again there. A failure of an operation in a good capture is kept as any other. */
static void capture_and_run(struct backend_context *c, struct graph *g, void (*work)(void *user),
                            void *user)
{
    cudaGraph_t graph = NULL;
    bool good = capture(&graph, c, work, user) == cudaSuccess && !c->uncapturable;
    bool failed = good && err_is(c->first);
    if (good && !failed) good = cudaGraphInstantiate(&g->exec, graph, 0) == cudaSuccess;
    if (graph) (void)cudaGraphDestroy(graph);
    c->uncapturable = false;
    if (failed) return;
    if (good) {
        launch_graph(c, g);
        return;
    }
    (void)cudaGetLastError();
    c->first = ERR_NONE;
    g->exec = NULL;
    g->plain = true;
    work(user);
}

void cuda_repeat(struct backend_context *c, struct backend_record **record, uint64_t key,
                 void (*work)(void *user), void *user)
{
    if (!*record && (*record = (struct backend_record *)calloc(1, sizeof **record)))
        (*record)->context = c;
    /* A profile needs the time of each operation. */
    if (!*record || c->timed || err_is(c->first)) {
        work(user);
        return;
    }
    struct backend_record *r = *record;
    REQUIRE(r->context == c);
    struct graph *g = graph_of(r, key);
    bool valid = g->ran && g->given == c->given;
    if (g->plain) {
        work(user);
    } else if (g->exec && valid) {
        launch_graph(c, g);
    } else if (valid) {
        capture_and_run(c, g, work, user);
    } else {
        struct graph fresh = {key, g->used, 0, true, false, NULL};
        drop(c, g);
        work(user);
        *g = fresh;
        g->given = c->given;
    }
}

void cuda_record_close(struct backend_record *record)
{
    if (!record) return;
    for (size_t i = 0; i < GRAPHS_MAX; i++)
        drop(record->context, &record->graph[i]);
    free(record);
}
