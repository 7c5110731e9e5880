//! What can be imported.

use super::*;
use crate::image::ImportProgress;

fn small() -> Vec<u8> {
    layer(&[Item::Dir("etc/", 0o755), Item::File("etc/name", b"one".to_vec(), 0o640)])
}

fn upper() -> Vec<u8> {
    layer(&[Item::Dir("etc/", 0o755), Item::File("etc/more", b"two".to_vec(), 0o644)])
}

#[test]
fn every_form_of_archive_brings_the_same_image() {
    let layers = [small(), upper()];
    let layout = |pack: fn(&[u8]) -> Vec<u8>| oci_layout("busybox:1", &layers, pack);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("docker", docker_archive(&["busybox:1"], &layers)),
        ("docker.gz", gzip(&docker_archive(&["busybox:1"], &layers))),
        ("docker.zst", zstd(&docker_archive(&["busybox:1"], &layers))),
        ("docker with gzipped layers", {
            // The configuration names the plain layers, as registries have it.
            let mut files = BTreeMap::new();
            let config = config(&layers);
            let id = Digest::of(&config);
            let mut paths = Vec::new();
            for layer in &layers {
                let packed = gzip(layer);
                paths.push(format!("blobs/sha256/{}", Digest::of(&packed).hex()));
                files.insert(paths.last().unwrap().clone(), packed);
            }
            let manifest = serde_json::json!([
                {"Config": format!("blobs/sha256/{}", id.hex()), "RepoTags": ["busybox:1"], "Layers": paths}
            ]);
            files.insert(format!("blobs/sha256/{}", id.hex()), config);
            files.insert("manifest.json".into(), serde_json::to_vec(&manifest).unwrap());
            tar_of(&files)
        }),
        ("oci plain", tar_of(&layout(<[u8]>::to_vec))),
        ("oci gzip", tar_of(&layout(gzip))),
        ("oci zstd.gz", gzip(&tar_of(&layout(|b| zstd::encode_all(b, 1).unwrap())))),
    ];
    for (form, archive) in forms {
        let fixture = Fixture::new();
        let store = fixture.open();
        let path = fixture.write("archive", &archive);
        let imported = import(&store, &path);
        assert_eq!(imported.len(), 1, "{form}");
        let image = &imported[0].image;
        assert_eq!(image.id, Digest::of(&config(&layers)).to_string(), "{form}");
        assert_eq!(image.repo_tags, ["docker.io/library/busybox:1"], "{form}");
        assert_eq!(image.repo_digests.len(), usize::from(form.starts_with("oci")), "{form}");
        assert_eq!((image.uid, image.username.as_str()), (Some(65534), ""), "{form}");
        assert!(image.pinned && image.size > 0 && image.stop_signal == "SIGUSR1", "{form}");
        assert_eq!(store.get("busybox:1").unwrap().as_ref(), Some(image), "{form}");
        assert_eq!(store.get(&image.id[7..19]).unwrap().as_ref(), Some(image), "{form}");
        assert_eq!(store.list().unwrap(), std::slice::from_ref(image), "{form}");
        assert_eq!(fixture.names("layers").len(), 2, "{form}");
        assert!(fixture.names("operations").is_empty(), "{form}");
        let run = store.run_config(&image.id).unwrap();
        assert_eq!((run.cmd, run.working_dir), (vec!["sh".to_owned()], "/tmp".to_owned()), "{form}");
    }
}

#[test]
fn a_directory_with_a_layout_is_an_archive_too() {
    let fixture = Fixture::new();
    let store = fixture.open();
    for (name, bytes) in oci_layout("registry.example/a/b:2", &[small()], gzip) {
        fixture.write(&format!("layout/{name}"), &bytes);
    }
    let imported = import(&store, &fixture.dir.path().join("layout"));
    assert_eq!(imported[0].names, ["registry.example/a/b:2"]);
}

#[test]
fn the_old_form_shares_layers_by_links() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let one = layer(&[Item::File("a", b"a".to_vec(), 0o644)]);
    let layers = [one.clone(), one.clone()];
    let config = config(&layers);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        match link {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target).unwrap();
            }
            None => builder.append_data(&mut header, name, data).unwrap(),
        }
    };
    add("2/layer.tar", b"", Some("../1/layer.tar"));
    add("1/layer.tar", &one, None);
    add("c.json", &config, None);
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    add("manifest.json", manifest, None);
    let path = fixture.write("archive", &builder.into_inner().unwrap());
    let imported = import(&store, &path);
    assert!(imported[0].names.is_empty() && imported[0].image.pinned);
    assert_eq!(store.list().unwrap().len(), 1, "an image without a name stays, because it is pinned");
    store.remove(&imported[0].image.id).unwrap();
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_name_can_be_given_and_progress_is_told() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let path = fixture.write("archive", &docker_archive(&["busybox:1"], &[small(), upper()]));
    let mut seen: Vec<ImportProgress> = Vec::new();
    let imported = store.import(&path, Some("other"), &mut |progress| seen.push(progress)).unwrap();
    assert_eq!(imported[0].image.repo_tags, ["docker.io/library/other:latest"]);
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    assert_eq!((first.layers_done, first.layers_total, first.read_bytes), (0, 2, 0));
    assert_eq!((last.layers_done, last.read_bytes), (2, last.total_bytes));
    assert!(seen.is_sorted_by_key(|progress| progress.read_bytes));
    let error = store.import(&path, Some("Bad Name"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("couldn't parse image name"), "{error}");
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let layers = [small(), upper()];
    let docker = docker_archive(&["busybox:1"], &layers);
    let layout = oci_layout("busybox:1", &layers, gzip);
    let blob_of = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let with = |name: &str, bytes: Option<Vec<u8>>| {
        let mut files = layout.clone();
        match bytes {
            Some(bytes) => files.insert(name.to_owned(), bytes),
            None => files.remove(name),
        };
        tar_of(&files)
    };
    let flipped = {
        let mut packed = gzip(&layers[0]);
        let middle = packed.len() / 2;
        packed[middle] ^= 1;
        packed
    };
    let other = gzip(&layer(&[Item::File("evil", b"x".to_vec(), 0o644)]));
    for (what, archive, message) in [
        ("nothing", Vec::new(), "is not an image archive"),
        ("text", b"hello".repeat(200), "checksum"),
        (
            "a tar of something else",
            tar_of(&BTreeMap::from([("a".into(), vec![1])])),
            "is not an image archive",
        ),
        ("cut short", docker[..docker.len() / 2].to_vec(), ""),
        ("gzip cut short", gzip(&docker)[..200].to_vec(), ""),
        ("layer missing", with(&blob_of(&gzip(&layers[1])), None), "holds no file"),
        ("layer damaged", with(&blob_of(&gzip(&layers[0])), Some(flipped)), ""),
        ("layer exchanged", with(&blob_of(&gzip(&layers[0])), Some(other)), "expected"),
        ("configuration damaged", with(&blob_of(&config(&layers)), Some(b"{}".to_vec())), "size of"),
        ("bad JSON", with("index.json", Some(b"{".to_vec())), "image manifest"),
    ] {
        let fixture = Fixture::new();
        let store = fixture.open();
        let path = fixture.write("archive", &archive);
        let error = store.import(&path, None, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(message), "{what}: {error}");
        assert!(store.list().unwrap().is_empty(), "{what}");
        assert!(fixture.names("layers").is_empty() && fixture.names("operations").is_empty(), "{what}");
    }
    let fixture = Fixture::new();
    let error = fixture.open().import(Path::new("/nonexistent"), None, &mut |_| {}).unwrap_err().to_string();
    assert_eq!(error, "cannot open /nonexistent: No such file or directory (os error 2)");
}
