/* cuda_plants NAME: runs a kernel with a planted fault, or "right" ones, under all schedules.
 * Exit status 0: nothing was noticed; 3: results are wrong, or differ between schedules. The shim
 * and the sanitizers end the process in their own ways. tests/e2e/cuda_plants.sh expects a fault
 * to be found in every build. */
#include "kernels/cuda/cuda_common.cuh"
#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

enum { THREADS = 128, WARPS = THREADS / 32, BLOCKS = 5, COLS = 300, TILES = 4 };
enum plant {
    RIGHT,
    NO_BARRIER,      /* between the warps' sums and their reader */
    NO_LOOP_BARRIER, /* at the end of a pipelined loop */
    NO_WAIT,         /* for asynchronous copies */
    DIVERGENT,       /* a barrier that one warp reaches */
    TWO_BLOCKS,      /* write one place */
    ONE_PLACE,       /* all blocks add to one place */
    GLOBAL_BEYOND,   /* writes behind the end of device memory */
    SHARED_BEYOND,   /* reads behind the end of a shared array */
    HOST_READS,      /* device memory */
    PLANTS
};
static const char *const name[PLANTS] = {
    "right",      "no-barrier", "no-loop-barrier", "no-wait",      "divergent",
    "two-blocks", "one-place",  "global-beyond",   "shared-beyond", "host-reads"};

/* out[row] = sum of x[row] (rows, cols), one block a row; `wrong` is a plant. */
template <int wrong>
__global__ void __launch_bounds__(THREADS)
    row_sums(float *out, const float *x, int cols, int warps)
{
    SHARED(float, part, WARPS);
    float sum = 0;
    for (int i = threadIdx.x; i < cols; i += THREADS) sum += x[blockIdx.x * cols + i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    if (wrong == DIVERGENT) {
        if (threadIdx.x < 32) __syncthreads();
    } else if (wrong != NO_BARRIER)
        __syncthreads();
    sum = 0;
    for (int i = 0; i < warps + (wrong == SHARED_BEYOND); i++) sum += part[i];
    if (threadIdx.x == 0 && wrong != ONE_PLACE) out[blockIdx.x] = sum;
    if (threadIdx.x == 0 && wrong == ONE_PLACE) out[0] = sum + (blockIdx.x ? out[0] : 0);
    if (threadIdx.x == 5 && wrong == TWO_BLOCKS) out[0] = sum;
    if (threadIdx.x == 5 && wrong == GLOBAL_BEYOND) out[gridDim.x + 1] = sum;
}

/* out[i] = sum of the column THREADS - 1 - i of x (tiles, THREADS, 4) */
template <int wrong>
__global__ void __launch_bounds__(THREADS) column_sums(float *out, const float *x, int tiles)
{
    SHARED(float4, buffer, 2 * THREADS);
    float sum = 0;
    for (int t = -1; t < tiles; t++) {
        if (t + 1 < tiles)
            cp_async_16(&buffer[(t + 1) % 2 * THREADS + threadIdx.x],
                        x + ((t + 1) * THREADS + threadIdx.x) * 4, true);
        cp_async_commit();
        if (t < 0) continue;
        if (wrong != NO_WAIT) cp_async_wait<1>();
        __syncthreads();
        float4 v = buffer[t % 2 * THREADS + THREADS - 1 - threadIdx.x];
        sum += v.x + v.y + v.z + v.w;
        if (wrong != NO_LOOP_BARRIER) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

static float input[BLOCKS * COLS + TILES * THREADS * 4];

template <int wrong> static void run(float *rows, float *columns)
{
    cudaStream_t s;
    float *x, *out, *more;
    if (cudaStreamCreate(&s) || cudaMalloc(&x, sizeof input) || cudaMalloc(&out, BLOCKS * 4) ||
        cudaMalloc(&more, THREADS * 4))
        exit(4);
    cudaMemcpyAsync(x, input, sizeof input, cudaMemcpyHostToDevice, s);
    launch(row_sums<wrong>, dim3(BLOCKS), dim3(THREADS), 0, s, out, x, (int)COLS, (int)WARPS);
    launch(column_sums<wrong>, dim3(1), dim3(THREADS), 0, s, more, x + BLOCKS * COLS, (int)TILES);
    cudaMemcpyAsync(rows, out, BLOCKS * 4, cudaMemcpyDeviceToHost, s);
    cudaMemcpyAsync(columns, more, THREADS * 4, cudaMemcpyDeviceToHost, s);
    if (cudaStreamSynchronize(s) || cudaGetLastError()) exit(4);
    if (wrong == HOST_READS) rows[0] = out[0];
    cudaFree(x);
    cudaFree(out);
    cudaFree(more);
    cudaStreamDestroy(s);
}

static void (*const run_plant[PLANTS])(float *, float *) = {
    run<RIGHT>,      run<NO_BARRIER>, run<NO_LOOP_BARRIER>, run<NO_WAIT>,      run<DIVERGENT>,
    run<TWO_BLOCKS>, run<ONE_PLACE>,  run<GLOBAL_BEYOND>,   run<SHARED_BEYOND>, run<HOST_READS>};

int main(int argc, char **argv)
{
    float want[BLOCKS + THREADS] = {}, got[BLOCKS + THREADS], first[BLOCKS + THREADS];
    int plant = 0, bad = 0;
    while (plant < PLANTS && (argc < 2 || strcmp(argv[1], name[plant]))) plant++;
    if (plant == PLANTS) return 2;
    for (size_t i = 0; i < sizeof input / 4; i++) input[i] = (float)(i * 7919 % 1009);
    for (int i = 0; i < BLOCKS * COLS; i++) want[i / COLS] += input[i];
    for (int i = 0; i < TILES * THREADS * 4; i++)
        want[BLOCKS + THREADS - 1 - i / 4 % THREADS] += input[BLOCKS * COLS + i];
    for (unsigned k = 0; k < SHIM_SCHEDULES; k++) {
        shim_schedule_number(k);
        run_plant[plant](got, got + BLOCKS);
        if (k == 0) memcpy(first, got, sizeof got);
        bool wrong = memcmp(got, want, sizeof got) != 0;
        bool other = memcmp(got, first, sizeof got) != 0;
        bad += wrong || other;
        if (wrong || other)
            printf("found: schedule %u: %s%s\n", k, wrong ? "wrong values" : "",
                   other ? " other bits than schedule 0" : "");
    }
    return bad ? 3 : 0;
}
