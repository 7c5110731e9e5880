//! `coracle restore`: a cluster as a backup has it.
//!
//! The backup is read twice: once to see that all of it is good, before anything is changed, and once to take it
//! over. History goes on far above the backup's revision: whoever has seen what came after the backup is told to
//! start anew, and never takes a new revision for one that they know.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use coracle_clock::Clock;
use coracle_store::Revision;
use coracle_store::backup::{Decoder, Record};
use coracle_store::embedded::NewStore;

use super::backup::{PKI, SETTINGS};
use crate::cluster::Cluster;
use crate::files::{private_directory, write_private};
use crate::lock::Purpose;
use crate::output;
use crate::settings::Settings;

/// How far the history jumps: more than any cluster writes between a backup and the day when it is needed. At 1,000
/// writes a second this is eleven days, at the rate of an idle cluster centuries.
const JUMP: u64 = 1_000_000_000;

/// A backup that was read to its end.
struct Whole {
    files: Vec<(String, Bytes)>,
    settings: Settings,
    revision: Revision,
    keys: u64,
}

pub(crate) fn run(cluster: &Cluster, path: &Path, force: bool) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("restoring a cluster needs root: run `sudo coracle restore`");
    }
    let clock = Clock::system();
    if let Some(pid) = cluster.running()? {
        bail!(
            "cluster {:?} is running (process {pid}): stop it with {}, then restore",
            cluster.name,
            cluster.command("down")
        );
    }
    let backup = read(path)?;
    output::progress(
        clock.elapsed(),
        format_args!("the backup is whole: {} keys at revision {}", backup.keys, backup.revision),
    );
    let known = cluster.exists();
    if !force && (cluster.settings_file().exists() || cluster.store().exists()) {
        bail!("cluster {:?} is here already: --force replaces it by the backup", cluster.name);
    }
    let lock = cluster.lock(Purpose::Stopping)?;
    let restored = restore(cluster, path, &backup);
    drop(lock);
    if restored.is_err() && !known {
        let _ = fs::remove_dir_all(&cluster.data);
    }
    let start = restored?;
    output::progress(
        clock.elapsed(),
        format_args!("restored; revisions go on after {start}; start it with {}", cluster.command("up")),
    );
    Ok(ExitCode::SUCCESS)
}

fn restore(cluster: &Cluster, path: &Path, backup: &Whole) -> anyhow::Result<Revision> {
    if let Some(etcd) = &backup.settings.store {
        bail!(
            "the backup is of a cluster whose objects are in {}: restore that etcd with its own tools",
            etcd.address
        );
    }
    drop(cluster.check_alone(&backup.settings)?);
    let staging = cluster.data.join("restore.partial");
    remove_all(&staging)?;
    private_directory(&staging)?;
    private_directory(&staging.join("pki"))?;
    for (name, content) in &backup.files {
        write_private(&staging.join(name), content)?;
    }
    let start = Revision(backup.revision.0.max(newest_name(&cluster.store())) + JUMP);
    let write = || -> anyhow::Result<()> {
        let mut store = NewStore::create(&staging.join("store"), start)?;
        each_record(path, |record| {
            if let Record::Items(items) = record {
                items.iter().try_for_each(|item| store.push(item))?;
            }
            Ok(())
        })?;
        Ok(store.finish()?)
    };
    write().context("cannot write the store")?;
    // Others may have chosen meanwhile; while this is held, nobody does.
    let _held = cluster.check_alone(&backup.settings)?;
    // From here on the old cluster is gone, and the new one is there when the mark is gone.
    let mark = cluster.restore_mark();
    write_private(&mark, b"")?;
    for name in ["pki", "store", SETTINGS] {
        let (from, to) = (staging.join(name), cluster.data.join(name));
        if to.is_dir() {
            remove_all(&to)?;
        }
        fs::rename(&from, &to)
            .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    }
    File::open(&cluster.data)?.sync_all()?;
    remove_all(&staging)?;
    fs::remove_file(&mark).with_context(|| format!("cannot remove {}", mark.display()))?;
    File::open(&cluster.data)?.sync_all()?;
    Ok(start)
}

/// The newest revision that the names of a store's files tell, damaged or not.
fn newest_name(store: &Path) -> u64 {
    let names = fs::read_dir(store).into_iter().flatten().filter_map(Result::ok);
    let revision = |name: &str| name.split('.').next()?.parse::<u64>().ok();
    names.filter_map(|entry| revision(entry.file_name().to_str()?)).max().unwrap_or(0)
}

fn read(path: &Path) -> anyhow::Result<Whole> {
    let mut files = Vec::new();
    let mut end = None;
    each_record(path, |record| {
        match record {
            Record::File { name, content } => files.push((name, content)),
            Record::Items(_) => {}
            Record::End { revision, keys } => end = Some((revision, keys)),
        }
        Ok(())
    })?;
    let of = path.display();
    let (revision, keys) = end.with_context(|| format!("{of} has no end"))?;
    for (name, _) in &files {
        let plain = name.strip_prefix(PKI).is_some_and(|name| !name.contains('/') && !name.starts_with('.'));
        if name != SETTINGS && !plain {
            bail!("{of} holds a file {name:?}, which is no part of a cluster");
        }
    }
    let content = |wanted: &str| files.iter().find(|(name, _)| name == wanted).map(|(_, content)| content);
    let settings =
        content(SETTINGS).with_context(|| format!("{of} holds no {SETTINGS}: it is of a store alone"))?;
    let settings = serde_json::from_slice(settings)
        .with_context(|| format!("{of}: {SETTINGS} is of another version of Coracle"))?;
    for needed in ["ca.crt", "ca.key"] {
        content(&format!("{PKI}{needed}")).with_context(|| format!("{of} holds no {needed}"))?;
    }
    Ok(Whole { files, settings, revision, keys })
}

fn each_record(path: &Path, mut each: impl FnMut(Record) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            break;
        }
        decoder.push(&buffer[..read]);
        while let Some(record) = decoder.record().with_context(|| path.display().to_string())? {
            each(record)?;
        }
    }
    decoder.finish().with_context(|| path.display().to_string())
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
