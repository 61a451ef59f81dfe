#!/usr/bin/env bash
# The Debian packages of this build: lintian finds no error, every file is where an administrator looks for it, the units
# are correct and hardened, and the unpacked coordinator accepts the packaged configuration.
# Release only: the programs are tested under the sanitizers elsewhere.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

command -v dh >/dev/null || skip "debhelper is not installed: deploy/install-deps.sh --packages"
grep -q '^FEDLORA_SANITIZE:BOOL=ON' "$programs/CMakeCache.txt" && skip "packages are made of optimised builds"

DEB_BUILD_OPTIONS=noautodbgsym "$root/deploy/make-packages.sh" -o "$work/out" --build "$programs" >"$work/made" || fail_with "$work/out/build.log" "make-packages.sh"
mkdir "$work/root"
for package in fedlora fedlora-coordinator fedlora-member; do
  dpkg-deb -x "$(ls "$work/out/${package}"_*.deb)" "$work/root/$package"
done
if command -v lintian >/dev/null; then
  lintian --allow-root --fail-on error,warning "$work"/out/*.deb >"$work/lintian" 2>&1 || fail_with "$work/lintian" lintian
fi
holds() { # PACKAGE PATH...
  local package=$1 path
  shift
  for path in "$@"; do [ -s "$work/root/$package/$path" ] || fail "$package has no $path"; done
}
holds fedlora usr/bin/fedlora usr/share/man/man1/fedlora-join.1.gz usr/share/bash-completion/completions/fedlora
holds fedlora-coordinator usr/bin/fedlorad etc/fedlora/fedlorad.ini lib/systemd/system/fedlorad.service \
  lib/systemd/system/fedlorad-renew.service lib/systemd/system/fedlorad-renew.timer \
  usr/share/man/man8/fedlorad.8.gz usr/share/man/man5/fedlorad.ini.5.gz \
  usr/share/fedlora/fedlora.rules.yml usr/lib/sysusers.d/fedlora-coordinator.conf
holds fedlora-member lib/systemd/system/fedlora-member.service lib/systemd/system/fedlora-member.path \
  usr/share/doc/fedlora-member/hospital.md
dpkg-deb -I "$work"/out/fedlora-coordinator_*.deb conffiles | grep -qx /etc/fedlora/fedlorad.ini || fail "no conffile"

# ---- the units; those of another machine would be reported too, so only ours count
if command -v systemd-analyze >/dev/null; then
  for unit in fedlora-coordinator/fedlorad fedlora-coordinator/fedlorad-renew fedlora-member/fedlora-member; do
    file=$work/root/${unit%/*}/lib/systemd/system/${unit#*/}.service
    systemd-analyze security --offline=true --threshold=20 "$file" >"$work/security" 2>&1 ||
      fail_with "$work/security" "$file: exposure above 2.0"
    # The programs are not installed here, so their absence is no finding.
    systemd-analyze verify --man=no "$file" 2>&1 | grep -F "${unit#*/}" | grep -v 'is not executable' >"$work/verify" || true
    [ ! -s "$work/verify" ] || fail_with "$work/verify" "systemd-analyze verify finds something"
  done
fi

# ---- the packaged configuration, with the files of `fedlorad ca init` and another place for each path
fedlorad=$work/root/fedlora-coordinator/usr/bin/fedlorad etc=$work/root/fedlora-coordinator/etc/fedlora
"$fedlorad" ca init --federation clinics --dir "$etc" --host localhost >"$work/ca"
sed -i "s|^name = .*|name = clinics|; s|/etc/fedlora|$etc|; s|/var/lib/fedlora|$work/store|; s|0.0.0.0:|127.0.0.1:|
  s|:7443|:$((20000 + $$ % 20000))|; s|:7444|:$((20001 + $$ % 20000))|" "$etc/fedlorad.ini"
"$fedlorad" --config "$etc/fedlorad.ini" --check >"$work/check" 2>&1 || fail_with "$work/check" "fedlorad --check"
echo "packages: $(ls "$work"/out/*.deb | wc -l), units below 2.0"
