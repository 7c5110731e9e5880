#!/usr/bin/env python3
"""Makes an archive of an image whose one layer has an entry with hundreds of megabytes of attributes, packed.

    python3 scripts/bomb-image.py FILE ARCHITECTURE
"""

import gzip
import io
import json
import sys
import tarfile

value = b"a" * 1000000
record = b" SCHILY.xattr.user.x=" + value + b"\n"
length = len(record) + 7
record = str(length).encode() + record
assert len(record) == length
header = tarfile.TarInfo("x"); header.type = b"x"; header.size = length
block = header.tobuf(tarfile.USTAR_FORMAT) + record + b"\0" * (-length % 512)
layer = gzip.compress(block) * 300
arch = {"aarch64": "arm64"}.get(sys.argv[2], "amd64")
config = json.dumps({"architecture": arch, "os": "linux",
                     "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}).encode()
manifest = json.dumps([{"Config": "config.json", "RepoTags": ["bomb:1"], "Layers": ["layer.tar"]}]).encode()
with tarfile.open(sys.argv[1], "w") as out:
    for name, data in [("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)]:
        entry = tarfile.TarInfo(name); entry.size = len(data)
        out.addfile(entry, io.BytesIO(data))
