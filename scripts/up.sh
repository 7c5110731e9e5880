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
# The watch starts first, so that every state is seen; it ends when the Pod runs.
"$kubectl" get pods --watch-only busybox 2>/dev/null &
watch=$!
trap 'kill $watch 2>/dev/null || true' EXIT
"$kubectl" apply -f examples/busybox.yaml
"$kubectl" wait --for=condition=Ready pod/busybox --timeout=60s >/dev/null
kill $watch 2>/dev/null || true
wait $watch 2>/dev/null || true
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
