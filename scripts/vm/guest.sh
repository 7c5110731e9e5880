#!/bin/sh
# The guest's init: makes the machine ready, runs the step that the kernel's command line names (vm_step=NAME), and
# says on the console what came of it. What run.py looks for begins with "VM-TEST: ".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root KUBECONFIG=/var/lib/coracle/coracle/kubeconfig
image=busybox:1.35

say() { echo "VM-TEST: $*"; }

# Nothing goes on after what is wrong: what would help to understand it is shown, and the machine ends.
fail() {
    say "about $vm_step:"
    kubectl get pods,events -A -o wide 2>&1 | tail -n 40
    tail -n 30 /var/lib/coracle/coracle/coracle.log
    dmesg | tail -n 20
    say "FAIL $*"
    sync
    poweroff -f
    sleep 60
}

# pass NAME COMMAND...: the command succeeds.
pass() {
    name=$1
    shift
    "$@" >/tmp/output 2>&1 || { cat /tmp/output; fail "$name: $*"; }
    say "pass $name"
}

# same NAME WANTED GOT
same() {
    [ "$2" = "$3" ] || fail "$1: wanted '$2', got '$3'"
    say "pass $1"
}

field() { patiently kubectl get pod "$1" -o "jsonpath={$2}"; }

# until_field POD PATH VALUE
until_field() { patiently kubectl wait "pod/$1" --for="jsonpath={$2}=$3" --timeout=180s; }

until_ready() { patiently kubectl wait "pod/$1" --for=condition=Ready --timeout=180s; }

# An emulated processor that has too little of a real one makes even a TLS handshake time out; kubectl then gives up.
patiently() {
    for attempt in 1 2 3 4 5; do
        "$@" && return
        sleep 2
    done
    return 1
}

# group POD: the control group of its container "main", below the cluster's.
group() {
    uid=$(field "$1" .metadata.uid) id=$(field "$1" '.status.containerStatuses[0].containerID')
    found=$(find /sys/fs/cgroup -type d -name "*${id##*/}*" | grep -F "$uid" | head -n 1)
    [ -d "$found" ] || fail "no control group of Pod $1 ($uid, $id)"
    echo "$found"
}

machine() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mkdir -p /dev/pts /dev/shm
    mount -t devpts devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    hostname vm
    ip link set lo up
    # A network of its own that leads nowhere: an address and a default route are all that a node asks for.
    ip link add uplink type dummy
    ip addr add 192.0.2.10/24 dev uplink
    ip link set uplink up
    ip route add default via 192.0.2.1
    # The console shows what the kernel says about disasters only.
    dmesg -n 1
}

up() { pass up coracle up --timeout 300; }

# What a machine has that a cluster could leave behind.
inventory() {
    cut -d' ' -f2 /proc/mounts | sort
    find /sys/fs/cgroup -mindepth 1 -type d
    ls /sys/class/net /run /var/lib
    nft list ruleset
    ls /run/netns 2>/dev/null
    # Threads of the kernel have no command line.
    for process in /proc/[0-9]*; do
        tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep coracle
    done
}

purge() {
    pass purge coracle down --purge
    inventory >/tmp/after
    diff /tmp/before /tmp/after >/tmp/difference || { cat /tmp/difference; fail "purge leaves something behind"; }
    say "pass purge-leaves-nothing"
}

# A pure v2 machine: limits, logs, exec, out of memory, devices, removal.
step_cgroup() {
    inventory >/tmp/before
    same pure-v2 "cgroup2 " "$(sed -n 's/.* - \(cgroup2*\) .*/\1/p' /proc/self/mountinfo | tr '\n' ' ')"
    up
    pass image coracle image import /opt/busybox.tar
    pass create kubectl create -f /opt/pods/limits.yaml
    pass running until_ready limits
    container=$(group limits)
    same memory.max 67108864 "$(cat "$container/memory.max")"
    same memory.swap.max 0 "$(cat "$container/memory.swap.max" 2>/dev/null || echo 0)"
    same cpu.max "50000 100000" "$(cat "$container/cpu.max")"
    same cpu.weight 4 "$(cat "$container/cpu.weight")"
    same memory.oom.group 1 "$(cat "$container/memory.oom.group")"
    same pids.max max "$(cat "$container/pids.max")"
    same pod-memory.max 67108864 "$(cat "${container%/*}/memory.max")"
    same logs "hello from the guest" "$(kubectl logs limits)"
    same exec "it works" "$(kubectl exec limits -- echo it works)"
    same own-cgroup 0::/ "$(kubectl exec limits -- cat /proc/self/cgroup)"
    same seen-memory.max 67108864 "$(kubectl exec limits -- cat /sys/fs/cgroup/memory.max)"
    kubectl exec limits -- sh -c 'echo 1 >/sys/fs/cgroup/memory.max' 2>/dev/null && fail "a container sets its own limit"
    say "pass cgroup-read-only"
    kubectl exec limits -- sh -c 'mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk' 2>/dev/null && fail "a container reads the disk"
    say "pass devices"
    pass oom-create kubectl create -f /opt/pods/oom.yaml
    pass oom until_field oom .status.containerStatuses[0].state.terminated.reason OOMKilled
    same oom-code 137 "$(field oom '.status.containerStatuses[0].state.terminated.exitCode')"
    pass oom-child until_field oom-child .status.containerStatuses[0].state.terminated.reason OOMKilled
    pass delete kubectl delete pod --all --timeout=180s
    [ ! -d "$container" ] || fail "the control group of a deleted container is there"
    say "pass group-gone"
    purge
}

# Pods of each restart rule run; one has ended.
step_pods() {
    up
    pass image coracle image import /opt/busybox.tar
    pass create kubectl create -f /opt/pods/restart.yaml
    for pod in always onfailure never; do
        pass "$pod-running" until_ready "$pod"
    done
    pass done-succeeded until_field done .status.phase Succeeded
}

# How the container of a Pod ended before.
ended() {
    field "$1" '.status.containerStatuses[0].lastState.terminated.exitCode'
    echo " $(field "$1" '.status.containerStatuses[0].lastState.terminated.reason')"
}

# restarted COUNT: the machine went away COUNT times, and the Pods did what their rules say.
restarted() {
    up
    for pod in always onfailure; do
        pass "$pod-restarted" until_field "$pod" .status.containerStatuses[0].restartCount "$1"
        pass "$pod-ready" until_ready "$pod"
        same "$pod-count" "$1" "$(field "$pod" '.status.containerStatuses[0].restartCount')"
        same "$pod-exec" here "$(kubectl exec "$pod" -- echo here)"
    done
    pass never-failed until_field never .status.phase Failed
    same never-count 0 "$(field never '.status.containerStatuses[0].restartCount')"
    same done-stays Succeeded "$(field done .status.phase)"
    # As many sandboxes as Pods that run: nothing of the boot before is left.
    same keepers 2 "$(wc -l </sys/fs/cgroup/coracle-coracle/keepers/cgroup.procs)"
    same groups 2 "$(find /sys/fs/cgroup -type d -name 'pod*' | wc -l)"
    same links 2 "$(ls -d /sys/class/net/*/brport | wc -l)"
}

# Where everybody is killed, a keeper may see the end of its container or not.
step_after_clean() {
    restarted 1
    say "note after a clean reboot: always $(ended always), onfailure $(ended onfailure)"
}

step_after_cut() {
    # What a machine has that never ran a cluster, as far as this one is like that.
    inventory | grep -v coracle >/tmp/before
    restarted 2
    same always-end "255 Unknown" "$(ended always)"
    same onfailure-end "255 Unknown" "$(ended onfailure)"
    pass delete kubectl delete pod --all --timeout=180s
    purge
}

# Writes without end; each acknowledged one is printed with its revision.
step_load() {
    up
    show='jsonpath=VM-TEST: acknowledged {.metadata.name} {.metadata.resourceVersion}{"\n"}'
    say "written $(kubectl get --raw /api/v1/namespaces/default/configmaps | tr -d '\n ')"
    for writer in 1 2; do
        i=0
        while [ $i -lt 3000 ]; do
            echo "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"cut-$vm_turn-$writer-$i\"},\"data\":{\"i\":\"$i\"}}"
            i=$((i + 1))
        done >"/tmp/load-$writer"
    done
    for writer in 1 2; do
        kubectl create -f "/tmp/load-$writer" -o "$show" &
    done
    wait
    fail "the writers ended"
}

step_verify() {
    up
    say "written $(kubectl get --raw /api/v1/namespaces/default/configmaps | tr -d '\n ')"
    pass write kubectl create configmap after-all
}

# The end-to-end tests. Where they put their clusters is the disk, not the memory.
step_suite() {
    mkdir -p /var/e2e /tmp/coracle-e2e
    mount --bind /var/e2e /tmp/coracle-e2e
    # What `ip` makes once and keeps.
    # The shell would take its own `ip`.
    /usr/bin/ip netns add first && /usr/bin/ip netns del first
    inventory >/tmp/before
    # Not captured: what went wrong is seen at once, and also when the time is over before the end.
    arguments="--test-threads=2 --nocapture"
    for part in $(echo "$vm_skip" | tr , ' '); do arguments="$arguments --skip $part"; done
    [ "$vm_tests" = all ] || arguments="$arguments $(echo "$vm_tests" | tr , ' ')"
    export CORACLE_E2E_PATIENCE=$vm_patience CORACLE_E2E_IMAGE=/opt/busybox.tar CORACLE_E2E_BOMB=/opt/bomb.tar
    # A line for each test as it ends; the rest is for who looks into what failed.
    { suite $arguments 2>&1 || echo failed >/tmp/failed; } | while read -r line; do
        case $line in
        "test result:"*) say "note $line" ;;
        "test "*" ... ok") say "pass ${line#test }" ;;
        "test "*" ... ignored"*) say "note ${line#test }" ;;
        *) echo "$line" ;;
        esac
    done
    [ ! -e /tmp/failed ] || fail "the end-to-end tests"
    inventory >/tmp/after
    diff /tmp/before /tmp/after >/tmp/difference || { cat /tmp/difference; fail "the tests leave something behind"; }
    say "pass nothing-is-left"
}

machine
"step_$vm_step"
say "done $vm_step"
# As a service manager does it: everybody is told, everybody is killed, and file systems are written.
kill -TERM -1
sleep 2
kill -KILL -1
sync
mount -o remount,ro / 2>/dev/null
poweroff -f
sleep 60
