#!/usr/bin/env bash
# Installs every Debian 12 package that Fedlora needs to build, test and run. This is the only list of them.
# With --packages also those of deploy/make-packages.sh. With --tests these and the programs that single tests look at it
# with, from a browser to Prometheus; without them those tests are skipped by name.
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config      # build
  libgrpc-dev libprotobuf-c-dev protobuf-c-compiler # RPC and messages
  libssl-dev libsodium-dev openssl libnghttp2-dev   # TLS, certificates, digests, HTTP/2 headers
  libdnnl-dev liblapacke-dev libopenblas-dev        # matrix products, QR and SVD
  libsqlite3-dev libpq-dev libjansson-dev libinih-dev # state, JSON, configuration files
  libmicrohttpd-dev                                 # pages for monitoring
  libutf8proc-dev libpcre2-dev                      # tokenizers
  zlib1g-dev                                        # data files compressed by gzip
  libcriterion-dev clang-format                     # tests, lint
  libopenmpi-dev openmpi-bin                        # fedlora-mpi; everything else is built without it
  python3 python3-pip unzip                         # lint, scripts, fetching the demo's base model from PyPI
)
for_packages=(debhelper dpkg-dev lintian)
for_tests=(
  chromium                              # the page of the coordinator
  prometheus prometheus-alertmanager    # metrics and alerts
  libfaketime faketime                  # clocks that are wrong
  tinyproxy iproute2                    # proxies and networks
  postgresql                            # the other database
)
case "${1:-}" in
  '') ;;
  --packages) packages+=("${for_packages[@]}") ;;
  --tests) packages+=("${for_packages[@]}" "${for_tests[@]}") ;;
  *)
    echo "usage: install-deps.sh [--packages | --tests]" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "install-deps: everything is installed"
  exit 0
fi
run=()
[ "$(id -u)" -eq 0 ] || run=(sudo)
echo "install-deps: installing ${missing[*]}"
"${run[@]}" apt-get update -qq

# Services of the packages for tests must not start by themselves: they would take ports, and nothing here needs them.
# Debian asks this script before it starts one; a machine that has its own keeps it.
policy=/usr/sbin/policy-rc.d
if [ "${1:-}" = --tests ] && [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${run[@]}" tee "$policy" >/dev/null
  "${run[@]}" chmod 755 "$policy"
  trap '"${run[@]}" rm -f "$policy"' EXIT
fi
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
