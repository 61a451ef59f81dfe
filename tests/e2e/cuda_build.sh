#!/usr/bin/env bash
# With nvcc, kernels/cuda/ becomes libfedlora_cuda.so: a .cu file with #error stops the build of a scratch copy; the
# kernels compile for all architectures without spills or stack frames; the library exports the backend alone and
# needs of CUDA only cuBLASLt. Skipped without nvcc, and in the preset sanitize, which would repeat it. No GPU is needed.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc) || skip "nvcc is not installed"
[ "$(basename "$programs")" != sanitize ] || skip "the same as in the preset release"
copy=$work/copy
mkdir -p "$copy/build"
(cd "$root" && cp -r CMakeLists.txt base kernels agg privacy proto engine coordinator client "$copy")
mv "$copy/kernels/cuda" "$work/kernels"
mkdir "$copy/kernels/cuda"

# The tests are left out, so that this takes seconds.
configure() { # ARCHITECTURES
  cmake -S "$copy" -B "$copy/build" -G Ninja -DFEDLORA_TESTS=OFF -DFEDLORA_NVCC="$nvcc" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CUDA_ARCHITECTURES="$1" -DCMAKE_CUDA_FLAGS=-Xptxas=-v >"$work/log" 2>&1 || fail_with "$work/log" "cmake"
}
build_probe() { ninja -C "$copy/build" CMakeFiles/fedlora_cuda.dir/kernels/cuda/probe.cu.o >"$work/log" 2>&1; }

# Prints each kernel that ptxas has given a stack frame or spills; the names are decoded.
with_stack() { # LOG
  c++filt <"$1" | awk '
    /Compiling entry function/ { name = $0; sub(/.*Compiling entry function ./, "", name); sub(/. for .sm_/, " sm_", name); sub(/.$/, "", name) }
    /bytes stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ { print name ":" $0 }'
}

configure 90
grep -q 'CUDA backend: no (kernels/cuda/ has no .cu file)' "$work/log" || fail_with "$work/log" "no sources: not reported"

echo '#error "the probe is compiled"' >"$copy/kernels/cuda/probe.cu"
configure 90
grep -q 'CUDA backend: yes' "$work/log" || fail_with "$work/log" "a .cu file and nvcc, but no CUDA backend"
if build_probe; then fail "a .cu file with #error was not compiled"; fi
grep -q 'the probe is compiled' "$work/log" || fail_with "$work/log" "the build failed for another reason"

cat >"$copy/kernels/cuda/probe.cu" <<'PROBE'
extern "C" __global__ void probe(float *x) { x[threadIdx.x] *= 2; }
PROBE
build_probe || fail_with "$work/log" "a valid .cu file does not compile"
[ -z "$(with_stack "$work/log")" ] || fail_with "$work/log" "a kernel without stack frame is refused"
cat >"$copy/kernels/cuda/probe.cu" <<'PROBE'
extern "C" __global__ void probe(float *x)
{
    float part[64];
    for (int i = 0; i < 64; i++) part[(i * 7 + (int)x[1]) & 63] = x[i];
    x[0] = part[(int)x[2] & 63];
}
PROBE
build_probe || fail_with "$work/log" "a kernel with an array does not compile"
with_stack "$work/log" | grep -q 'probe' || fail_with "$work/log" "a kernel with a stack frame was not noticed"

# The kernels themselves, as they are delivered.
compgen -G "$work/kernels/*.cu" >/dev/null || exit 0
rm -rf "$copy/kernels/cuda" "$copy/build"
mv "$work/kernels" "$copy/kernels/cuda"
configure '80;90;100'
ninja -C "$copy/build" fedlora_cuda >"$work/log" 2>&1 || fail_with "$work/log" "kernels/cuda does not compile"
grep -q 'bytes stack frame' "$work/log" || fail_with "$work/log" "ptxas reported nothing"
stack=$(with_stack "$work/log")
[ -z "$stack" ] || fail "stack frames or spills: $stack"
library=$copy/build/libfedlora_cuda.so
exported=$(nm -D --defined-only "$library" | awk '{ print $3 }' | paste -sd' ')
[ "$exported" = 'backend_cuda backend_cuda_build' ] || fail "exported: $exported"
needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE '^(libc|libm|ld-linux.*)\.so' | paste -sd' ')
[[ "$needed" =~ ^libcublasLt\.so\.[0-9]+$ ]] || fail "needs: $needed"
