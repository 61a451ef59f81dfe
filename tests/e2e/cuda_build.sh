#!/usr/bin/env bash
# With nvcc, kernels/cuda/ becomes libfedlora_cuda.so: a .cu file with #error, or a kernel with a stack frame or spills,
# stops the build of a scratch copy; the library of this build exports the backend alone and needs of CUDA only cuBLASLt.
# Skipped without nvcc, and in the preset sanitize, which has no such library. No GPU is needed.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc) || skip "nvcc is not installed"
[ "$(basename "$programs")" != sanitize ] || skip "an instrumented build has no CUDA library"
copy=$work/copy
mkdir -p "$copy/build"
(cd "$root" && cp -r CMakeLists.txt base kernels agg privacy proto engine coordinator client "$copy")
rm -rf "$copy/kernels/cuda"
mkdir "$copy/kernels/cuda"

# The tests are left out, so that this takes seconds.
configure() {
  cmake -S "$copy" -B "$copy/build" -G Ninja -DFEDLORA_TESTS=OFF -DFEDLORA_NVCC="$nvcc" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CUDA_ARCHITECTURES=90 >"$work/log" 2>&1 || fail_with "$work/log" "cmake"
}
build_probe() { ninja -C "$copy/build" CMakeFiles/fedlora_cuda.dir/kernels/cuda/probe.cu.o >"$work/log" 2>&1; }

configure
grep -q 'CUDA backend: no (kernels/cuda/ has no .cu file)' "$work/log" || fail_with "$work/log" "no sources: not reported"

echo '#error "the probe is compiled"' >"$copy/kernels/cuda/probe.cu"
configure
grep -q 'CUDA backend: yes' "$work/log" || fail_with "$work/log" "a .cu file and nvcc, but no CUDA backend"
if build_probe; then fail "a .cu file with #error was not compiled"; fi
grep -q 'the probe is compiled' "$work/log" || fail_with "$work/log" "the build failed for another reason"

cat >"$copy/kernels/cuda/probe.cu" <<'PROBE'
extern "C" __global__ void probe(float *x) { x[threadIdx.x] *= 2; }
PROBE
build_probe || fail_with "$work/log" "a valid .cu file does not compile"
cat >"$copy/kernels/cuda/probe.cu" <<'PROBE'
extern "C" __global__ void probe(float *x)
{
    float part[64];
    for (int i = 0; i < 64; i++) part[(i * 7 + (int)x[1]) & 63] = x[i];
    x[0] = part[(int)x[2] & 63];
}
PROBE
if build_probe; then fail "a kernel with a stack frame was not refused"; fi
grep -q "size of stack frame" "$work/log" || fail_with "$work/log" "the build failed for another reason"

library=$programs/libfedlora_cuda.so
[ -e "$library" ] || fail "$library was not built"
exported=$(nm -D --defined-only "$library" | awk '{ print $3 }' | paste -sd' ')
[ "$exported" = 'backend_cuda backend_cuda_build' ] || fail "exported: $exported"
needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE '^(libc|libm|ld-linux.*)\.so' | paste -sd' ')
[[ "$needed" =~ ^libcublasLt\.so\.[0-9]+$ ]] || fail "needs: $needed"
