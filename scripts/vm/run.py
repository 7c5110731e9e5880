#!/usr/bin/env python3
"""Runs Coracle on a machine of its own: Debian's cloud kernel in qemu, with pure control groups v2.

Usage: run.py [--coracle PROGRAM] [--accel tcg|kvm] [--cuts N] [--verbose] [--test NAME] [SCENARIO ...]

Scenarios: cgroup (the cluster on control groups v2), reboot (Pods over a clean reboot and over a power cut), cuts
(power cuts under write load: what was acknowledged is there), and suite (the end-to-end tests of this repository, as
`cargo test` has compiled them). All of them by default. Needs root for `apt-get download` only; see
scripts/prerequisites.sh for the packages.

A power cut is a SIGKILL of qemu. The disk is opened with O_DIRECT and O_DSYNC, and has no cache of its own to lose:
a write that the guest sees completed is on it. What goes with the power is all that the guest had in memory, among
that every page that a program wrote and did not flush. Each scenario begins with a new disk.
"""
import argparse
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "vm"
CACHE = ROOT / ".cache" / "vm"
# Modules of the kernel that a node needs or that the disk is reached by, with everything next to them.
MODULES = ["arch/x86/crypto", "crypto", "drivers/block/virtio_blk.ko", "drivers/net/dummy.ko", "drivers/net/veth.ko",
           "drivers/net/vxlan", "drivers/virtio", "fs/overlayfs", "lib", "net/802", "net/8021q", "net/bridge", "net/core",
           "net/ipv4", "net/ipv6", "net/llc", "net/netfilter"]
DISK_MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"]
MEMORY = "1024"
DISK_SIZE = "6G"
# A step that takes longer has failed; nothing waits for this long when all is well.
STEP_SECONDS = 900
SUITE_SECONDS = 5400
# How many times slower than a processor its emulation is, as the limits of the end-to-end tests have it.
PATIENCE = {"tcg": 8, "kvm": 2}
# End-to-end tests that do not run in the guest, and why.
NOT_IN_THE_GUEST = {
    "etcd::": "an etcd in an emulator loses its own elections; the cluster on etcd runs outside",
    "soak_": "takes minutes on a processor, and hours in an emulator: `make soak`",
}


class Failed(Exception):
    """What a scenario found wrong."""


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def kernel():
    """Debian's kernel for virtual machines, unpacked and not installed. Returns its directory and its version."""
    depends = run("apt-cache", "depends", "linux-image-cloud-amd64", capture_output=True, text=True).stdout
    package = re.search(r"Depends: (linux-image-\S+)", depends)[1]
    version = package.removeprefix("linux-image-")
    directory = CACHE / package
    if not directory.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", "-qq", package, cwd=CACHE, stderr=subprocess.DEVNULL)
        archive = next(CACHE.glob(f"{package}_*.deb"))
        run("dpkg-deb", "-x", archive, directory.with_suffix(".new"))
        archive.unlink()
        directory.with_suffix(".new").rename(directory)
    return directory, version


def libraries(program):
    """The shared libraries that a program is linked to."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return [pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def install(tree, source, target, mode=0o755):
    to = tree / target.lstrip("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)
    to.chmod(mode)


def pack(tree, archive):
    """Writes a tree as an initial file system for the kernel."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
    with open(archive, "wb") as out:
        run("cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", cwd=tree, input=names.encode(), stdout=out)


def install_suite(disk, suite):
    """The end-to-end tests, and all that they use, at the paths that are compiled into them."""
    used = ["ip", "script", "timeout", "curl", "docker-registry"]
    found = {name: shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in used}
    for name, program in {"suite": suite, **found}.items():
        install(disk, program, f"/usr/bin/{name}")
        for library in libraries(program):
            install(disk, library, str(library))
    for name in ["kubectl-1.37", "kubectl-1.32"]:
        if name == "kubectl-1.32":
            install(disk, ROOT / ".cache/bin" / name, f"/usr/bin/{name}")
        link = disk / str(ROOT).lstrip("/") / ".cache/bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/usr/bin/kubectl" if name == "kubectl-1.37" else f"/usr/bin/{name}")
    program = suite.resolve().parent.parent / "coracle"
    place = disk / str(program).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to("/usr/bin/coracle")
    (disk / str(ROOT).lstrip("/") / "crates/coracle").mkdir(parents=True)
    (disk / str(ROOT).lstrip("/") / "target/tmp").mkdir(parents=True)
    for file in sorted((ROOT / "examples").rglob("*.*")):
        install(disk, file, str(file), 0o644)


def compiled_suite(coracle):
    """Compiles the end-to-end tests as the program was, and returns their program."""
    command = ["cargo", "test", "--no-run", "--message-format", "json", "--package", "coracle", "--test", "e2e"]
    if coracle.resolve().parent.name == "release":
        command.append("--release")
    messages = run(*command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    programs = [json.loads(message).get("executable") for message in messages if '"name":"e2e"' in message]
    return pathlib.Path(next(program for program in programs if program))


def build(coracle, suite, verbose):
    """Makes the kernel's initial file system and the disk that every scenario starts with."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    unpacked, version = kernel()
    shutil.copyfile(unpacked / "boot" / f"vmlinuz-{version}", WORK / "vmlinuz")
    modules = unpacked / "lib/modules" / version / "kernel"

    first = WORK / "initramfs"
    install(first, "/bin/busybox", "/bin/busybox")
    install(first, HERE / "initramfs.sh", "/init")
    for name in DISK_MODULES:
        install(first, next(modules.rglob(f"{name}.ko")), f"/modules/{name}.ko", 0o644)
    (first / "modules/order").write_text("".join(f"{name}.ko\n" for name in DISK_MODULES))
    pack(first, WORK / "initramfs.cpio")

    disk = WORK / "disk"
    for directory in ["bin", "dev", "etc", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/lib"]:
        (disk / directory).mkdir(parents=True)
    install(disk, "/bin/busybox", "/bin/busybox")
    for applet in run("/bin/busybox", "--list", capture_output=True, text=True).stdout.split():
        if applet not in ("busybox", "init"):
            (disk / "bin" / applet).symlink_to("busybox")
    (disk / "sbin/modprobe").symlink_to("../bin/busybox")
    install(disk, HERE / "guest.sh", "/sbin/init")
    nft = shutil.which("nft", path=os.environ["PATH"] + ":/usr/sbin")
    for program in [coracle, nft]:
        install(disk, program, "/usr/bin/" + pathlib.Path(program).name)
        for library in libraries(program):
            install(disk, library, str(library))
    # Symbols are most of an unoptimized program, and the disk is read through an emulated controller.
    run("strip", disk / "usr/bin" / pathlib.Path(coracle).name)
    (disk / "usr/bin" / pathlib.Path(coracle).name).rename(disk / "usr/bin/coracle")
    install(disk, ROOT / ".cache/bin/kubectl-1.37", "/usr/bin/kubectl")
    if suite:
        install_suite(disk, suite)
    for file in sorted((HERE / "pods").iterdir()):
        install(disk, file, f"/opt/pods/{file.name}", 0o644)
    run(sys.executable, ROOT / "scripts/busybox-image.py", disk / "opt/busybox.tar", "--name", "busybox:1.35")
    run(sys.executable, ROOT / "scripts/bomb-image.py", disk / "opt/bomb.tar", "x86_64")
    (disk / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (disk / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name in MODULES:
        source, target = modules / name, disk / "lib/modules" / version / "kernel" / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            install(disk, source, f"/lib/modules/{version}/kernel/{name}", 0o644)
    # Also symbolic names, by which the kernel asks for what it lacks.
    run("/bin/busybox", "depmod", "-b", disk, version, stdout=None if verbose else subprocess.DEVNULL)
    run("mkfs.ext4", "-q", "-F", "-d", disk, "-E", "root_owner=0:0", WORK / "fresh.img", DISK_SIZE)
    shutil.rmtree(disk)
    shutil.rmtree(first)


class Machine:
    """A disk, and at most one qemu that runs on it."""

    def __init__(self, name, options):
        self.disk = WORK / f"{name}.img"
        self.options = options
        self.qemu = None
        self.log = open(WORK / f"{name}.log", "w", encoding="utf-8", errors="replace")
        run("cp", "--sparse=always", WORK / "fresh.img", self.disk)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
        self.log.close()
        self.disk.unlink()

    def boot(self, step, **words):
        """Starts the machine with a step to do."""
        self.cut()
        words = "".join(f" vm_{name}={value}" for name, value in {"step": step, **words}.items())
        command = ["nice", "-n", "10", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
                   "-no-reboot", "-accel", self.options.accel, "-smp", "2", "-m", MEMORY, "-nic", "none",
                   "-cpu", "max" if self.options.accel == "tcg" else "host",
                   "-kernel", WORK / "vmlinuz", "-initrd", WORK / "initramfs.cpio",
                   # The kernel's test of its timer does not wait for an emulator that has too little of a processor.
                   "-append", f"console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check rdinit=/init{words}",
                   "-drive", f"file={self.disk},if=none,id=disk,format=raw,cache=directsync",
                   "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-serial", "stdio"]
        self.qemu = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, process_group=0)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, args=(self.qemu.stdout, self.lines), daemon=True).start()
        self.log.write(f"=== {words}\n")

    def read(self, console, lines):
        for line in console:
            lines.put(line.decode("utf-8", "replace").rstrip())
        lines.put(None)

    def line(self, until):
        """The next line of the console; None if the machine has ended."""
        try:
            line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise Failed(f"no answer within its time; see {self.log.name}") from None
        if line is not None:
            self.log.write(f"{time.monotonic():.1f} {line}\n")
            self.log.flush()
            if self.options.verbose or "VM-TEST: FAIL" in line:
                print(f"    {line}", flush=True)
            if "VM-TEST: FAIL" in line:
                raise Failed(f"{line.partition('FAIL ')[2]}; see {self.log.name}")
        return line

    def said(self, seconds=STEP_SECONDS):
        """What the guest says, word by word, until the machine ends."""
        until = time.monotonic() + seconds
        while (line := self.line(until)) is not None:
            if "VM-TEST: " in line:
                yield line.partition("VM-TEST: ")[2].split(" ")
        self.qemu.wait()

    def step(self, step, seconds=STEP_SECONDS, **words):
        """Boots, does a step to its end, and lets the machine shut itself down."""
        begin, passed, done = time.monotonic(), 0, False
        self.boot(step, **words)
        for word, *rest in self.said(seconds):
            passed += word == "pass"
            done = done or [word, *rest] == ["done", step]
            if word == "note":
                print(f"  note: {' '.join(rest)}", flush=True)
        if not done:
            raise Failed(f"the machine ended before {step} did; see {self.log.name}")
        print(f"  {step}: {passed} checks in {time.monotonic() - begin:.0f} s", flush=True)

    def cut(self):
        """The power fails."""
        if self.qemu is not None:
            self.qemu.send_signal(signal.SIGKILL)
            self.qemu.wait()
            self.qemu = None


def cgroup(machine, _options):
    machine.step("cgroup")


def reboot(machine, _options):
    machine.step("pods")
    # A clean reboot lies between these two; the next ends by a power cut.
    machine.boot("after_clean")
    for word, *_rest in machine.said():
        if word == "note":
            print(f"  note: {' '.join(_rest)}", flush=True)
        if word == "done":
            break
    else:
        raise Failed(f"the machine ended by itself; see {machine.log.name}")
    machine.cut()
    machine.step("after_cut")


def cuts(machine, options):
    chance = random.Random(options.seed)
    acknowledged = {}
    newest = 0

    def compare(text):
        nonlocal newest
        found = json.loads(text)
        there = {item["metadata"]["name"]: int(item["metadata"]["resourceVersion"]) for item in found["items"]}
        revision = int(found["metadata"]["resourceVersion"])
        if revision < newest:
            raise Failed(f"the revision went back from {newest} to {revision}")
        for name, at in acknowledged.items():
            if there.get(name) != at:
                raise Failed(f"{name} was acknowledged at revision {at}, and is at {there.get(name)}")
        extra = sum(name.startswith("cut-") for name in there) - len(acknowledged)
        print(f"    revision {revision}: all {len(acknowledged)} acknowledged are there, and {extra} more", flush=True)
        # What was written without an answer stays as it was found.
        acknowledged.update({name: at for name, at in there.items() if name.startswith("cut-")})
        newest = revision

    for turn in range(options.cuts):
        wanted = chance.randrange(20, 400)
        print(f"  turn {turn + 1}: a cut after {wanted} writes", flush=True)
        machine.boot("load", turn=turn)
        count = 0
        for word, *rest in machine.said():
            if word == "written":
                compare(" ".join(rest))
            elif word == "acknowledged" and len(rest) == 2:
                name, at = rest[0], int(rest[1])
                if at <= newest and name not in acknowledged and at in acknowledged.values():
                    raise Failed(f"revision {at} was given twice")
                acknowledged[name] = at
                count += 1
                if count == wanted:
                    time.sleep(chance.random() / 4)
                    machine.cut()
                    break
        else:
            raise Failed(f"the machine ended by itself; see {machine.log.name}")
        # What was on its way on the console when the power failed was acknowledged too.
        while (line := machine.lines.get()) is not None:
            parts = line.partition("VM-TEST: acknowledged ")[2].split(" ")
            if len(parts) == 2 and line.endswith(parts[1]) and parts[1].isdigit():
                acknowledged.setdefault(parts[0], int(parts[1]))
        newest = max(newest, *acknowledged.values())
    machine.boot("verify")
    done = False
    for word, *rest in machine.said():
        if word == "written":
            compare(" ".join(rest))
        done = done or word == "done"
    if not done:
        raise Failed(f"the machine ended by itself; see {machine.log.name}")


def suite(machine, options):
    for part, reason in NOT_IN_THE_GUEST.items():
        print(f"  without {part}*: {reason}", flush=True)
    machine.step("suite", SUITE_SECONDS, patience=PATIENCE[options.accel], tests=",".join(options.test) or "all",
                 skip=",".join(NOT_IN_THE_GUEST))


SCENARIOS = {"cgroup": cgroup, "reboot": reboot, "cuts": cuts, "suite": suite}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coracle", default=ROOT / "target/release/coracle", type=pathlib.Path)
    parser.add_argument("--accel", default="tcg", choices=["tcg", "kvm"], help="software emulation, or the processor's")
    parser.add_argument("--cuts", type=int, default=5, help="how often the power fails under load")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="when it fails")
    parser.add_argument("--test", action="append", default=[], help="in the suite, only tests with this in their name")
    parser.add_argument("--verbose", action="store_true", help="show the whole console")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    # The end by a signal also ends the machine.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begin = time.monotonic()
    wanted = options.scenarios or SCENARIOS
    build(options.coracle, compiled_suite(options.coracle) if "suite" in wanted else None, options.verbose)
    print(f"built in {time.monotonic() - begin:.0f} s; power cuts with --seed {options.seed}", flush=True)
    failed = False
    for name in wanted:
        print(name, flush=True)
        start = time.monotonic()
        try:
            with Machine(name, options) as machine:
                SCENARIOS[name](machine, options)
            print(f"  ok, {time.monotonic() - start:.0f} s", flush=True)
        except Failed as error:
            print(f"  FAILED: {error}", flush=True)
            failed = True
    print(f"{'FAILED' if failed else 'passed'} in {time.monotonic() - begin:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
