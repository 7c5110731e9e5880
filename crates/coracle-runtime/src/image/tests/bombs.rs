//! Images that are small on the wire and want all there is: memory, disk, inodes, time.
//!
//! Each is read from a stream that is made while it is read. Memory is measured in a process of its own; the limits
//! on the disk are set low. Where the limits are in real life: [`UnpackLimits::default`].

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::Command;

use super::*;
use crate::image::ImageError;
use crate::image::digest::Cancel;
use crate::image::layers::decompress;
use crate::image::tar::Stream;
use crate::image::types::UnpackLimits;
use crate::image::unpack::{UnpackError, Usage, unpack};

const MIB: u64 = 1 << 20;
/// What a hostile image may make a process grow by.
const GROWTH_MAX: u64 = 64 * MIB;

/// Bytes made while they are read: the next piece at a time, until there is none.
struct Pieces<F> {
    next: F,
    piece: VecDeque<u8>,
}

impl<F: FnMut() -> Option<Vec<u8>>> Pieces<F> {
    fn new(next: F) -> Self {
        Pieces { next, piece: VecDeque::new() }
    }
}

impl<F: FnMut() -> Option<Vec<u8>>> Read for Pieces<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match (self.next)() {
                Some(piece) => self.piece = piece.into(),
                None => return Ok(0),
            }
        }
        self.piece.read(buffer)
    }
}

/// Many pieces, one for each number.
fn pieces(count: u64, piece: impl Fn(u64) -> Vec<u8>) -> Pieces<impl FnMut() -> Option<Vec<u8>>> {
    let mut next = 0;
    Pieces::new(move || {
        let this = next;
        next += 1;
        (this < count).then(|| piece(this))
    })
}

fn header(kind: tar::EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An extended header with one record.
fn extended(key: &str, value: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([(key, value)]).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    // Without the end mark.
    bytes.truncate(bytes.len() - 1024);
    bytes
}

fn unpack_from(dir: &Path, source: impl Read, limits: &UnpackLimits) -> Result<Usage, UnpackError> {
    std::fs::create_dir_all(dir).unwrap();
    let root = std::fs::File::open(dir).unwrap();
    let plain = decompress(source).unwrap();
    unpack(Stream(plain), root.as_fd(), limits, &Cancel::default()).map(|(_, usage)| usage)
}

fn low() -> UnpackLimits {
    UnpackLimits { max_layer_bytes: 8 * MIB, max_layer_entries: 500, ..UnpackLimits::default() }
}

/// Bytes and inodes that a tree takes on the disk.
fn taken(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        bytes += metadata.blocks() * 512;
        inodes += 1;
        if metadata.is_dir() {
            let (more, of_them) = taken(&entry.path());
            bytes += more;
            inodes += of_them;
        }
    }
    (bytes, inodes)
}

#[test]
fn nothing_takes_more_of_the_disk_than_its_limit() {
    let zeros = |packed: Vec<u8>| {
        // 10 GB in all, of which nobody reads more than the limit.
        move || pieces(10_240, move |_| packed.clone())
    };
    let megabyte = vec![0; 1 << 20];
    let mut gzip_zeros = zeros(gzip(&megabyte))();
    let mut zstd_zeros = zeros(zstd::encode_all(&megabyte[..], 1).unwrap())();
    let large = |pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        io::Cursor::new(pack(&header(tar::EntryType::Regular, "zeros", 10 << 30)))
    };
    let deep: String = "d/".repeat(2000);
    let table: Vec<(&str, Box<dyn Read + '_>, &str)> = vec![
        ("10 GB in gzip", Box::new(large(&gzip).chain(&mut gzip_zeros)), "unpacks to more than"),
        (
            "10 GB in zstd",
            Box::new(large(&|b| zstd::encode_all(b, 1).unwrap()).chain(&mut zstd_zeros)),
            "unpacks to more than",
        ),
        (
            "many that fit each",
            Box::new(pieces(64, |n| {
                [header(tar::EntryType::Regular, &format!("{n}"), MIB), vec![0; 1 << 20]].concat()
            })),
            "unpacks to more than",
        ),
        (
            "the same file over and over",
            Box::new(pieces(64, |_| {
                [header(tar::EntryType::Regular, "same", MIB), vec![0; 1 << 20]].concat()
            })),
            "unpacks to more than",
        ),
        (
            "millions of entries",
            Box::new(pieces(10_000_000, |n| header(tar::EntryType::Directory, &format!("{n}"), 0))),
            "more than 500 entries",
        ),
        (
            "directories that no entry names",
            Box::new(pieces(1, move |_| {
                [extended("path", deep.as_bytes()), header(tar::EntryType::Directory, "x", 0)].concat()
            })),
            "more than 500 entries",
        ),
        (
            "a size beyond all numbers",
            Box::new(pieces(1, |_| {
                let size = u64::MAX.to_string();
                [extended("size", size.as_bytes()), header(tar::EntryType::Regular, "x", 0)].concat()
            })),
            "unpacks to more than",
        ),
    ];
    for (what, source, message) in table {
        let dir = tempfile::tempdir().unwrap();
        let result = unpack_from(&dir.path().join("root"), source, &low());
        assert!(
            matches!(&result, Err(UnpackError::Limit(text)) if text.contains(message)),
            "{what}: {result:?}"
        );
        let (bytes, inodes) = taken(dir.path());
        assert!(bytes <= 8 * MIB + 600 * 4096 && inodes <= 502, "{what}: {bytes} bytes, {inodes} inodes");
    }
}

#[test]
fn what_is_no_honest_archive_is_refused() {
    let negative = || {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[0] = b'x';
        // A number in base 256 with its sign set.
        header.as_old_mut().size = [0xff; 12];
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let sparse = || {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.as_old_mut().name[0] = b'x';
        header.set_size(0);
        let gnu = header.as_gnu_mut().unwrap();
        // Eight exabytes of nothing.
        gnu.realsize.copy_from_slice(b"77777777777\0");
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let regular = || header(tar::EntryType::Regular, "x", 0);
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        // Which is read as a very large one.
        ("a negative size", negative(), "unpacks to more than"),
        ("an old sparse file", sparse(), "sparse files are not supported"),
        (
            "a new sparse file",
            [extended("GNU.sparse.realsize", b"9223372036854775807"), regular()].concat(),
            "sparse files are not supported",
        ),
        (
            "a size that is no number",
            [extended("size", b"-1"), regular()].concat(),
            "malformed extended header",
        ),
        ("a file that is not there", header(tar::EntryType::Regular, "x", MIB), "cut short"),
        (
            "a name of gigabytes",
            header(tar::EntryType::GNULongName, "x", 4 << 30),
            "extended header too large",
        ),
        (
            "a name longer than any path",
            [extended("path", &[b'a'; 5000]), regular()].concat(),
            "the name is too long",
        ),
        (
            "a name longer than any name",
            [extended("path", &[b'a'; 300]), regular()].concat(),
            "File name too long",
        ),
        (
            "a chain of links",
            (0..100)
                .flat_map(|n| {
                    let mut link = tar::Header::new_gnu();
                    link.set_entry_type(tar::EntryType::Symlink);
                    link.set_size(0);
                    link.set_mode(0o777);
                    link.set_link_name(format!("l{}", n + 1)).unwrap();
                    link.set_path(format!("l{n}")).unwrap();
                    link.set_cksum();
                    link.as_bytes().to_vec()
                })
                .chain(header(tar::EntryType::Regular, "l0/x", 0))
                .collect(),
            "Too many levels of symbolic links",
        ),
    ];
    for (what, archive, message) in table {
        let dir = tempfile::tempdir().unwrap();
        let result = unpack_from(&dir.path().join("root"), &archive[..], &low());
        assert!(
            matches!(&result, Err(UnpackError::Archive(text) | UnpackError::Limit(text)) if text.contains(message)),
            "{what}: {result:?}"
        );
    }
}

/// Runs a test of this module in a process of its own, which measures what it takes.
fn alone(name: &str) {
    let me = std::env::current_exe().unwrap();
    let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let output = Command::new(me).args(["--exact", &name, "--ignored", "--nocapture"]).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The most memory that this process has had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn grows_little<T>(what: &str, work: impl FnOnce() -> T) -> T {
    grows_below(GROWTH_MAX, what, work)
}

fn grows_below<T>(limit: u64, what: &str, work: impl FnOnce() -> T) -> T {
    // From here on, what was taken before does not count.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let result = work();
    let grown = peak() - before;
    assert!(grown < limit, "{what}: {} MiB", grown / MIB);
    result
}

#[test]
fn no_layer_takes_much_memory() {
    alone("layers_in_little_memory");
}

#[test]
#[ignore = "run by `no_layer_takes_much_memory`, in a process of its own"]
fn layers_in_little_memory() {
    // No disk: it is the process that is measured.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = dir.path().join("root");
    let usual = UnpackLimits { min_free_bytes: 1, min_free_inodes: 1, ..UnpackLimits::default() };
    let attribute = extended("SCHILY.xattr.user.x", &vec![b'a'; 1_000_000]);
    let endless = pieces(300, |_| attribute.clone());
    let result = grows_little("attributes without end", || unpack_from(&root, endless, &usual));
    assert!(matches!(&result, Err(UnpackError::Archive(text)) if text.contains("too large")), "{result:?}");

    // It names all of its 128 MiB of window, and fills them.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).unwrap();
    encoder.include_contentsize(false).unwrap();
    io::copy(&mut pieces(200, |_| vec![0; 1 << 20]), &mut encoder).unwrap();
    let wide = encoder.finish().unwrap();
    let result = grows_little("a window of 128 MiB", || {
        io::copy(&mut decompress(&wide[..]).unwrap(), &mut io::sink())
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("requires too much memory"), "{error}");

    // As many names as fit the test's time: what is kept for each must be little.
    let many = pieces(100_000, |n| {
        let name = format!("dir/{n:0250}");
        [extended("path", name.as_bytes()), header(tar::EntryType::Directory, "x", 0)].concat()
    });
    grows_little("100,000 directories", || unpack_from(&root, many, &usual)).unwrap();
}

#[test]
fn no_removal_takes_much_memory() {
    alone("removals_in_little_memory");
}

#[test]
#[ignore = "run by `no_removal_takes_much_memory`, in a process of its own: what another test has freed would be used"]
fn removals_in_little_memory() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    for n in 0..100_000 {
        std::fs::create_dir(root.join(format!("{n:0250}"))).unwrap();
    }
    grows_below(16 * MIB, "the removal of 100,000 directories", || crate::image::fs::remove_path(&root))
        .unwrap();
    assert!(!root.exists());
}

#[test]
fn no_archive_takes_much_memory() {
    alone("archives_in_little_memory");
}

#[test]
#[ignore = "run by `no_archive_takes_much_memory`, in a process of its own"]
fn archives_in_little_memory() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let document = |repeated: &str, count: usize| {
        format!("{{\"schemaVersion\":2,\"x\":[{}0]}}", format!("{repeated},").repeat(count)).into_bytes()
    };
    let archive = |files: &[(&str, Vec<u8>)]| {
        tar_of(&files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect())
    };
    let refused = |what: &str, bytes: Vec<u8>, message: &str| {
        let path = fixture.write("bomb.tar", &bytes);
        drop(bytes);
        let result = grows_little(what, || store.import(&path, None, &mut |_| {}));
        assert!(
            matches!(&result, Err(ImageError::Limit(text)) if text.contains(message)),
            "{what}: {result:?}"
        );
        assert_eq!(fixture.names("operations"), Vec::<String>::new(), "{what}");
        assert_eq!(fixture.names("layers"), Vec::<String>::new(), "{what}");
    };
    refused("many values", archive(&[("index.json", document("{}", 2_000_000))]), "more than 100000 values");
    let history = format!(
        "{{\"architecture\":\"{}\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[]}},\"history\":[{}{{}}]}}",
        architecture(),
        "{},".repeat(2_000_000)
    );
    let one =
        |config: &str| format!(r#"[{{"Config":"{config}","RepoTags":["a:b"],"Layers":[]}}]"#).into_bytes();
    refused(
        "a configuration of many values",
        archive(&[("manifest.json", one("c")), ("c", history.into_bytes())]),
        "more than 100000 values",
    );
    let large = format!("{{\"x\":\"{}\"}}", "a".repeat(7 << 20)).into_bytes();
    let same = format!("[{}]", vec![r#"{"Config":"c"}"#; 1000].join(",")).into_bytes();
    refused(
        "one configuration a thousand times",
        archive(&[("manifest.json", same), ("c", large)]),
        "are larger than",
    );
    let layers = format!(r#"[{{"Config":"c","Layers":[{}"x"]}}]"#, r#""x","#.repeat(110_000)).into_bytes();
    refused(
        "100,000 layers",
        archive(&[("manifest.json", layers), ("c", config(&[]))]),
        "more than 100000 values",
    );
    refused(
        "more layers than a machine stacks",
        {
            let layers = vec![Vec::new(); 201];
            let paths = vec![r#""l""#; 201].join(",");
            let manifest =
                format!(r#"[{{"Config":"c","RepoTags":["a:b"],"Layers":[{paths}]}}]"#).into_bytes();
            archive(&[("manifest.json", manifest), ("c", config(&layers)), ("l", Vec::new())])
        },
        "more than 200 layers",
    );
    let one_name = |n: u64| {
        let name = format!("{n:05}/{}", "n/".repeat(2000));
        [extended("path", name.as_bytes()), header(tar::EntryType::Regular, "x", 0)].concat()
    };
    let mut names = Vec::new();
    pieces(5000, one_name).read_to_end(&mut names).unwrap();
    refused("names", names, "the names in");
    // Packed once more: 200 MiB of names in a few kilobytes.
    let name =
        gzip(&[extended("path", &vec![b'n'; 1_000_000]), header(tar::EntryType::Regular, "x", 0)].concat());
    refused("long names", name.repeat(200), "the names in");
}

/// What is refused leaves nothing, and what comes at the same time comes in.
#[test]
fn a_bomb_hurts_nobody_else() {
    let fixture = Fixture::new();
    let mut config = fixture.config();
    config.limits = UnpackLimits { max_layer_bytes: 8 * MIB, ..config.limits };
    let store = ImageStore::open(config, Clock::system()).unwrap();
    let bomb = layer(&[Item::File("zeros", vec![0; 16 << 20], 0o644)]);
    let bomb = fixture.write("bomb.tar", &docker_archive(&["bomb:1"], &[bomb]));
    let honest = layer(&[Item::File("file", b"x".to_vec(), 0o644)]);
    let honest = fixture.write("honest.tar", &docker_archive(&["honest:1"], &[honest]));
    std::thread::scope(|scope| {
        let bombs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| store.import(&bomb, None, &mut |_| {}).unwrap_err())).collect();
        import(&store, &honest);
        for bomb in bombs {
            let error = bomb.join().unwrap();
            assert!(error.to_string().contains("the layer unpacks to more than"), "{error}");
        }
    });
    assert_eq!(fixture.names("operations"), Vec::<String>::new());
    assert_eq!(fixture.names("layers").len(), 1, "the honest one's");
    assert_eq!(fixture.names("blobs/sha256").len(), 1);
}

/// A layer is what its descriptor says, to the byte.
#[test]
fn a_layer_larger_than_it_says_is_refused() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let honest = oci_layout("a:b", &[layer(&[Item::File("f", vec![7; 5000], 0o644)])], gzip);
    let index: serde_json::Value = serde_json::from_slice(&honest["index.json"]).unwrap();
    let manifest_name = index["manifests"][1]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
    for (size, message) in
        [("1", "expected 1, got"), ("-1", "invalid value"), ("99999999999", "expected 99999999999")]
    {
        let mut layout = honest.clone();
        let mut manifest: serde_json::Value = serde_json::from_slice(&layout[&manifest_name]).unwrap();
        manifest["layers"][0]["size"] = size.parse::<i64>().unwrap().into();
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::of(&bytes);
        let mut index = index.clone();
        index["manifests"][1]["digest"] = digest.to_string().into();
        index["manifests"][1]["size"] = bytes.len().into();
        layout.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        layout.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
        let path = fixture.write("liar.tar", &tar_of(&layout));
        let error = store.import(&path, None, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(message), "{size}: {error}");
        assert_eq!(fixture.names("operations"), Vec::<String>::new());
        assert_eq!(fixture.names("layers"), Vec::<String>::new());
    }
}

/// An index that leads to itself would need a digest of itself; what can be made is one that is very deep.
#[test]
fn indexes_in_indexes_end() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let mut layout = oci_layout("a:b", &[], gzip);
    let mut inner: serde_json::Value = serde_json::from_slice(&layout["index.json"]).unwrap();
    for _ in 0..5 {
        inner["manifests"].as_array_mut().unwrap().retain(|entry| entry["size"] != 3);
        let bytes = serde_json::to_vec(&inner).unwrap();
        let digest = Digest::of(&bytes);
        inner = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest.to_string(), "size": bytes.len(),
        }]});
        layout.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
    }
    layout.insert("index.json".into(), serde_json::to_vec(&inner).unwrap());
    let path = fixture.write("deep.tar", &tar_of(&layout));
    let error = store.import(&path, None, &mut |_| {}).unwrap_err().to_string();
    assert_eq!(error, "image indexes are nested too deep");
}
