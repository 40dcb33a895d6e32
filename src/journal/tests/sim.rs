//! A disk in memory that forgets what was not synced: pages, lengths and names each on their own, torn by sector.
//!
//! What a process sees is one thing, what would survive a power cut another; `crash` draws what becomes of the rest.
//! Faults are set from outside: a budget of bytes, read-only, and an error at the n-th call of a kind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::disk::{Disk, DiskFile};
use super::platter::{Inode, PAGE};

/// A call that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Call {
    Write,
    Sync,
    SyncDir,
    Create,
    Rename,
    Remove,
    Replace,
    SetLen,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 8] =
        [Call::Write, Call::Sync, Call::SyncDir, Call::Create, Call::Rename, Call::Remove, Call::Replace, Call::SetLen];
}

/// A change of a directory that is not synced yet.
#[derive(Clone)]
enum Change {
    Link(String, u64),
    Unlink(String),
    Rename { from: String, to: String, inode: u64 },
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Change::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Change::Unlink(name) => {
                names.remove(name);
            }
            Change::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Dir {
    seen: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    changes: Vec<Change>,
    /// Whether its own name is synced in its parent.
    is_durable: bool,
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.changes.push(change);
    }
}

struct State {
    rng: StdRng,
    dirs: BTreeMap<PathBuf, Dir>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    capacity: u64,
    read_only: bool,
    /// Calls until one fails, and whether with "no room" instead of "device failed".
    faults: BTreeMap<Call, (u32, bool)>,
    is_faulty: bool,
    calls: u64,
}

impl State {
    fn change(&mut self, call: Call) -> io::Result<()> {
        self.calls += 1;
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match self.faults.get_mut(&call) {
            Some((0, no_room)) => {
                let no_room = *no_room;
                self.faults.remove(&call);
                Err(if no_room { io::ErrorKind::StorageFull.into() } else { io::Error::other("input/output error") })
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode_of(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = split(path);
        let found = self.dirs.get(dir).and_then(|dir| dir.seen.get(&name)).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<_> = self.dirs.values().flat_map(|dir| dir.seen.values()).collect();
        named.iter().map(|inode| self.inodes[inode].seen.bytes as u64).sum()
    }

    fn allocate(&mut self, inode: u64, bytes: u64) -> io::Result<()> {
        let has = self.inodes[&inode].seen.bytes as u64;
        if bytes > has && self.used() + (bytes - has) > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn new_file(&mut self, path: &Path) -> io::Result<u64> {
        let (dir, name) = split(path);
        if let Some(inode) = self.dir(dir)?.seen.get(&name).copied() {
            // Opened with truncation: the same file, emptied.
            let file = self.inodes.get_mut(&inode).unwrap();
            file.seen.cut(0);
            file.dirty.clear();
            return Ok(inode);
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.dir(dir)?.change(Change::Link(name, inode));
        Ok(inode)
    }
}

fn split(path: &Path) -> (&Path, String) {
    (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap().to_owned())
}

/// See the module. Clones are the same disk; `copy` makes another.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty, faultless disk with a durable directory `dir`.
    pub fn new(seed: u64, dir: &Path) -> SimDisk {
        let mut dirs = BTreeMap::new();
        for level in dir.ancestors() {
            dirs.insert(level.to_path_buf(), Dir { is_durable: true, ..Dir::default() });
        }
        SimDisk(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            dirs,
            inodes: BTreeMap::new(),
            next_inode: 1,
            capacity: u64::MAX,
            read_only: false,
            faults: BTreeMap::new(),
            is_faulty: false,
            calls: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Another disk with the same content, as a backup or a clone is. It has no faults.
    pub fn copy(&self, seed: u64) -> SimDisk {
        let copy = SimDisk::new(seed, Path::new("/"));
        {
            let (own, mut state) = (self.lock(), copy.lock());
            (state.dirs, state.inodes, state.next_inode) = (own.dirs.clone(), own.inodes.clone(), own.next_inode);
        }
        copy
    }

    /// The power goes: of what is not synced, any part survives. Faults end.
    pub fn crash(&self) {
        let state = &mut *self.lock();
        state.faults.clear();
        let lost: Vec<PathBuf> = state
            .dirs
            .iter()
            .filter(|(_, dir)| !dir.is_durable && state.rng.random_bool(0.5))
            .map(|(path, _)| path.clone())
            .collect();
        state.dirs.retain(|path, _| !lost.iter().any(|lost| path.starts_with(lost)));
        for dir in state.dirs.values_mut() {
            dir.is_durable = true;
            for change in std::mem::take(&mut dir.changes) {
                if state.rng.random_bool(0.5) {
                    change.apply(&mut dir.durable);
                }
            }
            dir.seen = dir.durable.clone();
        }
        for inode in state.inodes.values_mut() {
            inode.crash(&mut state.rng);
        }
    }

    /// Sets how many bytes fit.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Bytes of all named files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Makes the disk read-only, or not. What was written is written back first, as a remount does.
    pub fn set_read_only(&self, read_only: bool) {
        let state = &mut *self.lock();
        if read_only {
            state.inodes.values_mut().for_each(Inode::sync);
        }
        state.read_only = read_only;
    }

    /// Lets the call after `after` others of its kind fail: with "no room", or as a failing device does.
    pub fn fail(&self, call: Call, after: u32, no_room: bool) {
        let state = &mut *self.lock();
        state.faults.insert(call, (after, no_room));
        state.is_faulty = true;
    }

    /// No fault is waiting any more.
    pub fn heal(&self) {
        let state = &mut *self.lock();
        state.faults.clear();
        state.is_faulty = false;
    }

    /// Whether a call may have failed since `heal`, or may now.
    pub fn is_troubled(&self) -> bool {
        let state = self.lock();
        state.is_faulty || state.read_only || state.capacity < u64::MAX
    }

    /// Calls that change something, so far: tells whether anybody wrote.
    pub fn changes(&self) -> u64 {
        self.lock().calls
    }

    /// Flips one bit on the platter.
    pub fn flip(&self, path: &Path, bit: usize) {
        let state = &mut *self.lock();
        let inode = state.inode_of(path).unwrap();
        let file = state.inodes.get_mut(&inode).unwrap();
        for content in [&mut file.seen, &mut file.durable] {
            content.page(bit / 8 / PAGE)[bit / 8 % PAGE] ^= 1 << (bit % 8);
        }
    }

    /// The whole content of a file, as a process sees it.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        self.read(path).unwrap()
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.disk.lock().inodes[&self.inode].seen.read(buffer, offset as usize))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let failed = state.change(Call::Write);
        let end = offset as usize + bytes.len();
        state.allocate(self.inode, end as u64)?;
        // A write that fails may have written a part.
        let kept = if failed.is_err() { bytes.len() / 2 } else { bytes.len() };
        if state.read_only {
            return failed;
        }
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        inode.seen.write(&bytes[..kept], offset as usize);
        if kept > 0 {
            inode.dirty.extend(offset as usize / PAGE..=(offset as usize + kept - 1) / PAGE);
        }
        failed
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.disk.lock();
        let failed = state.change(Call::Sync);
        let inode = state.inodes.get_mut(&self.inode).unwrap();
        match failed {
            Ok(()) => inode.sync(),
            Err(_) if state.read_only => {}
            Err(_) => inode.sync_badly(&mut state.rng),
        }
        failed
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.change(Call::SetLen)?;
        state.allocate(self.inode, bytes)?;
        state.inodes.get_mut(&self.inode).unwrap().seen.cut(bytes as usize);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[&self.inode].seen.bytes as u64)
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        let mut there = vec![0; bytes as usize];
        let read = self.read_at(&mut there, offset)?;
        assert!(read == there.len() && there.iter().all(|byte| *byte == 0), "{offset}: something is there already");
        self.write_at(&there, offset).map(|()| true)
    }
}

impl Disk for SimDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut state = self.lock();
        let names = state.dir(dir)?.seen.clone();
        Ok(names.into_iter().map(|(name, inode)| (name, state.inodes[&inode].seen.bytes as u64)).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.dirs.contains_key(dir) {
            return Ok(());
        }
        state.change(Call::Create)?;
        for level in dir.ancestors() {
            state.dirs.entry(level.to_path_buf()).or_default();
        }
        Ok(())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.change(Call::Create)?;
        let inode = state.new_file(path)?;
        state.allocate(inode, bytes)?;
        state.inodes.get_mut(&inode).unwrap().seen.bytes = bytes as usize;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let state = self.lock();
        let inode = state.inode_of(path)?;
        if write && state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let content = &state.inodes[&state.inode_of(path)?].seen;
        let mut bytes = vec![0; content.bytes];
        content.read(&mut bytes, 0);
        Ok(bytes)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        {
            let mut state = self.lock();
            state.change(Call::Replace)?;
            let inode = state.new_file(&temporary)?;
            state.allocate(inode, bytes.len() as u64)?;
            let file = state.inodes.get_mut(&inode).unwrap();
            file.seen.write(bytes, 0);
            file.dirty.extend(0..bytes.len().div_ceil(PAGE));
            file.sync();
        }
        self.rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change(Call::Rename)?;
        let inode = state.inode_of(from)?;
        let ((dir, from), (_, to)) = (split(from), split(to));
        state.dir(dir)?.change(Change::Rename { from, to, inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.inode_of(path)?;
        state.change(Call::Remove)?;
        let (dir, name) = split(path);
        state.dir(dir)?.change(Change::Unlink(name));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change(Call::SyncDir)?;
        let own = state.dir(dir)?;
        own.changes.clear();
        own.durable = own.seen.clone();
        for (path, child) in &mut state.dirs {
            child.is_durable |= path.parent() == Some(dir);
        }
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.saturating_sub(state.used()))
    }
}
