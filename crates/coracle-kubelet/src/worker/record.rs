//! The record that the node agent keeps of a Pod on disk: the Pod as it was started, and what its worker has to remember.
//!
//! With it a Pod whose object has vanished while no agent ran is ended as its spec says, and a decision outlives the agent
//! that took it. It need not outlive the machine: nothing of the Pod runs any more then.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::disk::make_directory;
use crate::pod::memo::Memo;

/// Its name in the Pod's directory.
const NAME: &str = "record.json";

/// What is known of a Pod by its record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The object, as of the generation that was acted on last.
    pub(crate) pod: Pod,
    pub(crate) memo: Memo,
}

/// Writes a record; a reader finds the old one or the new one.
pub(crate) fn write(directory: &Path, record: &[u8]) -> io::Result<()> {
    let new = directory.join("record.new");
    let open = || {
        // Variables may be secrets.
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)
    };
    let mut file = match open() {
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            make_directory(directory)?;
            open()?
        }
        other => other?,
    };
    file.write_all(record)?;
    drop(file);
    fs::rename(&new, directory.join(NAME))
}

/// The record of the Pod with this directory, if there is one that can be read.
pub(crate) fn read(directory: &Path) -> Option<Record> {
    let path: PathBuf = directory.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return None,
        Err(why) => {
            warn!(path = %path.display(), error = %why, "cannot read the record of a pod");
            return None;
        }
    };
    let record = serde_json::from_slice(&text);
    record
        .inspect_err(|why| warn!(path = %path.display(), error = %why, "the record of a pod is damaged"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_as_a_whole_and_a_damaged_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let pod = directory.path().join("uid");
        assert_eq!(read(&pod), None);
        let mut record = Record { pod: Pod::default(), memo: Memo::default() };
        for name in ["a", "b"] {
            record.pod.metadata.name = Some(name.to_owned());
            write(&pod, &serde_json::to_vec(&record).unwrap()).unwrap();
            assert_eq!(read(&pod).as_ref(), Some(&record));
        }
        assert_eq!(fs::read_dir(&pod).unwrap().count(), 1);
        fs::write(pod.join(NAME), "{").unwrap();
        assert_eq!(read(&pod), None);
    }
}
