//! Trouble with disk and clock for the real binary: `shim.c`, compiled here, stands between it and its C library.
//!
//! What is to go wrong is written into a page that both share, at any time of a run.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::power;
use super::random::Random;

const INSTALL: &str = "fault tests need a C compiler: apt-get install build-essential";
/// `errno` of a device that fails, a full one, and one that can't be written.
pub const EIO: i32 = 5;
/// See `EIO`.
pub const ENOSPC: i32 = 28;
/// See `EIO`.
pub const EROFS: i32 = 30;

/// A call of the program, as `shim.c` numbers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Call {
    /// Bytes of a file.
    Write = 1,
    /// `fdatasync` or `fsync` of a file.
    Sync,
    /// By the new name.
    Rename,
    /// By the name.
    Remove,
    /// `fallocate`.
    Allocate,
    /// `fsync` of a directory.
    SyncDir,
}

/// When in a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Moment {
    /// Nothing is done yet.
    Before = 1,
    /// Half of the bytes are written.
    Half,
    /// It is done, and the program doesn't know.
    After,
}

/// One shim: for one site.
pub struct Shim {
    directory: tempfile::TempDir,
    page: File,
}

impl Shim {
    /// Without any trouble yet.
    pub fn new() -> Shim {
        // Beside the data directories: what is removed is kept by a hard link.
        let directory = tempfile::Builder::new().prefix("shim-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("control");
        let page = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        page.set_len(4096).unwrap();
        fs::create_dir(directory.path().join("undo.kept")).unwrap();
        File::create(directory.path().join("undo")).unwrap();
        Shim { directory, page }
    }

    /// Environment of a program whose files below `root` are to have trouble.
    pub fn environment(&self, root: &Path) -> Vec<(String, OsString)> {
        vec![
            ("LD_PRELOAD".into(), library().into()),
            ("SHIM_CONTROL".into(), self.directory.path().join("control").into()),
            ("SHIM_ROOT".into(), root.into()),
        ]
    }

    /// As `environment`, noting what a power cut would lose.
    pub fn recording(&self, root: &Path) -> Vec<(String, OsString)> {
        let mut environment = self.environment(root);
        environment.push(("SHIM_UNDO".into(), self.undo().into()));
        environment
    }

    /// After the program was killed: takes back what was not synced, as a power cut may, and begins new notes.
    pub fn cut_power(&self, root: &Path, random: &mut Random) -> power::Lost {
        let lost = power::cut(root, &self.undo(), random);
        let kept = self.directory.path().join("undo.kept");
        fs::remove_dir_all(&kept).unwrap();
        fs::create_dir(kept).unwrap();
        File::create(self.undo()).unwrap();
        self.page.write_all_at(&[0; 8], 112).unwrap();
        lost
    }

    fn undo(&self) -> PathBuf {
        self.directory.path().join("undo")
    }

    /// The wall clock is off by so much.
    pub fn shift_clock(&self, milliseconds: i64) {
        self.page.write_all_at(&milliseconds.to_ne_bytes(), 0).unwrap();
    }

    /// Each sync takes so much longer.
    pub fn delay_syncs(&self, milliseconds: i64) {
        self.page.write_all_at(&milliseconds.to_ne_bytes(), 8).unwrap();
    }

    /// Writes fail; 0: no longer.
    pub fn fail_writes(&self, errno: i32) {
        self.put(16, errno);
    }

    /// Syncs fail.
    pub fn fail_syncs(&self, errno: i32) {
        self.put(20, errno);
    }

    /// Names and lengths can't be changed, and with `EROFS` nothing can be opened for writing.
    pub fn fail_changes(&self, errno: i32) {
        self.put(24, errno);
    }

    /// No room can be allocated.
    pub fn fail_allocations(&self, errno: i32) {
        self.put(28, errno);
    }

    /// The program is killed in such a call on a file with `name` in its name, after so many calls that go well.
    pub fn crash_at(&self, call: Call, moment: Moment, name: &str, after: i32) {
        assert!(name.len() < 64);
        self.put(32, 0);
        self.put(36, moment as i32);
        self.put(40, after);
        let mut bytes = [0; 64];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        self.page.write_all_at(&bytes, 48).unwrap();
        self.put(32, call as i32);
    }

    /// It is no longer.
    pub fn crash_no_more(&self) {
        self.put(32, 0);
    }

    fn put(&self, offset: u64, value: i32) {
        self.page.write_all_at(&value.to_ne_bytes(), offset).unwrap();
    }
}

/// The compiled shim.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim.c");
        // A name of its own: another process may be loading an older one.
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{}.so", std::process::id()));
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).arg("-ldl");
        let output = command.output().expect(INSTALL);
        assert!(output.status.success(), "{INSTALL}; cc said: {}", String::from_utf8_lossy(&output.stderr));
        library
    })
}
