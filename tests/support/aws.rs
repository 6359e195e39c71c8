//! Vaults under keys of an AWS KMS that can be made to fail.

use std::process::Command;

use super::kms_proxy::Proxy;
use super::moto::Moto;
use super::process::{Place, Ran};

/// A place, and moto behind a proxy.
pub struct World {
    pub place: Place,
    pub proxy: Proxy,
    /// Its keys, as URIs.
    pub keys: Vec<String>,
    pub moto: Moto,
    env: Vec<(String, String)>,
}

impl World {
    /// With a vault under `keys` keys.
    pub fn with_vault(keys: usize) -> Self {
        let moto = Moto::start();
        let proxy = Proxy::before(moto.address());
        let world = Self {
            place: Place::new(),
            env: moto.env_at(&proxy.url()),
            keys: (0..keys)
                .map(|_| format!("aws-kms://{}", moto.create_key()))
                .collect(),
            proxy,
            moto,
        };
        let flags = world.keys.iter().flat_map(|key| ["--kms-key", key]);
        world
            .run("init", &flags.collect::<Vec<_>>(), "")
            .succeeded();
        world
    }

    /// The program, with what it takes to reach the KMS.
    pub fn command(&self) -> Command {
        let mut command = self.place.command();
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A command on the vault, with arguments behind its path.
    pub fn run(&self, name: &str, more: &[&str], fail_points: &str) -> Ran {
        let mut command = self.command();
        // On a machine that is busy with something else, too, a KMS that answers has answered.
        command.env("SECRETFS_KMS_TIMEOUT", "60s");
        command.env("FAILPOINTS", fail_points).arg(name);
        command.arg(self.place.vault());
        if name == "mount" {
            command.arg(self.place.point());
        }
        Ran(command.args(more).output().expect("it runs"))
    }

    /// Mounts it, and takes KMS soon to be away.
    pub fn mount_impatient(&self, fail_points: &str) -> Ran {
        self.run("mount", &["-o", "kms-timeout=1"], fail_points)
    }

    pub fn mount(&self, fail_points: &str) -> Ran {
        self.run("mount", &[], fail_points)
    }
}
