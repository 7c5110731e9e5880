//! The end of volumes: unmounted, then removed, with nothing of the machine touched on the way.
//!
//! A Pod has written what is removed here. Links are removed and not followed, a mount that is still there is never
//! walked into, and directories in directories without end neither use up the stack nor descriptors.

use std::io;
use std::path::Path;

use super::kernel::VolumeHost;
use super::{NOTES, SUB_PATHS, VOLUMES};

/// Removes everything of a Pod's volumes. `directory` is the Pod's. What is not there is no failure.
pub(crate) fn remove_volumes(directory: &Path, host: &VolumeHost) -> io::Result<()> {
    // What containers had of volumes goes before the volumes.
    for name in [SUB_PATHS, VOLUMES, NOTES] {
        let part = directory.join(name);
        if part.symlink_metadata().is_ok() {
            host.unmount_below(&part)?;
            coracle_tree::remove(&part)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt as _;

    use rustix::fs::{FileType, Mode};

    use super::*;

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (outside, volume) = (root.path().join("outside"), root.path().join("pod/volumes/kind/v"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        fs::create_dir_all(&volume).unwrap();
        symlink(&outside, volume.join("directory")).unwrap();
        symlink(outside.join("kept"), volume.join("file")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        let pipe = CString::new(volume.join("pipe").as_os_str().as_bytes()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_bits_retain(0o600), 0)
            .unwrap();
        remove_volumes(&root.path().join("pod"), &VolumeHost::Below(root.path().into())).unwrap();
        assert!(!root.path().join("pod/volumes").exists());
        assert!(outside.join("kept").exists());
        remove_volumes(&root.path().join("pod"), &VolumeHost::Below(root.path().into())).unwrap();
    }
}
