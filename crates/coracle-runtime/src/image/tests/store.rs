//! The store over time: sharing, removal, leftovers, root file systems.

use coracle_cri::{ContainerId, CriError, ImageService, ImageSpec};

use super::*;
use crate::image::DeviceNodes;
use crate::image::ImageError;

fn base() -> Vec<u8> {
    layer(&[
        Item::Dir("etc/", 0o750),
        Item::File("etc/old", b"old".to_vec(), 0o644),
        Item::File("etc/kept", b"kept".to_vec(), 0o644),
        Item::Dir("opaque/", 0o755),
        Item::File("opaque/below", b"x".to_vec(), 0o644),
        Item::Dir("usr/lib/", 0o755),
        Item::Symlink("lib", "usr/lib"),
    ])
}

fn change() -> Vec<u8> {
    layer(&[
        // No entry for etc/ itself: its mode must stay that of the layer below.
        Item::File("etc/.wh.old", Vec::new(), 0),
        Item::File("etc/new", b"new".to_vec(), 0o644),
        Item::File("opaque/above", b"y".to_vec(), 0o644),
        Item::File("opaque/.wh..wh..opq", Vec::new(), 0),
        Item::File("lib/through-the-link", b"z".to_vec(), 0o644),
        Item::HardLink("etc/linked", "etc/kept"),
    ])
}

fn other() -> Vec<u8> {
    layer(&[Item::File("other", b"o".to_vec(), 0o644)])
}

fn container(n: u32) -> ContainerId {
    ContainerId(format!("{n:064x}"))
}

struct Mounted(crate::image::Rootfs);

impl Mounted {
    fn new(rootfs: &crate::image::Rootfs) -> Self {
        rootfs.mount(DeviceNodes::Dead).unwrap();
        Mounted(rootfs.clone())
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.0.merged.join(path)).ok()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.0.unmount();
    }
}

#[test]
fn a_container_sees_the_layers_as_one_tree() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let store = fixture.open();
    let path = fixture.write("archive", &docker_archive(&["a"], &[base(), change()]));
    let id = import(&store, &path)[0].image.id.clone();
    let rootfs = store.prepare_rootfs(&id, &container(1)).unwrap();
    assert_eq!(rootfs.lower.len(), 2);
    {
        let mounted = Mounted::new(&rootfs);
        assert_eq!(mounted.read("etc/old"), None, "whited out");
        assert_eq!(mounted.read("etc/new").as_deref(), Some("new"));
        assert_eq!(mounted.read("etc/linked").as_deref(), Some("kept"));
        assert_eq!(mounted.read("opaque/below"), None);
        assert_eq!(mounted.read("opaque/above").as_deref(), Some("y"));
        assert_eq!(mounted.read("usr/lib/through-the-link").as_deref(), Some("z"));
        let mode = std::fs::metadata(rootfs.merged.join("etc")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750);
        std::fs::write(rootfs.merged.join("etc/kept"), "changed").unwrap();
        let error = store.release_rootfs(&container(1)).unwrap_err();
        assert!(error.to_string().contains("still mounted"), "{error}");
    }
    // The writable layer is the container's own.
    let other = store.prepare_rootfs(&id, &container(2)).unwrap();
    assert_eq!(Mounted::new(&other).read("etc/kept").as_deref(), Some("kept"));
    assert_eq!(store.prepare_rootfs(&id, &container(1)).unwrap(), rootfs, "the same one again");
    assert_eq!(store.prepared_rootfs().unwrap(), [container(1), container(2)]);
    for n in [1, 2, 2] {
        store.release_rootfs(&container(n)).unwrap();
    }
    assert!(fixture.names("rootfs").is_empty() && fixture.names("operations").is_empty());
    for bad in ["", "../x", "a/b"] {
        assert!(store.prepare_rootfs(&id, &ContainerId(bad.to_owned())).is_err(), "{bad:?}");
    }
}

#[test]
fn layers_are_shared_and_go_with_their_last_user() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let a =
        import(&store, &fixture.write("a", &docker_archive(&["a", "a:also"], &[base()])))[0].image.clone();
    let b =
        import(&store, &fixture.write("b", &docker_archive(&["b"], &[base(), change()])))[0].image.clone();
    assert_eq!(fixture.names("layers").len(), 2);

    let removed = store.remove("a").unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["docker.io/library/a:latest".to_owned()], None));
    let removed = store.remove("a:also").unwrap();
    assert_eq!(removed.deleted, Some(a.id));
    assert_eq!(fixture.names("layers").len(), 2, "b still stands on it");
    assert!(matches!(store.remove("a"), Err(ImageError::NotFound(_))));

    store.prepare_rootfs(&b.id, &container(7)).unwrap();
    let error = store.remove("b").unwrap_err().to_string();
    assert_eq!(error, "image \"b\" is in use by container 000000000000; remove the Pod first");
    store.release_rootfs(&container(7)).unwrap();
    store.remove("b").unwrap();
    assert!(fixture.names("layers").is_empty() && fixture.names("blobs/sha256").is_empty());
}

#[tokio::test]
async fn the_service_forgets_an_image_in_use_but_keeps_its_layers() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let image =
        import(&store, &fixture.write("a", &docker_archive(&["a"], &[base(), change()])))[0].image.clone();
    let rootfs = store.prepare_rootfs(&image.id, &container(1)).unwrap();
    let spec = |name: &str| ImageSpec { image: name.to_owned() };
    let usage = store.image_fs_info().await.unwrap();
    assert!(usage.used_bytes > 0 && usage.inodes_used > 5);
    assert_eq!(store.image_status(&spec("a")).await.unwrap(), Some(image.clone()));
    store.remove_image(&spec("a")).await.unwrap();
    store.remove_image(&spec("a")).await.unwrap();
    assert_eq!(store.image_status(&spec("a")).await.unwrap(), None);
    assert!(matches!(store.image_status(&spec("A B")).await, Err(CriError::InvalidArgument(_))));
    // A restart sweeps, and still finds them in use.
    let store = fixture.open();
    assert_eq!(Mounted::new(&rootfs).read("etc/new").as_deref(), Some("new"));
    store.release_rootfs(&container(1)).unwrap();
    fixture.open();
    assert!(fixture.names("layers").is_empty());
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let old = import(&store, &fixture.write("a", &docker_archive(&["a"], &[base()])))[0].image.clone();
    let new = import(&store, &fixture.write("b", &docker_archive(&["a"], &[other()])))[0].image.clone();
    assert_ne!(old.id, new.id);
    assert_eq!(store.list().unwrap(), [new], "nothing names the old one any more");
}

#[test]
fn another_process_is_noticed_at_the_next_look() {
    let fixture = Fixture::new();
    let (daemon, cli) = (fixture.open(), fixture.open());
    assert!(daemon.list().unwrap().is_empty());
    for (n, layers) in [vec![base()], vec![other()], vec![base(), other()]].into_iter().enumerate() {
        let archive = docker_archive(&[&format!("image:{n}")], &layers);
        import(&cli, &fixture.write("archive", &archive));
        assert_eq!(daemon.list().unwrap().len(), n + 1);
    }
    cli.remove("image:1").unwrap();
    assert_eq!(daemon.get("image:1").unwrap(), None);
}

#[test]
fn leftovers_of_a_crash_are_swept_and_live_operations_are_not() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let dead = fixture.dir.path().join("images/operations/1-1");
    std::fs::create_dir_all(dead.join("layers/x/fs")).unwrap();
    std::fs::write(dead.join("lock"), "").unwrap();
    fixture.write(&format!("images/layers/{}/layer.json", "a".repeat(64)), b"");
    fixture.write("images/blobs/sha256/nonsense", b"");
    let live = store.shared.begin().unwrap();
    fixture.open();
    assert_eq!(fixture.names("operations").len(), 1);
    assert!(
        live.dir().exists() && fixture.names("layers").is_empty() && fixture.names("blobs/sha256").is_empty()
    );
    drop(live);
    assert!(fixture.names("operations").is_empty());
}

#[test]
fn many_imports_side_by_side_share_their_layers() {
    let fixture = Fixture::new();
    let archives: Vec<PathBuf> = (0..6)
        .map(|n| {
            let archive = docker_archive(&[&format!("image:{n}")], &[base(), change()]);
            fixture.write(&format!("archive-{n}"), &archive)
        })
        .collect();
    std::thread::scope(|scope| {
        for path in &archives {
            scope.spawn(|| import(&fixture.open(), path));
        }
    });
    let store = fixture.open();
    assert_eq!(store.list().unwrap()[0].repo_tags.len(), 6);
    assert_eq!(fixture.names("layers").len(), 2);
    assert!(fixture.names("operations").is_empty());
}

#[test]
fn an_image_without_layers_can_be_mounted() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let image = import(&store, &fixture.write("a", &docker_archive(&["scratch:1"], &[])))[0].image.clone();
    let rootfs = store.prepare_rootfs(&image.id, &container(1)).unwrap();
    assert_eq!(Mounted::new(&rootfs).read("anything"), None);
}

#[test]
fn a_deep_stack_of_layers_can_be_mounted() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let layers: Vec<Vec<u8>> =
        (0..100).map(|n| layer(&[Item::File("n", format!("{n}").into_bytes(), 0o644)])).collect();
    let image = import(&store, &fixture.write("a", &docker_archive(&["deep"], &layers)))[0].image.clone();
    let rootfs = store.prepare_rootfs(&image.id, &container(1)).unwrap();
    assert_eq!(Mounted::new(&rootfs).read("n").as_deref(), Some("99"));
}

/// What a power cut, or somebody, can make of a file.
const DAMAGE: [&[u8]; 4] = [b"", b"{\"version\":1,\"ima", &[0; 100], b"\xff\xfe"];

#[test]
fn a_damaged_list_of_images_says_what_to_do() {
    let fixture = Fixture::new();
    let path = fixture.write("archive", &docker_archive(&["a"], &[base()]));
    import(&fixture.open(), &path);
    let list = fixture.config().dir.join("images.json");
    for damage in DAMAGE {
        std::fs::write(&list, damage).unwrap();
        let message = ImageStore::open(fixture.config(), Clock::system()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{} is damaged", list.display())), "{message}");
        assert!(message.ends_with("then import or pull them again"), "{message}");
    }
    std::fs::write(&list, br#"{"version":2,"pictures":[]}"#).unwrap();
    let message = ImageStore::open(fixture.config(), Clock::system()).unwrap_err().to_string();
    assert!(message.ends_with("was written by a newer coracle (format 2): start the newer one"), "{message}");
    std::fs::remove_file(&list).unwrap();
    let store = fixture.open();
    assert_eq!(store.list().unwrap(), []);
    import(&store, &path);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn an_image_that_lost_something_is_not_there_and_comes_back_by_import() {
    let fixture = Fixture::new();
    let path = fixture.write("archive", &docker_archive(&["a"], &[base()]));
    let whole = fixture.write("whole", &docker_archive(&["b"], &[other()]));
    let first = fixture.open();
    let id = import(&first, &path)[0].image.id.clone();
    import(&first, &whole);
    let directory = fixture.config().dir;
    let layer = first.prepare_rootfs(&id, &container(1)).unwrap().lower[0].parent().unwrap().to_owned();
    first.release_rootfs(&container(1)).unwrap();
    drop(first);
    let blob = directory.join("blobs/sha256").join(id.trim_start_matches("sha256:"));
    let damages: [&dyn Fn() -> std::io::Result<()>; 3] =
        [&|| std::fs::write(&blob, b"\0\0\0"), &|| std::fs::remove_file(&blob), &|| {
            std::fs::remove_dir_all(&layer)
        }];
    for damage in damages {
        damage().unwrap();
        let store = fixture.open();
        assert_eq!(store.get("a").unwrap(), None);
        assert!(store.get("b").unwrap().is_some(), "the other one is whole");
        import(&store, &path);
        let rootfs = store.prepare_rootfs(&id, &container(1)).unwrap();
        assert_eq!(Mounted::new(&rootfs).read("etc/kept").as_deref(), Some("kept"));
        store.release_rootfs(&container(1)).unwrap();
    }
}
