//! Files with variables (`fileKeyRef`): lines of `NAME='value'`, as a shell would read them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// The most that is read of a file.
const BYTES_MAX: u64 = 1 << 20;

/// The text of a file in a volume. Links are followed within the volume only.
///
/// # Errors
/// It is not there, is no small regular file, or is not text.
pub(crate) fn read(volume: &Path, path: &str) -> io::Result<String> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not blocking, so that a pipe in its place does not hold us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > BYTES_MAX {
        return Err(io::Error::other("not a small regular file"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a variable; empty if the file does not set it. What comes after it is not looked at.
///
/// # Errors
/// A line that says something else, with its number.
pub(crate) fn value(text: &str, wanted: &str) -> Result<String, String> {
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let wrong = |why: &str| format!("invalid environment variable format at line {number}: {why}");
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, after) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return Err(wrong("empty variable name"));
        }
        if name.ends_with([' ', '\t']) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        if after.starts_with([' ', '\t']) {
            // To a shell this sets the variable to nothing.
            if name == wanted {
                return Ok(String::new());
            }
            continue;
        }
        let Some(mut rest) = after.strip_prefix('\'') else {
            return Err(wrong("value must be enclosed in single quotes"));
        };
        let mut value = String::new();
        let behind = loop {
            if let Some((end, behind)) = rest.split_once('\'') {
                value.push_str(end);
                break behind;
            }
            value.push_str(rest);
            value.push('\n');
            let unclosed = || {
                format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                )
            };
            rest = lines.next().ok_or_else(unclosed)?.0;
        };
        let behind = behind.trim_start_matches([' ', '\t']);
        if !behind.is_empty() && !behind.starts_with('#') {
            return Err(wrong("unexpected content after closing quote"));
        }
        if name == wanted {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn values_are_between_single_quotes() {
        let text = "# comment\n\n  A='one'\nB='two words' # why\nC='first\nsecond # no comment\nthird'\nD= 'x'\nE=''\n";
        for (name, expected) in [
            ("A", "one"),
            ("B", "two words"),
            ("C", "first\nsecond # no comment\nthird"),
            ("D", ""),
            ("E", ""),
            ("F", ""),
        ] {
            assert_eq!(value(text, name).as_deref(), Ok(expected), "{name}");
        }
        for (text, why) in [
            ("A", "at line 1: missing '='"),
            ("\n='x'", "at line 2: empty variable name"),
            ("A ='x'", "at line 1: whitespace before '=' is not allowed"),
            ("A=x", "at line 1: value must be enclosed in single quotes"),
            ("A='x' y", "at line 1: unexpected content after closing quote"),
            ("B='x'\nA='x\n", "starting at line 2: unclosed single quote"),
        ] {
            let said = value(text, "A").unwrap_err();
            assert_eq!(said, format!("invalid environment variable format {why}"), "{text:?}");
        }
        assert_eq!(value("A='x'\nbroken", "A").as_deref(), Ok("x"), "what comes after is not looked at");
    }

    #[test]
    fn only_small_regular_files_of_the_volume_are_read() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        std::fs::create_dir_all(volume.join("d")).unwrap();
        std::fs::write(root.path().join("outside"), "A='secret'").unwrap();
        std::fs::write(volume.join("d/env"), "A='x'").unwrap();
        std::fs::write(volume.join("binary"), [0xff, 0xfe]).unwrap();
        File::create(volume.join("huge")).unwrap().set_len(1 << 40).unwrap();
        symlink("d/env", volume.join("link")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        symlink(root.path().join("outside"), volume.join("absolute")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            volume.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_bits_retain(0o600),
            0,
        )
        .unwrap();
        assert_eq!(read(&volume, "d/env").unwrap(), "A='x'");
        assert_eq!(read(&volume, "link").unwrap(), "A='x'");
        for path in ["up", "absolute", "pipe", "d", "huge", "binary", "nothing", "../outside"] {
            assert!(read(&volume, path).is_err(), "{path}");
        }
    }
}
