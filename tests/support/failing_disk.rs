//! A vault on a disk of its own: small, and made to fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Place, Ran, system, wait_for};

/// A place whose vault lies on an ext4 of its own, in a file on a tmpfs of its own.
pub struct Disk {
    pub place: Place,
}

impl Disk {
    /// With a vault, on `size` MiB.
    pub fn with_vault(size: u64) -> Self {
        let place = Place::new();
        let disk = Self { place };
        fs::create_dir(disk.below()).expect("made");
        fs::create_dir(disk.place.vault()).expect("made");
        // Room for all of it.
        let room = format!("size={}m", size + 8);
        let below = disk.below();
        run("mount", &[&"-t", &"tmpfs", &"-o", &room, &"below", &below]);
        let image = File::create(disk.image()).expect("made");
        image.set_len(size << 20).expect("sparse");
        let image = disk.image();
        run(
            "mkfs.ext4",
            &[&"-q", &"-m", &"0", &"-E", &"lazy_itable_init=0", &image],
        );
        disk.attach();
        fs::remove_dir(disk.place.vault().join("lost+found")).expect("removed");
        let vault = disk.place.vault();
        let init = ["init".as_ref(), vault.as_os_str()];
        disk.place.run(init).succeeded();
        disk
    }

    fn below(&self) -> PathBuf {
        self.place.path().join("below")
    }

    fn image(&self) -> PathBuf {
        self.below().join("image")
    }

    /// Mounts the disk.
    pub fn attach(&self) {
        let (image, vault) = (self.image(), self.place.vault());
        run("mount", &[&"-o", &"loop,errors=remount-ro", &image, &vault]);
    }

    /// Takes the disk away, which nobody uses, and repairs it as the start of a machine does.
    pub fn repair(&self) {
        run("umount", &[&self.place.vault()]);
        let repaired = Command::new("e2fsck").arg("-fy").arg(self.image()).output();
        let repaired = repaired.expect("e2fsck runs");
        // 1: errors were corrected.
        assert!(
            matches!(repaired.status.code(), Some(0 | 1)),
            "{repaired:?}"
        );
        self.attach();
    }

    /// Takes all the room there is on the disk, but for so many KiB.
    pub fn fill(&self, leave: u64) {
        fill(&self.place.vault().join("ballast"), leave << 10);
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.place.vault().join("ballast")).expect("removed");
    }

    /// From now on writes to parts of the disk that were never written to fail.
    pub fn fill_below(&self) {
        fill(&self.below().join("ballast"), 0);
    }

    /// Ends that.
    pub fn free_below(&self) {
        fs::remove_file(self.below().join("ballast")).expect("removed");
    }

    /// The disk becomes read-only at once, as after an error.
    pub fn make_read_only(&self) {
        // The remount itself is refused, for the file system is aborted by then.
        let vault = self.place.vault();
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,abort"]).arg(vault);
        remount.stderr(Stdio::null()).status().expect("mount runs");
    }

    /// Unmounts, and waits until the daemon has let go of the disk.
    pub fn umount(&self) -> Ran {
        let ran = self
            .place
            .run(["umount".as_ref(), self.place.point().as_os_str()]);
        wait_for("the daemon's end", Duration::from_secs(30), || {
            self.place.daemons().is_empty()
        });
        ran
    }

    pub fn check(&self) {
        self.place
            .run(["check".as_ref(), self.place.vault().as_os_str()])
            .succeeded();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The daemon first, which uses the disk.
        for pid in self.place.daemons() {
            super::process::kill(pid, libc::SIGKILL);
        }
        for point in [self.place.point(), self.place.vault(), self.below()] {
            let mut umount = Command::new("umount");
            umount.arg("-l").arg(point).stderr(Stdio::null());
            let _ = umount.status();
        }
    }
}

fn fill(path: &Path, leave: u64) {
    let mut ballast = File::create(path).expect("made");
    let mut length = 0;
    for size in [64 << 10, 4096, 512, 1] {
        while ballast.write_all(&vec![0xff; size]).is_ok() {
            length += size as u64;
        }
    }
    let length = ballast.metadata().map_or(length, |found| found.len());
    ballast.set_len(length.saturating_sub(leave)).expect("cut");
    let _ = ballast.sync_all();
}

fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref()).collect();
    system(program, &args);
}
