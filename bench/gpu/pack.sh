#!/usr/bin/env bash
# Makes build/gpu, a folder below 10 MB with all that a machine with a GPU needs to check and measure it. Copy it
# there and run call.sh in it; docs/gpu.md says what the machine has to have.
#
#   bench/gpu/pack.sh [--build DIR] [--out DIR]     default: build/release, build/gpu
#
# The digests are computed here, by the CUDA backend on the CPU. Without nvcc there is no libfedlora_cuda.so in the
# folder, and rebuild.sh makes it on the other machine.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$root/build/release out=$root/build/gpu
while [ $# -gt 1 ]; do
  case "$1" in
    --build) build=$(cd "$2" && pwd) ;;
    --out) out=$2 ;;
    *) break ;;
  esac
  shift 2
done
[ $# -eq 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
for needed in cuda_check bench_gpu libfedlora_cuda_on_cpu.so; do
  [ -e "$build/$needed" ] || { echo "pack.sh: no $build/$needed: build the preset release first" >&2; exit 1; }
done

rm -rf "$out"
mkdir -p "$out/tests/golden"
out=$(cd "$out" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-pack-XXXXXX")
trap 'rm -rf "$work"' EXIT

for program in cuda_check bench_gpu; do strip -o "$out/$program" "$build/$program"; done
if [ -e "$build/libfedlora_cuda.so" ]; then
  strip -o "$out/libfedlora_cuda.so" "$build/libfedlora_cuda.so"
else
  echo "no libfedlora_cuda.so in $build (nvcc is not installed): rebuild.sh has to make it"
fi
cp -r "$root/tests/golden/cases" "$out/tests/golden/"
mkdir "$out/tests/golden/bases" # three of them have all switches
cp -r "$root"/tests/golden/bases/{gemma2,olmo2,phi4-mini} "$out/tests/golden/bases/"
rm -f "$out"/tests/golden/bases/*/*.gguf
mkdir "$out/tests/models"
cp -r "$root/tests/models/llama" "$out/tests/models/"
cp "$root"/bench/gpu/{call.sh,rebuild.sh,floors.py} "$root"/bench/{make_base.py,peft_train.py} "$out"
FEDLORA_CUDA=$build/libfedlora_cuda_on_cpu.so "$out/cuda_check" digest "$out/shim_digests.txt" write

# The sources of both programs, by the maps of their links, and what else rebuild.sh needs.
members() { # PROGRAM: the paths of the sources of the archives' members
  grep -oE 'libfedlora_[a-z]+\.a\([a-z0-9_]+\.c\.o\)' "$build/$1.map" | sed -E 's/.*\((.*)\.o\)/\1/' | sort -u |
    while read -r name; do (cd "$root" && git ls-files -- "base/$name" "kernels/$name" "engine/$name" "engine/*/$name" \
      "agg/*/$name" "privacy/*/$name"); done
}
own="bench/gpu/gpu.c bench/gpu/no_cpu.c"
{ members bench_gpu; printf '%s\n' $own bench/gpu/train.c; } >"$work/bench_gpu.list"
{ members cuda_check; printf '%s\n' $own bench/gpu/check.c bench/gpu/check_{digest,rows,time}.c tests/golden/engine.c
  (cd "$root" && ls tests/parity/operations*.c); printf '%s\n' tests/support/support.c tests/cuda_on_cpu/plain/plain.c
} >"$work/cuda_check.list"
mkdir -p "$work/include" "$work/static"
cp -r /usr/include/{jansson*.h,sodium,sodium.h,pcre2.h,utf8proc.h,ini.h} "$work/include"
for name in jansson sodium pcre2-8 utf8proc inih; do
  cp "$(cc -print-file-name="lib$name.a")" "$work/static" || { echo "pack.sh: no lib$name.a" >&2; exit 1; }
done
# Both sides of dlopen() must have this build.
strings "$out/cuda_check" | grep -E '^[0-9.]+-[0-9a-f]{16}$' | head -1 >"$work/build_id"
(cd "$root" && git ls-files -co --exclude-standard -- base kernels engine agg privacy bench/gpu tests/parity tests/support \
  tests/golden/engine.c tests/cuda_on_cpu/plain | tar czf "$out/sources.tar.gz" -T - -C "$work" \
  bench_gpu.list cuda_check.list build_id include static)

glibc=$({ objdump -T "$out"/{cuda_check,bench_gpu,libfedlora_cuda.so} 2>/dev/null || true; } | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
size=$(du -sb "$out" | cut -f1)
echo "$out: $((size / 1000)) kB, needs $glibc"
[ "$size" -lt 10000000 ] || { echo "pack.sh: more than 10 MB" >&2; exit 1; }
