"""Takes guards out one by one, and sees that a test misses each.

`guards.toml` beside this file has a row for each guard: a file, a text in it, what the text becomes without the
guard, and the test that must fail then. Each row is tried in a copy of the tree below `target/guards`: the test
must pass as the tree is, and must fail, as a test and not as a build, once the guard is gone. A text that is not in
its file exactly once is an error: the guard has moved, and its row must follow.

    python3 scripts/guards/run.py            all rows
    python3 scripts/guards/run.py WORD...    rows whose name, file or test has one of the words
    python3 scripts/guards/run.py --check    only that every text is where its row says (seconds, no build)

A row:

    [[guard]]
    name = "what the guard is for, as a statement"
    file = "crates/..."                     # in the tree, or in a crate that the tree uses: see `crate`
    crate = "libcontainer"                  # optional: `file` is in this crate's sources
    old = '''the text, with the guard'''
    new = '''the text, without'''
    test = "-p coracle-runtime --test engine attacks::name_of_the_test"
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target/guards"
TREE = WORK / "tree"
CRATES = WORK / "crates"
# A build of everything below the tests, on a slow machine; a test that takes longer than its limit has hung.
BUILD_LIMIT = 1800
TEST_LIMIT = 300
CARGO = os.environ.get("CARGO", "cargo")


class Wrong(Exception):
    """A row that says nothing, or a guard that nothing holds."""


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def put(path, content):
    """Writes what differs, with a new time: what the compiler sees is the time."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def copy_tree():
    names = set(tracked())
    # The programs that end-to-end tests bring along: a link, which is away while what does not belong is removed.
    programs = TREE / ".cache"
    programs.unlink(missing_ok=True)
    for name in names:
        put(TREE / name, (ROOT / name).read_bytes())
        shutil.copymode(ROOT / name, TREE / name)
    for path in sorted(TREE.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(TREE)) not in names:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if (ROOT / ".cache").is_dir():
        programs.symlink_to(ROOT / ".cache")


def sources_of(crate):
    """Directory of the sources of a third-party crate."""
    told = subprocess.run(
        [CARGO, "metadata", "--format-version", "1", "--offline", "--locked"],
        cwd=ROOT, check=True, capture_output=True,
    )
    for package in json.loads(told.stdout)["packages"]:
        if package["name"] == crate and package["source"]:
            return Path(package["manifest_path"]).parent
    raise Wrong(f"no crate {crate}")


def use_copies(crates):
    """Has the tree use copies of these third-party crates, which can be changed."""
    manifest = (ROOT / "Cargo.toml").read_text()
    if crates:
        manifest += "\n[patch.crates-io]\n"
    for crate in sorted(crates):
        source, copy = sources_of(crate), CRATES / crate
        for path in source.rglob("*"):
            if path.is_file() and path.name != "Cargo.toml":
                put(copy / path.relative_to(source), path.read_bytes())
        # A workspace of its own, although it lies below the tree's directory.
        put(copy / "Cargo.toml", ((source / "Cargo.toml").read_text() + "\n[workspace]\n").encode())
        manifest += f'{crate} = {{ path = "{copy}" }}\n'
    put(TREE / "Cargo.toml", manifest.encode())


def place(guard, tree=TREE, crates=CRATES):
    return (crates / guard["crate"] if "crate" in guard else tree) / guard["file"]


def check(guard, path):
    count = path.read_text().count(guard["old"]) if path.is_file() else 0
    if count != 1:
        raise Wrong(f"its text is {count} times in {guard['file']}: the guard has moved, and its row must follow")
    if guard["old"] == guard["new"]:
        raise Wrong("it changes nothing")


def execute(command, directory, limit):
    """Runs a command; its output and exit code, `None` if it took too long."""
    environment = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")}
    environment.setdefault("RUST_BACKTRACE", "0")
    # A test that does something very often need not do it so often here.
    environment.setdefault("CORACLE_FAST_EXITS", "1000")
    process = subprocess.Popen(
        command, cwd=directory, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
        return output, errors, process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return output, errors, None


def run(test):
    """Builds and runs one test: `passed`, `failed`, or an error."""
    *target, name = shlex.split(test)
    build = [CARGO, "test", "--offline", *target, "--no-run", "--message-format", "json-render-diagnostics"]
    output, errors, code = execute(build, TREE, BUILD_LIMIT)
    if code != 0:
        raise Wrong("it does not build:\n" + errors[-3000:])
    messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    programs = [
        message for message in messages
        if message.get("executable") and message.get("profile", {}).get("test")
    ]
    if len(programs) != 1:
        raise Wrong(f"{' '.join(target)} is {len(programs)} programs with tests, not one")
    # As cargo runs it, but without cargo, which would wait for whoever else builds.
    directory = Path(programs[0]["manifest_path"]).parent
    command = [programs[0]["executable"], name, "--exact", "--include-ignored"]
    output, errors, code = execute(command, directory, TEST_LIMIT)
    if code is None:
        raise Wrong(f"{name} took longer than {TEST_LIMIT} s")
    ran = re.search(r"^running (\d+) test", output, re.MULTILINE)
    if not ran or ran[1] != "1":
        raise Wrong(f"there is no test of the name {name}:\n" + (output + errors)[-3000:])
    return ("passed" if code == 0 else "failed"), output + errors


def reason(output):
    """The line by which the test says what it missed."""
    lines = output.splitlines()
    for at, line in enumerate(lines):
        if " panicked at " in line:
            return " ".join(lines[at + 1 : at + 2]).strip()
    return ""


def try_row(guard, passed):
    """Without the guard its test must fail. Says how it failed."""
    path = place(guard)
    check(guard, path)
    if guard["test"] not in passed:
        result, output = run(guard["test"])
        if result != "passed":
            raise Wrong("its test fails with the guard in place:\n" + output[-3000:])
        passed.add(guard["test"])
    before = path.read_bytes()
    path.write_text(path.read_text().replace(guard["old"], guard["new"]))
    try:
        # What builds the keeper looks at this file, and not at the crates that the keeper uses.
        os.utime(TREE / "Cargo.toml")
        result, output = run(guard["test"])
    finally:
        path.write_bytes(before)
        os.utime(TREE / "Cargo.toml")
    if result == "passed":
        raise Wrong(f"nothing misses it: {guard['test'].split()[-1]} passes without it")
    return reason(output)


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    with open(Path(__file__).with_name("guards.toml"), "rb") as file:
        rows = tomllib.load(file)["guard"]
    names = [row["name"] for row in rows]
    if len(set(names)) != len(names):
        sys.exit("two rows have one name")
    chosen = [
        row for row in rows
        if not words or any(word in row["name"] + row["file"] + row["test"] for word in words)
    ]
    if not chosen:
        sys.exit("no row has such a word")
    faults = []
    if "--check" in sys.argv:
        for row in chosen:
            try:
                if "crate" not in row:
                    check(row, ROOT / row["file"])
            except Wrong as wrong:
                faults.append(f"{row['name']}: {wrong}")
        if faults:
            sys.exit("scripts/guards/guards.toml:\n  " + "\n  ".join(faults))
        return

    copy_tree()
    passed = set()
    foreign = {row["crate"] for row in chosen if "crate" in row}
    # Rows of third-party crates come last: with copies of those, more is built anew.
    for crates, part in (
        (set(), [row for row in chosen if "crate" not in row]),
        (foreign, [row for row in chosen if "crate" in row]),
    ):
        if not part:
            continue
        use_copies(crates)
        passed.clear()
        for row in part:
            start = time.monotonic()
            where = f"{row.get('crate', '')}:{row['file']}".lstrip(":")
            try:
                missed = try_row(row, passed)
                print(f"ok    {row['name']}\n      {where} -> {row['test'].split()[-1]}"
                      f" ({time.monotonic() - start:.0f} s)\n      {missed[:160]}", flush=True)
            except Wrong as wrong:
                faults.append(row["name"])
                print(f"WRONG {row['name']}\n      {where}\n      {wrong}", flush=True)
    use_copies(set())
    print(f"{len(chosen) - len(faults)} of {len(chosen)} guards are missed by a test when they are gone")
    if faults:
        sys.exit("not so: " + "; ".join(faults))


if __name__ == "__main__":
    main()
