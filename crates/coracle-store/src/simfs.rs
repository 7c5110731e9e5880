//! Files in memory on a disk that can be made to fail: the file layer of simulations and crash tests.
//!
//! Every change (create, write, set length, sync, rename, remove, directory sync) is one *step* and has a number.
//! [`SimFs::power_off_at`] switches the machine off in the middle of a step; from then on everything fails until
//! [`SimFs::restart`] decides, by a [`PowerCut`] and the seed, what the disk still has.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_clock::Rng;

use crate::files::{Directory, File};

const SECTOR: usize = 512;

/// What a power cut leaves of what was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerCut {
    /// Nothing.
    DropUnflushed,
    /// All of it but the last write of each file, of which an arbitrary prefix stays.
    TearLastWrite,
    /// Any sectors of any writes.
    TearSectors,
    /// All of it, by luck.
    KeepAll,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimFs(Arc<Mutex<Machine>>);

struct Machine {
    rng: Rng,
    nodes: Vec<Node>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    steps: u64,
    off_at: Option<u64>,
    on: bool,
    /// Which run of the machine: handles of an earlier run are dead.
    run: u64,
    locked: bool,
    fail_sync_in: Option<u64>,
    capacity: Option<u64>,
    can_reserve: bool,
    can_open: bool,
}

#[derive(Default)]
struct Node {
    /// What a reader sees.
    current: Arc<Vec<u8>>,
    /// What is on the platter. Files that nobody has open and that are whole on the platter have one copy.
    durable: Arc<Vec<u8>>,
    pending: Vec<Change>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

enum NameChange {
    Set(String, usize),
    Remove(String),
    Rename(String, String),
}

impl SimFs {
    /// An empty disk; `rng` decides what is left when something goes wrong.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        SimFs(Arc::new(Mutex::new(Machine {
            rng,
            nodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            steps: 0,
            off_at: None,
            on: true,
            run: 0,
            locked: false,
            fail_sync_in: None,
            capacity: None,
            can_reserve: true,
            can_open: true,
        })))
    }

    /// How many steps have been taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.machine().steps
    }

    /// Switches the machine off in the middle of the step with this number (the first is 1).
    pub fn power_off_at(&self, step: u64) {
        self.machine().off_at = Some(step);
    }

    /// Whether the power is still on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.machine().on
    }

    /// Cuts the power, if it has not been cut, and starts again with what `cut` leaves. Open files and locks of the
    /// run before are dead.
    pub fn restart(&self, cut: PowerCut) {
        let mut machine = self.machine();
        let Machine { rng, nodes, names, durable_names, pending_names, .. } = &mut *machine;
        let kept = match cut {
            PowerCut::DropUnflushed => 0,
            PowerCut::KeepAll => pending_names.len(),
            // A journal keeps changes of names in order.
            PowerCut::TearLastWrite | PowerCut::TearSectors => below(rng, pending_names.len() + 1),
        };
        for change in pending_names.drain(..).take(kept) {
            change.apply(durable_names);
        }
        *names = durable_names.clone();
        for node in nodes.iter_mut() {
            node.cut(cut, rng);
        }
        machine.on = true;
        machine.off_at = None;
        machine.fail_sync_in = None;
        machine.locked = false;
        machine.run += 1;
    }

    /// Makes the `nth` flush from now fail (1 is the next): what it covered stays readable and never gets durable.
    pub fn fail_sync(&self, nth: u64) {
        self.machine().fail_sync_in = Some(nth);
    }

    /// Limits the sum of the lengths of all files; a write beyond it is done in part and fails.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.machine().capacity = bytes;
    }

    /// Takes back every failure that has not happened yet.
    pub fn make_good(&self) {
        let mut machine = self.machine();
        (machine.off_at, machine.fail_sync_in, machine.capacity) = (None, None, None);
    }

    /// Whether space can be reserved, as most file systems can.
    pub fn set_can_reserve(&self, can: bool) {
        self.machine().can_reserve = can;
    }

    /// Whether there are descriptors for files to be made or opened.
    pub fn set_can_open(&self, can: bool) {
        self.machine().can_open = can;
    }

    /// The sum of the lengths of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.machine().used()
    }

    /// The content of a file, as a reader sees it.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let machine = self.machine();
        machine.names.get(name).map(|&node| machine.nodes[node].current.to_vec())
    }

    /// Flips one bit of a file, on the platter and for readers.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let mut machine = self.machine();
        let Some(&node) = machine.names.get(name) else { return };
        let node = &mut machine.nodes[node];
        for bytes in [&mut node.current, &mut node.durable] {
            if let Some(byte) = Arc::make_mut(bytes).get_mut(offset) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// A disk of its own with the same content, all of it durable.
    #[must_use]
    pub fn copy(&self, rng: Rng) -> SimFs {
        let copy = SimFs::new(rng);
        {
            let (from, mut to) = (self.machine(), copy.machine());
            for (name, &node) in &from.names {
                let index = to.nodes.len();
                let bytes = &from.nodes[node].current;
                let (current, durable) = (Arc::clone(bytes), Arc::clone(bytes));
                to.nodes.push(Node { current, durable, pending: Vec::new() });
                to.names.insert(name.clone(), index);
                to.durable_names.insert(name.clone(), index);
            }
        }
        copy
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // A test that panics with the lock held fails anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SimFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimFs").field("steps", &self.steps()).finish_non_exhaustive()
    }
}

/// How far a step gets.
#[derive(Clone, Copy)]
enum Step {
    Done,
    /// The power goes off while it is under way.
    Interrupted,
}

impl Machine {
    fn check(&self, run: u64) -> io::Result<()> {
        if self.on && self.run == run { Ok(()) } else { Err(power_is_off()) }
    }

    fn check_descriptors(&self) -> io::Result<()> {
        if self.can_open { Ok(()) } else { Err(rustix::io::Errno::MFILE.into()) }
    }

    fn step(&mut self, run: u64) -> io::Result<Step> {
        self.check(run)?;
        self.steps += 1;
        if self.off_at.is_some_and(|at| self.steps >= at) {
            self.on = false;
            return Ok(Step::Interrupted);
        }
        Ok(Step::Done)
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&node| self.nodes[node].current.len() as u64).sum()
    }

    /// How many of `wanted` more bytes there is room for.
    fn room(&self, wanted: usize) -> usize {
        match self.capacity {
            None => wanted,
            Some(capacity) => {
                wanted.min(usize::try_from(capacity.saturating_sub(self.used())).unwrap_or(usize::MAX))
            }
        }
    }

    fn sync_fails(&mut self) -> bool {
        match self.fail_sync_in.as_mut() {
            Some(n) if *n > 1 => {
                *n -= 1;
                false
            }
            Some(_) => {
                self.fail_sync_in = None;
                true
            }
            None => false,
        }
    }

    /// Frees what no name leads to any more.
    fn forget_removed(&mut self) {
        let named: BTreeSet<usize> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        for (i, node) in self.nodes.iter_mut().enumerate() {
            if !named.contains(&i) {
                *node = Node::default();
            }
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Set(name, node) => {
                names.insert(name.clone(), *node);
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
            NameChange::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl Node {
    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.current));
        self.pending.push(change);
    }

    fn flush(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(Arc::make_mut(&mut self.durable));
        }
    }

    /// Nobody writes it for now.
    fn rest(&mut self) {
        if self.pending.is_empty()
            && !Arc::ptr_eq(&self.current, &self.durable)
            && self.current == self.durable
        {
            self.durable = Arc::clone(&self.current);
        }
    }

    fn cut(&mut self, cut: PowerCut, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        let durable = Arc::make_mut(&mut self.durable);
        let last = pending.len().saturating_sub(1);
        for (i, change) in pending.into_iter().enumerate() {
            match (cut, &change) {
                (PowerCut::DropUnflushed, _) => {}
                (PowerCut::KeepAll, _) => change.apply(durable),
                (PowerCut::TearLastWrite, Change::Write { offset, bytes }) if i == last => {
                    let kept = below(rng, bytes.len() + 1);
                    Change::write(*offset, &bytes[..kept]).apply(durable);
                }
                (PowerCut::TearLastWrite, _) => change.apply(durable),
                (PowerCut::TearSectors, Change::Length(_)) => {
                    if below(rng, 2) == 0 {
                        change.apply(durable);
                    }
                }
                (PowerCut::TearSectors, Change::Write { offset, bytes }) => {
                    let mut start = 0;
                    while start < bytes.len() {
                        let end = bytes.len().min(start + SECTOR - (offset + start) % SECTOR);
                        if below(rng, 2) == 0 {
                            Change::write(offset + start, &bytes[start..end]).apply(durable);
                        }
                        start = end;
                    }
                }
            }
        }
        self.current = Arc::clone(&self.durable);
    }
}

impl Change {
    fn write(offset: usize, bytes: &[u8]) -> Self {
        Change::Write { offset, bytes: bytes.to_vec() }
    }

    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                if content.len() < offset + bytes.len() {
                    content.resize(offset + bytes.len(), 0);
                }
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(length) => content.resize(*length, 0),
        }
    }
}

fn below(rng: &mut Rng, bound: usize) -> usize {
    usize::try_from(rng.below(bound as u64)).unwrap_or(0)
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

impl Directory for SimFs {
    fn lock(&self) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut machine = self.machine();
        let run = machine.run;
        machine.check(run)?;
        if machine.locked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        machine.locked = true;
        drop(machine);
        Ok(Box::new(SimLock { disk: self.clone(), run }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let machine = self.machine();
        machine.check(machine.run)?;
        Ok(machine.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let machine = self.machine();
        machine.check(machine.run)?;
        machine.check_descriptors()?;
        let node = *machine.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), node, run: machine.run }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut machine = self.machine();
        let run = machine.run;
        machine.check_descriptors()?;
        let step = machine.step(run)?;
        let node = machine.nodes.len();
        machine.nodes.push(Node::default());
        machine.change_names(NameChange::Set(name.to_owned(), node));
        finish(step)?;
        Ok(Box::new(SimFile { disk: self.clone(), node, run }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.machine();
        let run = machine.run;
        let step = machine.step(run)?;
        if !machine.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        finish(step)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.machine();
        let run = machine.run;
        let step = machine.step(run)?;
        if !machine.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.change_names(NameChange::Remove(name.to_owned()));
        finish(step)
    }

    fn sync(&self) -> io::Result<()> {
        let mut machine = self.machine();
        let run = machine.run;
        finish(machine.step(run)?)?;
        if machine.sync_fails() {
            return Err(io::Error::other("simulated failure to flush a directory"));
        }
        let Machine { durable_names, pending_names, .. } = &mut *machine;
        for change in pending_names.drain(..) {
            change.apply(durable_names);
        }
        machine.forget_removed();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("sim:{name}")
    }
}

fn finish(step: Step) -> io::Result<()> {
    match step {
        Step::Done => Ok(()),
        Step::Interrupted => Err(power_is_off()),
    }
}

struct SimLock {
    disk: SimFs,
    run: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = self.disk.machine();
        if machine.run == self.run {
            machine.locked = false;
        }
    }
}

struct SimFile {
    disk: SimFs,
    node: usize,
    run: u64,
}

impl SimFile {
    fn set_len_step(&self, length: u64, reserve: bool) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut machine = self.disk.machine();
        if reserve && !machine.can_reserve {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let step = machine.step(self.run)?;
        let more = length.saturating_sub(machine.nodes[self.node].current.len());
        if machine.room(more) < more {
            return Err(io::ErrorKind::StorageFull.into());
        }
        machine.nodes[self.node].change(Change::Length(length));
        finish(step)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.machine().nodes[self.node].rest();
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let machine = self.disk.machine();
        machine.check(self.run)?;
        let content = &machine.nodes[self.node].current;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let count = buffer.len().min(content.len() - start);
        buffer[..count].copy_from_slice(&content[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut machine = self.disk.machine();
        let step = machine.step(self.run)?;
        let length = machine.nodes[self.node].current.len();
        let more = (offset + bytes.len()).saturating_sub(length);
        let missing = more - machine.room(more);
        if missing > 0 {
            let written = bytes.len().saturating_sub(missing);
            machine.nodes[self.node].change(Change::write(offset, &bytes[..written]));
            return Err(io::ErrorKind::StorageFull.into());
        }
        machine.nodes[self.node].change(Change::write(offset, bytes));
        finish(step)
    }

    fn sync(&self) -> io::Result<()> {
        let mut machine = self.disk.machine();
        finish(machine.step(self.run)?)?;
        if machine.sync_fails() {
            // As Linux does: the pages are marked clean, readers see them, the platter does not have them.
            machine.nodes[self.node].pending.clear();
            return Err(io::Error::other("simulated failure to flush a file"));
        }
        machine.nodes[self.node].flush();
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.set_len_step(length, false)
    }

    fn reserve(&self, length: u64) -> io::Result<()> {
        self.set_len_step(length, true)
    }

    fn len(&self) -> io::Result<u64> {
        let machine = self.disk.machine();
        machine.check(self.run)?;
        Ok(machine.nodes[self.node].current.len() as u64)
    }
}
