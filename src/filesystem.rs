//! What kind of file system a data directory is on, and whether a 2xx can rest on it.
//!
//! Decides by the kernel's word for the type. A type that is not known here is taken: it is a local one, as rare ones
//! are. FUSE is the exception, since anything may be behind it.

use std::io;
use std::path::Path;

/// What to think of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Made for it.
    Good,
    /// May do; what to look at.
    Doubtful(String),
    /// Not without `data_dir_unsafe`; why.
    Refused(String),
}

/// The kernel's numbers (linux/magic.h and statfs(2)).
const REFUSED: &[(u64, &str, &str)] = &[
    (0x0102_1994, "tmpfs", "is memory: everything is gone with a restart of the machine"),
    (0x8584_58f6, "ramfs", "is memory: everything is gone with a restart of the machine"),
    (0x0000_6969, "NFS", "is a network's: locks and syncs are not what one node needs them to be"),
    (0x0000_517b, "SMB", "is a network's: locks and syncs are not what one node needs them to be"),
    (0xff53_4d42, "CIFS", "is a network's: locks and syncs are not what one node needs them to be"),
    (0xfe53_4d42, "SMB2", "is a network's: locks and syncs are not what one node needs them to be"),
];
const OVERLAY: u64 = 0x794c_7630;
const FUSE: u64 = 0x6573_5546;
/// FUSE types whose syncs are known to reach a disk: virtual machines' shares, and block devices (NTFS, exFAT).
const KNOWN_FUSE: [&str; 2] = ["virtiofs", "fuseblk"];

/// Looks at the file system of a path, or of the nearest directory above it that exists.
pub fn inspect(path: &Path) -> io::Result<Verdict> {
    let absolute = std::path::absolute(path)?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let magic = rustix::fs::statfs(existing)?.f_type as u64 & 0xffff_ffff;
    let kind = if magic == FUSE { mount_type(existing) } else { None };
    Ok(judge(magic, kind.as_deref()))
}

fn judge(magic: u64, mount_type: Option<&str>) -> Verdict {
    if let Some((_, name, why)) = REFUSED.iter().find(|(refused, ..)| *refused == magic) {
        return Verdict::Refused(format!("{name} {why}"));
    }
    match magic {
        OVERLAY => Verdict::Doubtful("overlay is a container's own layer and goes with it; use a volume".to_owned()),
        FUSE => {
            let kind = mount_type.unwrap_or("fuse");
            if KNOWN_FUSE.contains(&kind) {
                return Verdict::Doubtful(format!("{kind} syncs as well as what is behind it"));
            }
            Verdict::Refused(format!("{} (FUSE) may not keep what it synced", kind.escape_debug()))
        }
        _ => Verdict::Good,
    }
}

/// The mount's type as the kernel lists it: of the mount with this device that is nearest above the path.
fn mount_type(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).ok()?.dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    type_of_device(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &device)
}

/// Lines are `36 35 98:0 /root /mount options optional - type source options`.
fn type_of_device(mounts: &str, device: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forgets_or_shares_is_refused() {
        for magic in [0x0102_1994, 0x8584_58f6, 0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42] {
            assert!(matches!(judge(magic, None), Verdict::Refused(_)), "{magic:x}");
        }
        for kind in [None, Some("fuse.sshfs"), Some("fuse.s3fs"), Some("fuse")] {
            assert!(matches!(judge(FUSE, kind), Verdict::Refused(_)), "{kind:?}");
        }
        for (magic, kind) in [(OVERLAY, None), (FUSE, Some("virtiofs")), (FUSE, Some("fuseblk"))] {
            assert!(matches!(judge(magic, kind), Verdict::Doubtful(_)), "{magic:x}");
        }
        // ext4, XFS, Btrfs, ZFS, F2FS.
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x2fc1_2fc1, 0xf2f5_2010] {
            assert_eq!(judge(magic, None), Verdict::Good, "{magic:x}");
        }
    }

    #[test]
    fn the_mount_is_found_by_its_device() {
        let mounts = "25 1 254:0 / / rw - ext4 /dev/vda rw\n61 25 0:44 / /mnt/a rw shared:1 - fuse.sshfs host:/ rw\n";
        assert_eq!(type_of_device(mounts, "0:44").as_deref(), Some("fuse.sshfs"));
        assert_eq!(type_of_device(mounts, "0:45"), None);
    }

    #[test]
    fn memory_is_seen_and_what_is_missing_is_judged_by_its_parent() {
        // Every Linux has it, containers too.
        let memory = Path::new("/dev/shm/no-such-directory/below");
        assert!(matches!(inspect(memory).unwrap(), Verdict::Refused(text) if text.starts_with("tmpfs ")));
    }
}
