//! The device nodes of the machine.

use std::path::Path;

use super::spec::Device;

/// The device nodes of the host, for a privileged container.
pub(super) fn host_devices(dir: &Path) -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut devices = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return devices };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() {
            // These are mounts of the container's own.
            if !["pts", "shm", "fd", "mqueue"].iter().any(|own| path.ends_with(own)) {
                devices.extend(host_devices(&path));
            }
        } else if (kind.is_block_device() || kind.is_char_device()) && !path.ends_with("console") {
            let Ok(stat) = entry.metadata() else { continue };
            devices.push(Device {
                path,
                block: kind.is_block_device(),
                major: rustix::fs::major(stat.rdev()),
                minor: rustix::fs::minor(stat.rdev()),
                mode: stat.mode() & 0o7777,
                uid: stat.uid(),
                gid: stat.gid(),
            });
        }
    }
    devices.sort_by(|a, b| a.path.cmp(&b.path));
    devices
}
