//! Layers that try to get out, or to take everything.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::image::digest::Cancel;
use crate::image::tar::Stream;
use crate::image::types::UnpackLimits;
use crate::image::unpack::{UnpackError, Usage, unpack};

fn limits() -> UnpackLimits {
    UnpackLimits { min_free_bytes: 1, min_free_inodes: 1, max_layer_bytes: 1 << 20, max_layer_entries: 100 }
}

fn unpack_to(dir: &Path, items: &[Item]) -> Result<Usage, UnpackError> {
    std::fs::create_dir_all(dir).unwrap();
    let root = std::fs::File::open(dir).unwrap();
    let archive = layer(items);
    unpack(Stream(&archive[..]), std::os::fd::AsFd::as_fd(&root), &limits(), &Cancel::default())
        .map(|(_, usage)| usage)
}

#[test]
fn nothing_leaves_the_root() {
    use Item::{Attribute, Device, Dir, File, HardLink, Symlink};
    let data = || b"x".to_vec();
    // Each gives the message, or nothing if it is harmless inside.
    let table: Vec<(&str, Vec<Item>, Option<&str>)> = vec![
        ("dot dot", vec![File("../out", data(), 0o644)], Some("leads out of the layer")),
        ("dot dot inside", vec![Dir("a/", 0o755), File("a/../../out", data(), 0o644)], Some("leads out")),
        ("whiteout of dot dot", vec![File(".wh...", data(), 0o644)], Some("whiteout of nothing")),
        ("hard link out", vec![HardLink("a", "../../../etc/passwd")], Some("leads out")),
        ("hard link to a host path", vec![HardLink("a", "/etc/hostname")], Some("hard link to")),
        ("whiteout device", vec![Device("a", 0, 0)], Some("0/0")),
        ("overlay attribute", vec![Attribute("a", "trusted.overlay.redirect", b"/etc")], Some("not allowed")),
        (
            "overlay attribute of users",
            vec![Attribute("a", "user.overlay.opaque", b"y")],
            Some("not allowed"),
        ),
        ("directory with data", vec![File("./", data(), 0o644)], Some("checksum")),
        ("root as file", vec![Symlink(".", "/etc")], Some("must be a directory")),
        (
            "parent is a file",
            vec![File("a", data(), 0o644), File("a/b", data(), 0o644)],
            Some("Not a directory"),
        ),
        ("dangling parent", vec![Symlink("a", "nowhere"), File("a/b", data(), 0o644)], Some("File exists")),
        ("link loop", vec![Symlink("a", "a"), File("a/b", data(), 0o644)], Some("symbolic links")),
        ("absolute name", vec![File("/inside", data(), 0o644)], None),
        (
            "through an absolute link",
            vec![Dir("d/", 0o755), Symlink("l", "/d"), File("l/inside", data(), 0o644)],
            None,
        ),
        ("through a link up", vec![Symlink("l", "../../.."), File("l/inside", data(), 0o644)], None),
        ("over a link", vec![Symlink("inside", "/out"), File("inside", data(), 0o644)], None),
        ("hard link to a link", vec![Symlink("l", "/etc/passwd"), HardLink("inside", "l")], None),
    ];
    for (what, items, message) in table {
        let dir = tempfile::tempdir().unwrap();
        let outside_before = std::fs::metadata("/etc/passwd").unwrap().ctime();
        let result = unpack_to(&dir.path().join("deep/er/root"), &items);
        match (result, message) {
            (Ok(_), None) => {}
            (Err(UnpackError::Archive(text)), Some(message)) => {
                assert!(text.contains(message), "{what}: {text}");
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
        for level in ["", "deep", "deep/er"] {
            let names = std::fs::read_dir(dir.path().join(level)).unwrap().count();
            assert_eq!(names, 1, "{what}: something was made in {level:?}");
        }
        assert!(!Path::new("/out").exists() && !Path::new("/inside").exists(), "{what}");
        assert_eq!(std::fs::metadata("/etc/passwd").unwrap().ctime(), outside_before, "{what}");
    }
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<Item> = (0..101).map(|_| Item::Fifo("same")).collect();
    assert!(matches!(unpack_to(&dir.path().join("a"), &many), Err(UnpackError::Limit(_))));
    let large = [Item::File("zeros", vec![0; (1 << 20) + 1], 0o644)];
    assert!(matches!(unpack_to(&dir.path().join("b"), &large), Err(UnpackError::Limit(_))));

    let root = std::fs::File::open(dir.path()).unwrap();
    let greedy = UnpackLimits { min_free_bytes: u64::MAX, ..limits() };
    let archive = layer(&[Item::Fifo("f")]);
    let root = std::os::fd::AsFd::as_fd(&root);
    let result = unpack(Stream(&archive[..]), root, &greedy, &Cancel::default());
    assert!(matches!(result, Err(UnpackError::Limit(text)) if text.contains("no space left")));

    let cancel = Cancel::default();
    cancel.cancel();
    let result = unpack(Stream(&archive[..]), root, &limits(), &cancel);
    assert!(matches!(result, Err(UnpackError::Abandoned)));
}

#[test]
fn attributes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut capability = vec![0; 20];
    capability[..4].copy_from_slice(&0x0200_0000u32.to_le_bytes());
    let capability: &'static [u8] = capability.leak();
    unpack_to(
        dir.path(),
        &[
            Item::Dir("./", 0o711),
            Item::Dir("d/", 0o1777),
            Item::File("d/setuid", b"x".to_vec(), 0o4755),
            Item::Device("null", 1, 3),
            Item::Fifo("fifo"),
            Item::Attribute("capable", "security.capability", capability),
            Item::Attribute("plain", "user.note", b"a\nb"),
            Item::Attribute("ignored", "security.selinux", b"label"),
            Item::HardLink("linked", "d/setuid"),
        ],
    )
    .unwrap();
    let look = |name: &str| std::fs::symlink_metadata(dir.path().join(name)).unwrap();
    assert_eq!(look("").permissions().mode() & 0o7777, 0o711);
    assert_eq!(look("d").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(look("d").mtime(), 1_000_000_000, "although files were made in it later");
    assert_eq!(look("d/setuid").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(look("linked").ino(), look("d/setuid").ino());
    assert!(look("null").file_type().is_char_device() && look("fifo").file_type().is_fifo());
    assert_eq!(look("null").rdev(), rustix::fs::makedev(1, 3));
    let attribute = |name: &str, key: &str| {
        let mut value = vec![0; 64];
        rustix::fs::lgetxattr(dir.path().join(name), key, &mut value).map(|n| value[..n].to_vec())
    };
    assert_eq!(attribute("capable", "security.capability").unwrap(), capability);
    assert_eq!(attribute("plain", "user.note").unwrap(), b"a\nb");
    assert!(attribute("ignored", "security.selinux").is_err());
}
