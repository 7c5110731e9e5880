//! What the compiler does not check about the tree: who may use whom, and that every file says what it is.
//!
//! The table in [`LAYERS`] is the one in ARCHITECTURE.md. A crate may use what its row names and nothing else of
//! the workspace; dev-dependencies are free, because a test may look down from above.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "tidy/lifecycle.rs"]
mod lifecycle;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate, and the crates of the workspace that it may use. The binary and the benchmarks may use everything.
const LAYERS: &[(&str, &[&str])] = &[
    ("coracle-clock", &[]),
    ("coracle-tree", &[]),
    ("coracle-api", &[]),
    ("coracle-cri", &["coracle-clock"]),
    ("coracle-store", &["coracle-clock"]),
    ("coracle-client", &["coracle-api", "coracle-clock"]),
    ("coracle-keeper", &[]),
    ("coracle-runtime", &["coracle-cri", "coracle-clock", "coracle-tree", "coracle-keeper"]),
    ("coracle-net", &["coracle-cri", "coracle-client", "coracle-api", "coracle-clock"]),
    ("coracle-apiserver", &["coracle-store", "coracle-api", "coracle-clock"]),
    ("coracle-scheduler", &["coracle-client", "coracle-api", "coracle-clock"]),
    ("coracle-controllers", &["coracle-client", "coracle-api", "coracle-clock"]),
    ("coracle-kubelet", &["coracle-client", "coracle-cri", "coracle-api", "coracle-clock", "coracle-tree"]),
];

/// Crates that wire others together.
const WIRING: &[&str] = &["coracle", "coracle-bench", "coracle-sim"];

/// No file is longer than this without being a test.
const MAX_LINES: usize = 500;

/// Files that are longer, and how long they may be. The list gets shorter: a file that fits is taken off it.
const LONG: &[(&str, usize)] = &[
    ("coracle-api/src/schema.rs", 650),
    ("coracle-api/src/selector.rs", 700),
    ("coracle-api/src/status.rs", 600),
    ("coracle-apiserver/src/pki.rs", 550),
    ("coracle-apiserver/src/server.rs", 550),
    ("coracle-cri/src/runtime.rs", 600),
    ("coracle-kubelet/src/worker.rs", 600),
    ("coracle-runtime/src/engine/container.rs", 600),
    ("coracle-runtime/src/engine/spec.rs", 550),
    ("coracle-store/src/simfs.rs", 600),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn workspace_packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn crates_use_only_the_layers_their_row_names() {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in workspace_packages() {
        let name = package["name"].as_str().unwrap();
        if WIRING.contains(&name) {
            continue;
        }
        let Some(allowed) = layers.get(name) else {
            wrong.push(format!("{name} has no row in the layer table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let is_normal = dependency["kind"].is_null();
            if used.starts_with("coracle") && is_normal && !allowed.contains(&used) {
                wrong.push(format!("{name} uses {used}, which its row does not name"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn sources() -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("crates"), &mut found);
    found.sort();
    assert!(!found.is_empty());
    found
}

#[test]
fn every_file_says_what_it_is_about() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|path| !std::fs::read_to_string(path).unwrap().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no `//!` head in {silent:#?}");
}

#[test]
fn files_are_small_enough_to_read_in_one_go() {
    let crates = root().join("crates");
    let mut long: BTreeMap<String, usize> = sources()
        .into_iter()
        .filter(|path| !path.components().any(|part| part.as_os_str() == "tests"))
        .filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().contains("tests")))
        .map(|path| {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            (path.strip_prefix(&crates).unwrap().display().to_string(), lines)
        })
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    for (path, most) in LONG {
        let lines = long.remove(*path);
        assert!(lines.is_some(), "{path} is short now: take it off the list");
        assert!(lines <= Some(*most), "{path} grows: it has {lines:?} lines");
    }
    assert!(long.is_empty(), "look for the second subject in {long:#?}");
}

/// Whether the source names the crate, as `name::` or `use name;`.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(is_part)
            && (after.starts_with("::") || (before.ends_with("use ") && after.starts_with([';', ' '])))
    })
}

#[test]
fn every_dependency_is_used() {
    let sources: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    let mut idle = Vec::new();
    let mut taken = BTreeSet::new();
    for package in workspace_packages() {
        let manifest = package["manifest_path"].as_str().unwrap();
        let home = Path::new(manifest).parent().unwrap().canonicalize().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["rename"].as_str().or(dependency["name"].as_str()).unwrap();
            taken.insert(name.to_owned());
            let ident = name.replace('-', "_");
            // What the shipped code uses has to stand in it; what is for tests may stand anywhere.
            let home = if dependency["kind"].is_null() { home.join("src") } else { home.clone() };
            if !sources.iter().any(|(path, text)| path.starts_with(&home) && names(text, &ident)) {
                idle.push(format!("{}: {name}", package["name"].as_str().unwrap()));
            }
        }
    }
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, entries) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    let entries = entries.split("\n[").next().unwrap().lines();
    for name in entries.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name) {
        if !taken.contains(name) {
            idle.push(format!("the workspace: {name}"));
        }
    }
    assert!(idle.is_empty(), "nobody uses what stands in the Cargo.toml of\n{}", idle.join("\n"));
}

#[test]
fn architecture_shows_every_crate() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for package in workspace_packages() {
        let name = package["name"].as_str().unwrap();
        assert!(text.contains(&format!("`{name}`")), "ARCHITECTURE.md does not mention `{name}`");
    }
}
