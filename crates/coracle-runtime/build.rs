//! Builds the keeper, a binary of its own, so that the daemon can carry it inside and run it from memory.
//!
//! It is built by a second `cargo` into a target directory of its own (no lock is shared with the build that
//! runs this script) which all profiles share, so it is compiled once whatever else is built. It is linked
//! statically and at a fixed address: one keeper runs for every Pod, and what needs no relocation stays shared.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let target = env::var("TARGET").expect("cargo sets it");
    let keeper = manifest.join("../coracle-keeper");
    for path in [keeper.join("src"), keeper.join("Cargo.toml"), manifest.join("../../Cargo.toml")] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let target_dir = shared_target_dir(&out);
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What the outer build sets for itself would leak into the inner one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("CARGO_") && !matches!(&*text, "CARGO_HOME" | "CARGO_NET_OFFLINE"))
            || matches!(
                &*text,
                "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "CLIPPY_ARGS" | "TARGET"
            )
        {
            command.env_remove(&name);
        }
    }
    let mut flags = "-C relocation-model=static".to_owned();
    if target.ends_with("-gnu") || target.ends_with("-musl") {
        flags.push_str(" -C target-feature=+crt-static");
    }
    let status = command
        .args(["build", "--quiet", "--package", "coracle-keeper", "--bin", "coracle-keeper"])
        .args(["--profile", "keeper", "--target", &target, "--target-dir"])
        .arg(&target_dir)
        .arg("--manifest-path")
        .arg(keeper.join("Cargo.toml"))
        .env("RUSTFLAGS", flags)
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "building coracle-keeper failed");

    let built = target_dir.join(&target).join("keeper").join("coracle-keeper");
    std::fs::copy(&built, out.join("coracle-keeper")).expect("the keeper has been built");
}

/// `target/keeper`, found from `target/[TRIPLE/]PROFILE/build/NAME-HASH/out`.
fn shared_target_dir(out: &Path) -> PathBuf {
    let profile_dir = out.ancestors().nth(3).expect("OUT_DIR is deep inside the target directory");
    let parent = profile_dir.parent().expect("the profile's directory is in the target directory");
    parent.join("keeper")
}
