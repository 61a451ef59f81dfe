#!/usr/bin/env bash
# Sources in kernels/cuda/ are compiled into the plug-in of the CUDA backend: a .cu file with #error stops the build of a scratch
# copy, and a valid one builds. Skipped without nvcc. No GPU is needed.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc) || skip "nvcc is not installed"
copy=$work/copy
mkdir -p "$copy/build"
(cd "$root" && cp -r CMakeLists.txt base kernels agg privacy proto engine coordinator client "$copy")
rm -rf "$copy/kernels/cuda"
mkdir "$copy/kernels/cuda"

# One architecture is enough here, and the tests are left out, so that this takes seconds.
configure() {
  cmake -S "$copy" -B "$copy/build" -G Ninja -DFEDLORA_TESTS=OFF -DFEDLORA_NVCC="$nvcc" -DCMAKE_CUDA_ARCHITECTURES=90 \
    >"$work/log" 2>&1 || fail_with "$work/log" "cmake"
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
