#!/bin/sh
# Plays every example scenario in a debug and in a release build: the traces have to be the same to the byte.
set -eu
hashes() {
    "${CARGO:-cargo}" test --quiet "$@" --package coracle-sim --test examples -- --ignored --nocapture hashes_of_all_examples |
        grep -E '^[a-z-]+ [0-9a-f]{16}$'
}
debug=$(hashes)
release=$(hashes --release)
echo "$debug"
if [ "$debug" != "$release" ]; then
    echo "a release build does something else:"
    echo "$release"
    exit 1
fi
