//! Tests of the store against the real kernel: overlay, links, device nodes. They need root.

mod archives;
mod bombs;
mod hostile;
mod lying;
mod registry;
mod store;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use coracle_clock::Clock;

use super::digest::Digest;
use super::{ImageStore, ImageStoreConfig, ImportedImage};

/// A store in a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> ImageStoreConfig {
        let mut config = ImageStoreConfig::new(self.dir.path().join("images"));
        config.limits.min_free_bytes = 1 << 20;
        config
    }

    fn open(&self) -> ImageStore {
        ImageStore::open(self.config(), Clock::system()).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Names in one of the store's directories.
    fn names(&self, part: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join("images").join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn import(store: &ImageStore, path: &Path) -> Vec<ImportedImage> {
    store.import(path, None, &mut |_| {}).unwrap()
}

/// One entry of a layer under construction.
#[derive(Clone)]
enum Item {
    Dir(&'static str, u32),
    File(&'static str, Vec<u8>, u32),
    Symlink(&'static str, &'static str),
    HardLink(&'static str, &'static str),
    Device(&'static str, u32, u32),
    Fifo(&'static str),
    /// With an extended attribute.
    Attribute(&'static str, &'static str, &'static [u8]),
}

/// A layer's archive. Names are written as they are, however bad.
fn layer(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        let (name, data): (&str, &[u8]) = match item {
            Item::Dir(name, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                (name, b"")
            }
            Item::File(name, data, mode) => {
                header.set_mode(*mode);
                (name, data)
            }
            Item::Symlink(name, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                (name, b"")
            }
            Item::HardLink(name, target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                (name, b"")
            }
            Item::Device(name, major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                (name, b"")
            }
            Item::Fifo(name) => {
                header.set_entry_type(tar::EntryType::Fifo);
                (name, b"")
            }
            Item::Attribute(name, key, value) => {
                let key = format!("SCHILY.xattr.{key}");
                builder.append_pax_extensions([(key.as_str(), *value)]).unwrap();
                (name, b"")
            }
        };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// A configuration for layers with these (uncompressed) contents.
fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "65534:65534", "StopSignal": "SIGUSR1",
                   "Labels": {"a": "b"}, "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// A tar of plain files.
fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `docker save` writes.
fn docker_archive(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let mut files = BTreeMap::new();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let paths: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    for (path, layer) in paths.iter().zip(layers) {
        files.insert(path.clone(), layer.clone());
    }
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": names, "Layers": paths}]);
    files.insert("manifest.json".into(), serde_json::to_vec(&manifest).unwrap());
    files.insert(config_name, config);
    tar_of(&files)
}

/// An OCI layout, as files by name. Layers are packed by `pack`.
fn oci_layout(name: &str, layers: &[Vec<u8>], pack: impl Fn(&[u8]) -> Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut add = |bytes: Vec<u8>, media_type: &str| {
        let digest = Digest::of(&bytes);
        let descriptor = serde_json::json!({
            "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(),
        });
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    };
    let config = add(config(layers), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<_> =
        layers.iter().map(|l| add(pack(l), "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers,
    });
    let mut manifest =
        add(serde_json::to_vec(&manifest).unwrap(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = serde_json::json!({"io.containerd.image.name": name});
    manifest["platform"] = serde_json::json!({"architecture": architecture(), "os": "linux"});
    let other = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 3,
        "digest": Digest::of(b"elsewhere").to_string(),
        "platform": {"architecture": "s390x", "os": "linux"},
    });
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [other, manifest]});
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A small image with the real busybox: a shell and a few files.
fn busybox_layer() -> Vec<u8> {
    layer(&[
        Item::Dir("bin/", 0o755),
        Item::File("bin/busybox", std::fs::read("/bin/busybox").unwrap(), 0o755),
        Item::Symlink("bin/sh", "busybox"),
        Item::Dir("tmp/", 0o1777),
        Item::Dir("etc/", 0o755),
        Item::File("etc/passwd", b"root:x:0:0::/:/bin/sh\n".to_vec(), 0o644),
    ])
}
