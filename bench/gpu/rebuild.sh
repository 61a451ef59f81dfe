#!/usr/bin/env bash
# Builds the programs of this folder again, for a machine whose C library is older, or its CUDA another one. Run it in
# the folder that pack.sh has made. It needs gcc; with nvcc it also builds libfedlora_cuda.so, for the GPU at hand.
#
#   rebuild.sh [programs|library]     default: both, the library only where nvcc is installed
#
# ARCHITECTURE=sm_90 in the environment names the GPU where nvcc cannot see one.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-rebuild-XXXXXX")
trap 'rm -rf "$work"' EXIT
tar xzf "$here/sources.tar.gz" -C "$work"
cd "$work"
jobs=$(nproc)
defines=(-D_GNU_SOURCE -DFEDLORA_VERSION='"rebuilt"' "-DFEDLORA_BACKEND_BUILD=\"$(cat build_id)\"")

# compile LIST OPTION...: each source of the list to $objects/NAME.o
compile() {
  local list=$1
  shift
  objects=$work/objects.$(basename "$list" .list)
  mkdir "$objects"
  export objects
  # shellcheck disable=SC2016
  xargs -P "$jobs" -I{} bash -c '"${@:2}" -c "$1" -o "$objects/$(tr / _ <<<"$1").o"' _ {} \
    gcc -std=c17 -O2 -ffp-contract=off -fno-math-errno -I. -isystem include "${defines[@]}" "$@" <"$list"
}
link() { # PROGRAM
  gcc -o "$here/$1" "$objects"/*.o -Wl,--gc-sections static/*.a -lpthread -ldl -lm
  echo "built $1"
}
programs() {
  compile bench_gpu.list -ffunction-sections
  link bench_gpu
  compile cuda_check.list -ffunction-sections -Itests/cuda_on_cpu/plain -DOPERATIONS_LOADED \
    -DFEDLORA_SOURCE_DIR='"."' -DFEDLORA_BUILD_DIR='"."'
  # check.c calls the main() of the tests by this name.
  gcc -std=c17 -O2 -I. -Itests/cuda_on_cpu/plain -Dmain=plain_main -c tests/cuda_on_cpu/plain/plain.c \
    -o "$objects/tests_cuda_on_cpu_plain_plain.c.o"
  link cuda_check
}
library() {
  local nvcc
  nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc) || { echo "no nvcc: libfedlora_cuda.so is kept"; return; }
  mkdir library
  for file in base/err.c base/dtype.c kernels/quant.c kernels/backend_op.c; do
    gcc -std=c17 -O2 -fPIC -fvisibility=hidden -ffp-contract=off -I. "${defines[@]}" -c "$file" -o "library/$(basename "$file").o"
  done
  # shellcheck disable=SC2016
  printf '%s\n' kernels/cuda/*.cu | xargs -P "$jobs" -I{} bash -c '"${@:2}" -c "$1" -o "library/$(basename "$1").o"' _ {} \
    "$nvcc" -std=c++17 -O3 "-arch=${ARCHITECTURE:-native}" --fmad=false -Xcompiler=-fPIC,-fvisibility=hidden -I. "${defines[@]}"
  "$nvcc" -shared -cudart static -o "$here/libfedlora_cuda.so" library/*.o -lcublasLt \
    -Xcompiler=-static-libgcc,-static-libstdc++
  echo "built libfedlora_cuda.so"
}

case "${1:-}" in
  programs | library) "$1" ;;
  '') programs; library ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
