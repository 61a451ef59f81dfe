#!/usr/bin/env bash
# Makes the Debian packages fedlora, fedlora-coordinator and fedlora-member, with all of debian's hardening flags:
#
#   deploy/make-packages.sh [-o DIR] [--build DIR]
#
# -o DIR: where the packages go; default build/packages. --build DIR: package the programs of this build, instead of
# building them in build/packages/build. Needs deploy/install-deps.sh --packages. The same commit gives the same bytes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/build/packages build=
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out=$2 && shift 2 ;;
    --build) build=$(cd "$2" && pwd) && shift 2 ;;
    *) sed -n 's/^# \{0,1\}//; 2,8p' "$0" >&2 && exit 2 ;;
  esac
done
for tool in dh dpkg-shlibdeps; do
  command -v "$tool" >/dev/null || { echo "make-packages: $tool is missing: deploy/install-deps.sh --packages" >&2; exit 1; }
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
# Files of packages carry the time of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

if [ -z "$build" ]; then
  build=$out/build
  # As in the preset; CMake's own flags would leave the assertions of libraries out.
  optimised=$(sed -nE 's/.*"CMAKE_C_FLAGS_RELEASE": "([^"]*)".*/\1/p' "$root/CMakePresets.json" | head -1)
  flags() { DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-buildflags --get "$1"; }
  CFLAGS="$(flags CFLAGS) $(flags CPPFLAGS)" LDFLAGS=$(flags LDFLAGS) cmake -S "$root" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release "-DCMAKE_C_FLAGS_RELEASE=$optimised" -DFEDLORA_TESTS=OFF >/dev/null
  cmake --build "$build" --target fedlora fedlorad
fi

# A folder of its own, so that the working tree stays as it is.
work=$out/work
rm -rf "$work" && mkdir -p "$work/fedlora/stage" && cd "$work/fedlora"
for component in fedlora fedlorad; do
  DESTDIR=$PWD/stage cmake --install "$build" --prefix /usr --component "$component" >/dev/null
done
cp -r "$root/deploy/debian" "$root/deploy/systemd" "$root/docs" .
mkdir -p stage/etc/fedlora && cp debian/fedlorad.ini stage/etc/fedlora/
for unit in fedlorad.service fedlorad-renew.service fedlorad-renew.timer; do
  cp "systemd/$unit" "debian/fedlora-coordinator.$unit"
done
cp systemd/fedlora-member.service systemd/fedlora-member.path debian/
version=$(sed -nE 's/^project\(fedlora VERSION ([0-9.]+).*/\1/p' "$root/CMakeLists.txt")
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
cat >debian/changelog <<CHANGELOG
fedlora ($version) unstable; urgency=medium

  * Built from commit $commit.

 -- $(sed -n 's/^Maintainer: //p' debian/control)  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGELOG
dpkg-buildpackage -b -us -uc -d >"$out/build.log" 2>&1 || { tail -20 "$out/build.log" >&2; exit 1; }
mv ../*.deb "$out/"
rm -rf "$work"
for package in "$out"/*_"$version"_*.deb; do echo "$package"; done
