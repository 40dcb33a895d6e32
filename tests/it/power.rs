//! A power cut: takes back from a directory what a killed program had not synced.
//!
//! `shim.c` notes each change before it happens, with the bytes that were there, and each sync after it. What no sync
//! covers may be on the disk or not: of bytes, each page for itself; of names (created, renamed, removed), the first so
//! many, as a file system's own journal keeps their order.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::random::Random;

const PAGE: u64 = 4096;
const HEAD_BYTES: usize = 56;

/// What a cut took.
#[derive(Clone, Copy, Default, Debug)]
pub struct Lost {
    /// Pages that went back to what they were.
    pub pages: usize,
    /// Names that were undone.
    pub names: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bytes,
    Length,
    Synced,
    Created,
    Renamed,
    Removed,
    DirSynced,
}

struct Note {
    kind: Kind,
    path: PathBuf,
    other: PathBuf,
    inode: u64,
    offset: u64,
    length: u64,
    before: u64,
    data: Vec<u8>,
}

impl Note {
    fn is_of_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes | Kind::Length)
    }

    fn is_of_names(&self) -> bool {
        matches!(self.kind, Kind::Created | Kind::Renamed | Kind::Removed)
    }
}

/// Takes back, as the notes say.
pub fn cut(root: &Path, notes: &Path, random: &mut Random) -> Lost {
    let notes = read(&fs::read(notes).unwrap());
    let mut lost = Lost::default();
    // How much is lost differs from cut to cut: now and then all, or nothing.
    let percent = [0, 30, 60, 100][random.next() as usize % 4];
    take_back_names(&notes, percent, random, &mut lost);
    take_back_bytes(root, &notes, percent, random, &mut lost);
    lost
}

fn read(mut bytes: &[u8]) -> Vec<Note> {
    // A kill within the last note leaves a part of it. Its change was still to come, or its sync told nobody.
    std::iter::from_fn(|| next(&mut bytes)).collect()
}

fn next(bytes: &mut &[u8]) -> Option<Note> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let short = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
    let kinds = [Kind::Bytes, Kind::Length, Kind::Synced, Kind::Created, Kind::Renamed, Kind::Removed, Kind::DirSynced];
    let (path, rest) = rest.split_at_checked(short(4) as usize)?;
    let (other, rest) = rest.split_at_checked(short(8) as usize)?;
    let (data, rest) = rest.split_at_checked(long(48) as usize)?;
    *bytes = rest;
    let text = |part: &[u8]| PathBuf::from(String::from_utf8(part.to_vec()).unwrap());
    Some(Note {
        kind: kinds[short(0) as usize - 1],
        path: text(path),
        other: text(other),
        inode: long(16),
        offset: long(24),
        length: long(32),
        before: long(40),
        data: data.to_vec(),
    })
}

#[test]
fn notes_that_a_kill_cut_are_read_to_the_last_whole_one() {
    let note = |data: &[u8]| {
        let heads = [Kind::Removed as u32 + 1, 2, 1, 0].map(u32::to_ne_bytes).concat();
        let rest = [7, 0, 0, 0, data.len() as u64].map(u64::to_ne_bytes).concat();
        [&heads, &rest, &b"/a"[..], b"b", data].concat()
    };
    let (first, second) = (note(b"kept"), note(&[9; 5000]));
    let whole = [first.clone(), second].concat();
    for length in 0..=whole.len() {
        let read = read(&whole[..length]);
        let expected = usize::from(length >= first.len()) + usize::from(length == whole.len());
        assert_eq!(read.len(), expected, "of {length} bytes");
        assert!(read.first().is_none_or(|note| note.path == Path::new("/a") && note.data == b"kept"));
    }
}

/// Steps (indices of notes) up to which a file or directory is durable.
fn durable<K: std::hash::Hash + Eq>(notes: &[Note], kind: Kind, key: impl Fn(&Note) -> K) -> HashMap<K, u64> {
    let mut until = HashMap::new();
    for note in notes.iter().filter(|note| note.kind == kind) {
        until.insert(key(note), note.offset);
    }
    until
}

fn take_back_names(notes: &[Note], percent: u64, random: &mut Random, lost: &mut Lost) {
    let durable = durable(notes, Kind::DirSynced, |note| note.path.clone());
    let is_open = |(step, note): &(usize, &Note)| {
        let parent = note.path.parent().expect("files are in a directory");
        note.is_of_names() && durable.get(parent).is_none_or(|until| *step as u64 >= *until)
    };
    let open: Vec<&Note> = notes.iter().enumerate().filter(is_open).map(|(_, note)| note).collect();
    let kept = open.len() - (open.len() as u64 * percent / 100) as usize;
    let kept = if random.next().is_multiple_of(2) { kept } else { open.len() };
    for note in open[kept..].iter().rev() {
        lost.names += 1;
        let saved = String::from_utf8(note.data.clone()).unwrap();
        match note.kind {
            // Whatever it became since, it was undone before this.
            Kind::Created => drop(fs::remove_file(&note.path)),
            Kind::Removed if !saved.is_empty() => fs::rename(saved, &note.path).unwrap(),
            Kind::Renamed => {
                drop(fs::rename(&note.other, &note.path));
                if !saved.is_empty() {
                    fs::rename(saved, &note.other).unwrap();
                }
            }
            _ => {}
        }
    }
}

fn take_back_bytes(root: &Path, notes: &[Note], percent: u64, random: &mut Random, lost: &mut Lost) {
    let mut files = HashMap::new();
    find(root, &mut files);
    let durable = durable(notes, Kind::Synced, |note| note.inode);
    let mut kept: HashSet<(u64, u64)> = HashSet::new();
    for (step, note) in notes.iter().enumerate().rev().filter(|(_, note)| note.is_of_bytes()) {
        let is_durable = durable.get(&note.inode).is_some_and(|until| (step as u64) < *until);
        let (Some(path), false) = (files.get(&note.inode), is_durable) else { continue };
        let file = OpenOptions::new().write(true).open(path).unwrap();
        if note.kind == Kind::Length {
            // A length is kept with all that follows it or not at all.
            if random.next() % 100 < percent && !kept.iter().any(|(inode, _)| *inode == note.inode) {
                file.set_len(note.before).unwrap();
                file.write_all_at(&note.data, note.offset).unwrap();
                lost.pages += 1;
            } else {
                kept.insert((note.inode, u64::MAX));
            }
            continue;
        }
        let (mut at, end) = (note.offset, note.offset + note.length);
        while at < end {
            let (page, next) = (at / PAGE, ((at / PAGE + 1) * PAGE).min(end));
            // The newest content of a page that is on the disk is there with all that was older.
            if kept.contains(&(note.inode, page)) || random.next() % 100 >= percent {
                kept.insert((note.inode, page));
            } else {
                let old = |byte: u64| note.data.get((byte - note.offset) as usize).copied().unwrap_or(0);
                let old: Vec<u8> = (at..next).map(old).collect();
                file.write_all_at(&old, at).unwrap();
                lost.pages += 1;
            }
            at = next;
        }
        if !kept.iter().any(|(inode, _)| *inode == note.inode) && file.metadata().unwrap().len() > note.before {
            file.set_len(note.before).unwrap();
        }
    }
}

fn find(directory: &Path, files: &mut HashMap<u64, PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            find(&entry.path(), files);
        } else {
            files.insert(metadata.ino(), entry.path());
        }
    }
}
