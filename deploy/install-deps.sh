#!/usr/bin/env bash
# Installs every Debian 12 package that Fedlora needs to build, test and run. This is the only list of them.
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
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
