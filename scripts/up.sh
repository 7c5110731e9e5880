#!/usr/bin/env bash
# `make up`: from a clean clone to a running Pod.
set -euo pipefail
cd "$(dirname "$0")/.."
bold='' plain=''
[ ! -t 1 ] || { bold=$'\033[1m' plain=$'\033[0m'; }
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

if [ "$(id -u)" != 0 ]; then
    echo "a cluster needs root (namespaces, cgroups, mounts): run 'sudo -E make up'" >&2
    exit 1
fi
scripts/prerequisites.sh up
say "Building (the first build takes some minutes)"
cargo build --release --bin coracle
coracle=$PWD/target/release/coracle
kubectl=kubectl
[ -x .cache/bin/kubectl ] && kubectl=$PWD/.cache/bin/kubectl

say "Starting the cluster"
"$coracle" up
KUBECONFIG=$("$coracle" kubeconfig --path)
export KUBECONFIG

say "Importing the example's image (busybox, made from this machine's package)"
python3 scripts/busybox-image.py target/busybox.tar --name busybox:1.35
"$coracle" image import target/busybox.tar

say "Running examples/busybox.yaml"
if "$kubectl" get pod busybox >/dev/null 2>&1; then
    "$kubectl" apply -f examples/busybox.yaml
else
    # The watch comes first, and says when it is connected, so that every state of the Pod is seen.
    connected=$(mktemp -u)
    mkfifo "$connected"
    exec 3<>"$connected"
    rm "$connected"
    "$kubectl" get pods --watch-only -v=6 2> >(while IFS= read -r line; do
        case $line in *watch=true*200*OK*) echo >&3 ;; esac
    done) > >(exec sed -u '/ Running /q') &
    watch=$!
    trap 'kill $watch 2>/dev/null || true' EXIT
    read -r -t 10 -u 3 || echo "(the watch does not connect)"
    "$kubectl" apply -f examples/busybox.yaml
fi
"$kubectl" wait --for=condition=Ready pod/busybox --timeout=60s >/dev/null
"$kubectl" get pods -o wide

say "What to type next"
cat <<EOF
  export KUBECONFIG=$KUBECONFIG
  $kubectl get nodes
  $kubectl logs -f busybox
  $kubectl exec -it busybox -- sh
  $kubectl describe pod busybox
  $coracle down             # stop; 'down --purge' leaves the machine as it was
EOF
