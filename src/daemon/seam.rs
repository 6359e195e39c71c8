//! PLACEHOLDER until the vault and the file system are merged: the same interfaces over an empty
//! file system, so that everything about the process can be run for real. At the merge this whole
//! file becomes `pub use crate::{fs, vault};`.
#![allow(missing_docs, clippy::missing_errors_doc, clippy::unnecessary_wraps)]

pub mod vault {
    use std::fmt;
    use std::path::{Path, PathBuf};

    use crate::kms::{KeyUri, KmsSettings};
    use serde::Serialize;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Failure {
        Failed,
        NotAVault,
        KeyDenied,
        KmsUnreachable,
        Integrity,
        Busy,
    }

    #[derive(Debug)]
    pub struct VaultError(pub Failure, pub String);

    impl VaultError {
        pub fn exit_class(&self) -> Failure {
            self.0
        }
    }

    impl fmt::Display for VaultError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.1)
        }
    }

    impl std::error::Error for VaultError {}

    #[derive(Clone, Debug)]
    pub struct InitOptions {
        pub kms_keys: Vec<KeyUri>,
        pub uid: u32,
        pub gid: u32,
        pub kms: KmsSettings,
    }

    #[derive(Debug)]
    pub struct Created {
        pub vault_id: String,
        pub kms_keys: Vec<KeyUri>,
        pub local_key_created: Option<PathBuf>,
    }

    #[derive(Clone, Debug)]
    pub struct OpenOptions {
        pub read_only: bool,
        pub accept_rollback: bool,
        pub pinned_keys: Vec<KeyUri>,
        pub pinned_vault_id: Option<String>,
        pub require_anchor: bool,
        pub unsafe_filesystem: bool,
        pub kms: KmsSettings,
        pub mountpoint: Option<PathBuf>,
    }

    const MARK: &str = "placeholder-vault";

    pub fn init(path: &Path, options: &InitOptions) -> Result<Created, VaultError> {
        let fail = |e: std::io::Error| {
            VaultError(
                Failure::Failed,
                format!("cannot create {}: {e}", path.display()),
            )
        };
        std::fs::create_dir(path).map_err(fail)?;
        std::fs::write(path.join(MARK), b"").map_err(fail)?;
        Ok(Created {
            vault_id: "placeholder".into(),
            kms_keys: options.kms_keys.clone(),
            local_key_created: None,
        })
    }

    pub struct Vault(PathBuf);

    #[derive(Serialize)]
    pub struct Summary {
        pub vault: PathBuf,
    }

    #[derive(Serialize)]
    pub struct CheckReport {
        pub problems: Vec<String>,
    }

    impl Vault {
        pub fn open(path: &Path, _: &OpenOptions) -> Result<Self, VaultError> {
            if path.join("panic").exists() {
                panic!("a-secret-in-a-panic");
            }
            if path.join("slow").exists() {
                std::thread::sleep(std::time::Duration::from_secs(8)); // For trying out interrupts.
            }
            if path.join(MARK).exists() {
                Ok(Self(path.into()))
            } else {
                Err(VaultError(
                    Failure::NotAVault,
                    format!(
                        "{} is not a vault; `secretfs init` makes one",
                        path.display()
                    ),
                ))
            }
        }

        pub fn summary(&self) -> Summary {
            Summary {
                vault: self.0.clone(),
            }
        }
    }

    pub fn check(path: &Path, options: &OpenOptions) -> Result<CheckReport, VaultError> {
        Vault::open(path, options)?;
        Ok(CheckReport {
            problems: Vec::new(),
        })
    }
}

pub mod fs {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::Protection;
    use super::vault::{Vault, VaultError};

    #[derive(Clone, Debug)]
    pub struct Settings {
        pub ttl: Duration,
        pub max_secret_size: u64,
        pub max_memory: u64,
        pub read_only: bool,
        pub threads: usize,
        pub protection: Protection,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Ending {
        Orderly,
        Aborted,
    }

    pub struct FileSystem {
        _vault: Vault,
        pub(crate) open: AtomicUsize,
        pub(crate) status: String,
    }

    impl FileSystem {
        pub fn new(vault: Vault, settings: Settings) -> Arc<Self> {
            let status = serde_json::json!({"protection": settings.protection}).to_string();
            Arc::new(Self {
                _vault: vault,
                open: AtomicUsize::new(0),
                status,
            })
        }

        pub fn attach_notifier(&self, _: fuser::Notifier) {}

        pub fn open_files(&self) -> usize {
            self.open.load(Ordering::SeqCst)
        }

        /// Publishes what has been flushed and is not published yet.
        pub fn publish_flushed(&self) -> Result<(), VaultError> {
            Ok(())
        }

        pub fn finish(&self, _: Ending) -> Result<(), VaultError> {
            Ok(())
        }
    }

    pub mod fuse {
        use std::ffi::OsStr;
        use std::sync::Arc;
        use std::sync::atomic::Ordering;
        use std::time::{Duration, UNIX_EPOCH};

        use fuser::{
            Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
            LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
            ReplyOpen, Request,
        };

        use super::FileSystem;

        const TTL: Duration = Duration::from_secs(1);

        pub struct Adapter(Arc<FileSystem>);

        impl Adapter {
            pub fn new(fs: Arc<FileSystem>) -> Self {
                Self(fs)
            }

            /// 1 the root, 2 `.secretfs`, 3 its `status`, 4 the file `probe`.
            fn attr(&self, ino: u64) -> FileAttr {
                let dir = ino <= 2;
                FileAttr {
                    ino: INodeNo(ino),
                    size: if ino == 3 {
                        self.0.status.len() as u64
                    } else {
                        0
                    },
                    blocks: 0,
                    atime: UNIX_EPOCH,
                    mtime: UNIX_EPOCH,
                    ctime: UNIX_EPOCH,
                    crtime: UNIX_EPOCH,
                    kind: if dir {
                        FileType::Directory
                    } else {
                        FileType::RegularFile
                    },
                    perm: if dir { 0o755 } else { 0o644 },
                    nlink: 1,
                    uid: nix::unistd::getuid().as_raw(),
                    gid: nix::unistd::getgid().as_raw(),
                    rdev: 0,
                    blksize: 4096,
                    flags: 0,
                }
            }
        }

        impl Filesystem for Adapter {
            fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
                let ino = match (parent.0, name.to_str()) {
                    (1, Some(".secretfs")) => 2,
                    (1, Some("probe")) => 4,
                    (2, Some("status")) => 3,
                    _ => return reply.error(Errno::ENOENT),
                };
                reply.entry(&TTL, &self.attr(ino), Generation(0));
            }

            fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
                reply.attr(&TTL, &self.attr(ino.0));
            }

            fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
                self.0.open.fetch_add(1, Ordering::SeqCst);
                reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }

            fn read(
                &self,
                _: &Request,
                ino: INodeNo,
                _: FileHandle,
                offset: u64,
                _: u32,
                _: OpenFlags,
                _: Option<LockOwner>,
                reply: ReplyData,
            ) {
                let status = self.0.status.as_bytes();
                reply.data(if ino.0 == 3 && offset == 0 {
                    status
                } else {
                    b""
                });
            }

            fn flush(
                &self,
                _: &Request,
                _: INodeNo,
                _: FileHandle,
                _: LockOwner,
                reply: ReplyEmpty,
            ) {
                reply.ok();
            }

            fn release(
                &self,
                _: &Request,
                _: INodeNo,
                _: FileHandle,
                _: OpenFlags,
                _: Option<LockOwner>,
                _: bool,
                reply: ReplyEmpty,
            ) {
                self.0.open.fetch_sub(1, Ordering::SeqCst);
                reply.ok();
            }

            fn readdir(
                &self,
                _: &Request,
                _: INodeNo,
                _: FileHandle,
                offset: u64,
                mut reply: ReplyDirectory,
            ) {
                for (at, name) in [".", "..", "probe"]
                    .into_iter()
                    .enumerate()
                    .skip(offset as usize)
                {
                    let kind = if at < 2 {
                        FileType::Directory
                    } else {
                        FileType::RegularFile
                    };
                    if reply.add(INodeNo(1), at as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
        }
    }
}
