//! Volumes of type hostPath: what has to be at a path of the machine.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Makes what the type says has to be made, and checks what it says has to be there. `shown` is the path as the spec
/// has it, `path` where that is.
///
/// # Errors
/// In upstream's words.
pub(super) fn check(kind: &str, shown: &str, path: &Path) -> Result<(), String> {
    let found = fs::metadata(path).ok();
    let failed = |why: io::Error| why.to_string();
    let is = |holds: fn(&fs::FileType) -> bool, what: &str| {
        if found.as_ref().is_some_and(|found| holds(&found.file_type())) {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {shown} is not a {what}"))
        }
    };
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)
        }
        "DirectoryOrCreate" | "Directory" => is(fs::FileType::is_dir, "directory"),
        "FileOrCreate" if found.is_none() => {
            let made = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
            made.map(|_| ()).map_err(failed)
        }
        "FileOrCreate" | "File" => is(fs::FileType::is_file, "file"),
        "Socket" => is(fs::FileType::is_socket, "socket file"),
        "CharDevice" => is(fs::FileType::is_char_device, "character device"),
        "BlockDevice" => is(fs::FileType::is_block_device, "block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_says_what_has_to_be_there() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let looked = |kind: &str, name: &str| {
            let path = if name == "null" { "/dev/null".into() } else { at(name) };
            check(kind, &format!("/{name}"), &path)
        };
        let refused =
            |name: &str, what: &str| Err(format!("hostPath type check failed: /{name} is not a {what}"));
        for (kind, right, what) in [
            ("Directory", "directory", "directory"),
            ("File", "file", "file"),
            ("Socket", "socket", "socket file"),
            ("CharDevice", "null", "character device"),
            ("DirectoryOrCreate", "directory", "directory"),
            ("FileOrCreate", "file", "file"),
        ] {
            assert_eq!(looked(kind, right), Ok(()), "{kind}");
            for wrong in ["directory", "file", "socket", "null"].into_iter().filter(|name| *name != right) {
                assert_eq!(looked(kind, wrong), refused(wrong, what), "{kind}");
            }
            if !kind.ends_with("OrCreate") {
                assert_eq!(looked(kind, "nothing"), refused("nothing", what), "{kind}");
            }
        }
        assert_eq!(looked("BlockDevice", "file"), refused("file", "block device"));
        assert_eq!(looked("", "nothing"), Ok(()), "nobody looks");
        assert!(!at("nothing").exists());
        assert_eq!(looked("DirectoryOrCreate", "made/deep"), Ok(()));
        assert!(at("made/deep").is_dir());
        assert_eq!(looked("FileOrCreate", "made/file"), Ok(()));
        assert!(at("made/file").is_file());
        assert!(looked("FileOrCreate", "missing/file").is_err(), "its directory is not made");
        assert_eq!(looked("Anything", "file"), Err("Anything is an invalid volume type".to_owned()));
    }
}
