//! `coracle backup`: the store at one revision, and what else makes the cluster itself, in one file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use coracle_client::connect_with_kubeconfig;
use coracle_clock::Clock;
use coracle_store::backup::{Decoder, Encoder, Record, export};
use coracle_store::embedded::{EmbeddedStore, Options};
use futures::stream::{self, BoxStream};
use futures::{AsyncReadExt, StreamExt, TryStreamExt};

use crate::cluster::Cluster;
use crate::lock::Purpose;
use crate::output;

/// The name of the settings within a backup.
pub(super) const SETTINGS: &str = "cluster.json";
/// What the names of keys and certificates start with.
pub(super) const PKI: &str = "pki/";

pub(crate) fn run(cluster: &Cluster, path: &Path) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a backup holds the cluster's keys, and needs root: run `sudo coracle backup`");
    }
    let clock = Clock::system();
    let settings = cluster.settings()?.with_context(|| cluster.unknown())?;
    if let Some(joined) = settings.joined {
        bail!("this machine is a node of {}: the backup is made there", joined.server);
    }
    if let (Some(etcd), None) = (&settings.store, cluster.running()?) {
        bail!(
            "the objects are in {}: start the cluster with {}, and back it up while it runs",
            etcd.address,
            cluster.command("up")
        );
    }
    let mut output = Partial::create(path)?;
    let mut encoder = Encoder::default();
    for (name, file) in files(cluster)? {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.into();
        output.write(&encoder.encode(&Record::File { name, content }))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (revision, keys) = runtime.block_on(async {
        // Held while the store is read from its files.
        let lock = if cluster.running()?.is_some() { None } else { Some(cluster.lock(Purpose::Stopping)?) };
        let mut records =
            if lock.is_some() { from_files(cluster, &clock)? } else { from_server(cluster).await? };
        let mut told = clock.elapsed();
        let mut read = 0;
        while let Some(record) = records.try_next().await? {
            output.write(&encoder.encode(&record))?;
            match record {
                Record::Items(items) => read += items.len(),
                Record::End { revision, keys } => return Ok((revision, keys)),
                Record::File { name, .. } => {
                    bail!("the server sent a file {name:?}, which is none of a store's")
                }
            }
            if (clock.elapsed() - told).as_secs() >= 1 {
                told = clock.elapsed();
                output::progress(told, format_args!("{read} keys"));
            }
        }
        bail!("the backup broke off after {read} keys: try again")
    })?;
    let bytes = output.finish()?;
    output::progress(
        clock.elapsed(),
        format_args!("{keys} keys at revision {revision}, {bytes} bytes: {}", path.display()),
    );
    Ok(ExitCode::SUCCESS)
}

/// Keys, certificates and settings: names within the backup, and where they are.
fn files(cluster: &Cluster) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let pki = cluster.pki();
    let mut found = vec![(SETTINGS.to_owned(), cluster.settings_file())];
    for entry in fs::read_dir(&pki).with_context(|| format!("cannot read {}", pki.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|name| name.ends_with(".crt") || name.ends_with(".key")) {
            found.push((format!("{PKI}{name}"), path.clone()));
        }
    }
    found.sort();
    Ok(found)
}

type Records = BoxStream<'static, anyhow::Result<Record>>;

fn from_files(cluster: &Cluster, clock: &Clock) -> anyhow::Result<Records> {
    let directory = cluster.store();
    if !directory.is_dir() {
        bail!(
            "{} is not there: start the cluster with {}, and back it up while it runs",
            directory.display(),
            cluster.command("up")
        );
    }
    let (store, recovery) = EmbeddedStore::open_dir(&directory, clock.clone(), Options::default())
        .with_context(|| format!("cannot open the store in {}", directory.display()))?;
    if let Some(cut) = recovery.cut {
        output::note(format_args!("{}: {} bytes of an interrupted write cut off", cut.file, cut.bytes));
    }
    Ok(export(store).map_err(|error| anyhow::Error::from(error).context("cannot read the store")).boxed())
}

/// From the running cluster, whose process has the store.
async fn from_server(cluster: &Cluster) -> anyhow::Result<Records> {
    let path = cluster.kubeconfig();
    let kubeconfig = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let client = connect_with_kubeconfig(&kubeconfig).await?;
    let request = http::Request::get("/coracle/v1/backup").body(Vec::new())?;
    let body = client.request_stream(request).await.context("the API server gives no backup")?;
    let begin = (Box::pin(body), Decoder::default(), false);
    let records = stream::try_unfold(begin, |(mut body, mut decoder, mut ended)| async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(record) = decoder.record().context("what the API server sends is damaged")? {
                return Ok(Some((record, (body, decoder, ended))));
            }
            if ended {
                decoder.finish().context("the API server broke off: try again")?;
                return Ok(None);
            }
            let read = body.read(&mut buffer).await.context("the API server broke off: try again")?;
            ended = read == 0;
            decoder.push(&buffer[..read]);
        }
    });
    Ok(records.boxed())
}

/// A file that gets its name when it is complete and durable, and is removed otherwise.
struct Partial {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    bytes: u64,
    finished: bool,
}

impl Partial {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            bail!("{} is a directory: name a file in it", path.display());
        }
        let path = std::path::absolute(path)?;
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        // Whoever else could read what is left of an older one cannot read this one.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", partial.display()));
            }
            _ => {}
        }
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
        Ok(Partial { file, partial, path, bytes: 0, finished: false })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.partial.display()))
    }

    fn finish(mut self) -> anyhow::Result<u64> {
        let name = || -> std::io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.path)?;
            self.path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        };
        name().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished = true;
        Ok(self.bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}
