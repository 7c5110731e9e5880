#!/usr/bin/env python3
"""Makes an image of Debian's busybox, as a `docker save` archive, without any network.

Usage: busybox-image.py OUTPUT.tar [--name NAME] [--busybox /bin/busybox]

The archive depends on nothing but busybox itself: times and owners are fixed, so equal input gives equal digests.
"""
import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile

DIRECTORIES = [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755), ("root", 0o700),
               ("sys", 0o755), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755), ("usr/sbin", 0o755),
               ("sbin", 0o755), ("var", 0o755), ("var/tmp", 0o1777), ("var/www", 0o755)]
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


def add(archive, name, kind, mode=0o644, content=b"", link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
    archive.addfile(entry, io.BytesIO(content) if content else None)


def layer(busybox):
    """The root file system: busybox, a link for each of its applets, and what programs expect to find."""
    applets = subprocess.run([busybox, "--list-full"], check=True, capture_output=True, text=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in sorted(DIRECTORIES):
            add(archive, name, tarfile.DIRTYPE, mode)
        with open(busybox, "rb") as program:
            add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, program.read())
        add(archive, "etc/passwd", tarfile.REGTYPE, content=PASSWD.encode())
        add(archive, "etc/group", tarfile.REGTYPE, content=GROUP.encode())
        for path in sorted({os.path.join("bin", os.path.basename(path)) for path in applets} - {"bin/busybox"}):
            add(archive, path, tarfile.SYMTYPE, 0o777, link="/bin/busybox")
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("--name", default="busybox:1.35")
    parser.add_argument("--busybox", default="/bin/busybox")
    options = parser.parse_args()

    content = layer(options.busybox)
    digest = hashlib.sha256(content).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps({
        "architecture": machine,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "busybox-image.py"}],
    }, sort_keys=True).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [options.name], "Layers": [f"{digest}/layer.tar"]}])

    os.makedirs(os.path.dirname(os.path.abspath(options.output)), exist_ok=True)
    partial = f"{options.output}.{os.getpid()}.partial"
    with tarfile.open(partial, mode="w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, config_name, tarfile.REGTYPE, content=config)
        add(archive, digest, tarfile.DIRTYPE, 0o755)
        add(archive, f"{digest}/layer.tar", tarfile.REGTYPE, content=content)
        add(archive, "manifest.json", tarfile.REGTYPE, content=manifest.encode())
    os.replace(partial, options.output)


if __name__ == "__main__":
    main()
