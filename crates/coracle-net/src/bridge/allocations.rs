//! Who has which address: one small file for each sandbox, so that a crash loses and doubles nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use coracle_cri::{PodSandboxId, PortMapping};
use serde::{Deserialize, Serialize};

use super::error::NetError;
use super::range::PodRange;

/// What one sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    /// Its address.
    pub(crate) ip: IpAddr,
    /// Ports of the host that lead to it.
    pub(crate) ports: Vec<PortMapping>,
    /// Namespace and name of the Pod, for people.
    pub(crate) pod: String,
}

/// All allocations, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Allocations {
    dir: PathBuf,
    by_sandbox: BTreeMap<PodSandboxId, Allocation>,
    used: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
}

impl Allocations {
    /// No allocations; the directory is not touched.
    pub(crate) fn empty(state_dir: &Path) -> Self {
        let dir = state_dir.join("addresses");
        Allocations { dir, by_sandbox: BTreeMap::new(), used: BTreeSet::new(), last: None }
    }

    pub(crate) fn open(state_dir: &Path) -> Result<Self, NetError> {
        let mut this = Allocations::empty(state_dir);
        std::fs::create_dir_all(&this.dir).map_err(NetError::file("cannot make directory", &this.dir))?;
        let entries = std::fs::read_dir(&this.dir).map_err(NetError::file("cannot read", &this.dir))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let allocation = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let name = entry.file_name().into_string().ok();
            match name.filter(|name| !name.contains('.')).zip(allocation) {
                Some((sandbox, allocation)) => this.remember(PodSandboxId(sandbox), allocation),
                // Half written when the machine went down: then the sandbox is gone as well.
                None => {
                    tracing::warn!(path = %path.display(), "removing an unreadable address record");
                    std::fs::remove_file(&path).map_err(NetError::file("cannot remove", &path))?;
                }
            }
        }
        Ok(this)
    }

    fn remember(&mut self, sandbox: PodSandboxId, allocation: Allocation) {
        self.used.insert(allocation.ip);
        self.last = self.last.max(Some(allocation.ip));
        self.by_sandbox.insert(sandbox, allocation);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PodSandboxId, &Allocation)> {
        self.by_sandbox.iter()
    }

    /// The allocation of a sandbox, made if it has none. The ports are those of the first call.
    pub(crate) fn allocate(
        &mut self,
        sandbox: &PodSandboxId,
        range: &PodRange,
        ports: &[PortMapping],
        pod: String,
    ) -> Result<Allocation, NetError> {
        if let Some(allocation) = self.by_sandbox.get(sandbox) {
            return Ok(allocation.clone());
        }
        let ip =
            range.next_free(self.last, &self.used).ok_or_else(|| NetError::Exhausted(range.to_string()))?;
        let allocation = Allocation { ip, ports: ports.to_vec(), pod };
        let path = self.path(sandbox);
        let scratch = path.with_extension("new");
        let json = serde_json::to_vec(&allocation).unwrap_or_default();
        // Not flushed: after a power cut no sandbox is left that could use the address.
        std::fs::write(&scratch, json).map_err(NetError::file("cannot write", &scratch))?;
        std::fs::rename(&scratch, &path).map_err(NetError::file("cannot rename to", &path))?;
        self.remember(sandbox.clone(), allocation.clone());
        self.last = Some(ip);
        Ok(allocation)
    }

    pub(crate) fn get(&self, sandbox: &PodSandboxId) -> Option<&Allocation> {
        self.by_sandbox.get(sandbox)
    }

    /// Lets no port of the host lead to the sandbox any more; its address is still its own.
    pub(crate) fn close_ports(&mut self, sandbox: &PodSandboxId) {
        if let Some(allocation) = self.by_sandbox.get_mut(sandbox) {
            allocation.ports.clear();
        }
    }

    /// Gives a sandbox's address back.
    pub(crate) fn release(&mut self, sandbox: &PodSandboxId) -> Result<(), NetError> {
        let Some(allocation) = self.by_sandbox.get(sandbox) else { return Ok(()) };
        let path = self.path(sandbox);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetError::file("cannot remove", &path)(error));
            }
            _ => {}
        }
        self.used.remove(&allocation.ip);
        self.by_sandbox.remove(sandbox);
        Ok(())
    }

    fn path(&self, sandbox: &PodSandboxId) -> PathBuf {
        self.dir.join(&sandbox.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_crash_and_come_back_only_when_released() {
        let dir = tempfile::tempdir().unwrap();
        let range = PodRange::parse("10.0.0.0/29").unwrap();
        let id = |n: u8| PodSandboxId(format!("{n:064x}"));
        let mut state = Allocations::open(dir.path()).unwrap();
        let give =
            |state: &mut Allocations, n| state.allocate(&id(n), &range, &[], "ns/pod".into()).map(|a| a.ip);
        let first = give(&mut state, 1).unwrap();
        assert_eq!(give(&mut state, 1).unwrap(), first, "asked again");
        for n in 2..=5 {
            give(&mut state, n).unwrap();
        }
        assert!(matches!(give(&mut state, 6), Err(NetError::Exhausted(_))));

        std::fs::write(dir.path().join("addresses").join(id(9).0), "{").unwrap();
        std::fs::write(dir.path().join("addresses").join("x.new"), "{").unwrap();
        let mut state = Allocations::open(dir.path()).unwrap();
        assert_eq!(state.iter().count(), 5);
        assert_eq!(give(&mut state, 1).unwrap(), first);
        state.release(&id(1)).unwrap();
        state.release(&id(1)).unwrap();
        assert_eq!(give(&mut state, 6).unwrap(), first);
    }
}
