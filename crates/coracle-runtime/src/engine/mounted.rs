//! What is mounted on this machine for containers, as the kernel tells it.

use std::path::PathBuf;

use super::rootfs;

/// Whom a root file system is for: its name is the container's, or begins with it where it is a volume's.
pub(super) fn owner_of(rootfs: &str) -> &str {
    rootfs.split('-').next().unwrap_or(rootfs)
}

/// Unmounts what is mounted for a container: wherever the image store put it, its directory is named after it.
pub(super) fn unmount_roots_of(id: &str) -> std::io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for point in mount_points(&mounts).into_iter().rev() {
        if point.components().any(|c| c.as_os_str().to_str().is_some_and(|name| owner_of(name) == id)) {
            rootfs::unmount_all(&point)?;
        }
    }
    Ok(())
}

/// Mount points in the order in which they were mounted.
pub(super) fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|text| PathBuf::from(unescape(text)))
        .collect()
}

/// The kernel writes blanks and backslashes of paths as octal numbers.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            let code = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
            out.push(code.unwrap_or(b'\\'));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(mount_points("1 0 0:1 / /a\\040b rw - tmpfs x rw"), [PathBuf::from("/a b")]);
    }
}
