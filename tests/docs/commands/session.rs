//! Runs the commands of a page in one shell, in namespaces of its own: the usual places (`/root`, `/srv`,
//! `/run`, `/etc`, `/tmp`, `/var/lib`) are directories of the test, and all processes end with it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::moto::Moto;
use crate::support::process::PROGRAM;

use super::absolute;
use super::page::{Block, Mark, Page};

/// Where the commands begin.
pub const HOME: &str = "/root";

/// Begins and ends what is told of a command. It is in no output.
const TOLD: char = '\x1e';

/// Makes the places. `$PLACE` is an empty directory, and hidden at the end.
const PLACES: &str = r#"
set -e
# Vaults of other tests, which their `umount` would find to be still held from here.
umount --all --lazy --types fuse.secretfs || :
hostname web1
cd "$PLACE"
mkdir root srv run tmp lib sbin local local/bin
cp -a /etc etc
mkdir -p etc/secretfs etc/systemd/system etc/bash_completion.d run/secrets
: > local/bin/secretfs
mount --bind "$PROGRAM" local/bin/secretfs
mount --rbind local /usr/local
mount --bind sbin "$(realpath /sbin)"
mount --bind etc /etc
mount --bind lib /var/lib
mount --bind srv /srv
mount --bind run /run
mount --bind root /root
mount --bind tmp /tmp
cd /root
# Not in /sbin, where a page links it.
mkdir /run/helper
ln -s /usr/local/bin/secretfs /run/helper/mount.secretfs
set +e
exec 2>&1
"#;

/// A command, and what is to come of it.
struct Step {
    command: String,
    /// What it shows; `None` if the page does not say.
    shown: Option<Vec<String>>,
}

/// Runs a page; returns what did not come out as it says.
pub fn run(page: &Page) -> Vec<String> {
    let blocks = page.blocks.iter();
    let blocks: Vec<&Block> = blocks
        .filter(|block| block.is_run() || matches!(block.mark, Some(Mark::File(_))))
        .filter(|block| block.mark != Some(Mark::Build))
        .collect();
    let needs_kms = blocks.iter().any(|block| block.mark == Some(Mark::Kms));
    let moto = needs_kms.then(|| {
        let moto = Moto::start();
        moto.create_alias("secretfs", &moto.create_key());
        moto
    });
    let steps: Vec<Step> = blocks.into_iter().flat_map(steps).collect();
    let output = shell(&steps, moto.as_ref());
    faults(&steps, &output)
}

fn steps(block: &Block) -> Vec<Step> {
    if let Some(Mark::File(path)) = &block.mark {
        return written(&absolute(path), &block.lines.join("\n"));
    }
    let steps = block.steps().into_iter();
    steps
        .map(|(command, shown)| Step {
            command: command.to_owned(),
            shown: (!shown.is_empty()).then(|| shown.into_iter().map(str::to_owned).collect()),
        })
        .collect()
}

/// Writes a file, and checks it as what it is.
fn written(path: &Path, content: &str) -> Vec<Step> {
    let shown = path.display();
    let check = if path.starts_with("/etc/systemd/system") {
        format!("systemd-analyze verify {shown}")
    } else if path == Path::new("/etc/fstab") {
        let fields: Vec<&str> = content.split_whitespace().collect();
        let [vault, point, "secretfs", options, "0", "0"] = fields.as_slice() else {
            panic!("not a line of fstab: {content}");
        };
        format!(
            "test -e {vault} || secretfs init {vault} --local-kms-dir /run/kms > /dev/null 2>&1\n\
             /run/helper/mount.secretfs {vault} {point} -f -o {options}"
        )
    } else if path.extension().is_some_and(|e| e == "json") {
        format!("python3 -m json.tool {shown} > /dev/null")
    } else {
        "true".to_owned()
    };
    let write = format!("cat > {shown} <<'END OF FILE'\n{content}\nEND OF FILE");
    [write, check]
        .map(|command| Step {
            command,
            shown: None,
        })
        .into()
}

/// The output of all steps, each ended by its exit code.
fn shell(steps: &[Step], moto: Option<&Moto>) -> String {
    let place = tempfile::tempdir().expect("a directory");
    let mut script = PLACES.to_owned();
    for step in steps {
        script.push_str(&format!("{}\nprintf '\\036%s\\036' $?\n", step.command));
    }
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "--propagation", "private", "--uts", "--pid"])
        .args(["--fork", "--kill-child", "--mount-proc", "bash", "-c"])
        .arg(script)
        .env_clear()
        .envs(moto.map(Moto::env).unwrap_or_default())
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", HOME)
        .env("LANG", "C.UTF-8")
        .env("PLACE", place.path())
        .env("PROGRAM", PROGRAM)
        .stdin(Stdio::null());
    let ran = shell.output().expect("unshare runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        said.contains(TOLD),
        "the places cannot be made: {said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    said
}

fn faults(steps: &[Step], output: &str) -> Vec<String> {
    let mut told = output.split(TOLD);
    let mut faults = Vec::new();
    for step in steps {
        let (Some(said), Some(code)) = (told.next(), told.next()) else {
            faults.push(format!("{}: the shell has ended", step.command));
            break;
        };
        if code != "0" {
            faults.push(format!("{}\n  ends with {code}: {said}", step.command));
        } else if let Some(shown) = &step.shown
            && !agrees(shown, said)
        {
            let shown = shown.join("\n  ");
            faults.push(format!(
                "{}\n  shows\n{said}and not\n  {shown}",
                step.command
            ));
        }
    }
    faults
}

/// Whether a page shows what a command said. That `umount` had to wait depends on the machine.
fn agrees(shown: &[String], said: &str) -> bool {
    let said = said
        .lines()
        .filter(|line| !line.ends_with("; waiting for that"));
    let said: Vec<String> = said.map(masked).collect();
    let shown: Vec<String> = shown.iter().map(|line| masked(line)).collect();
    matches(&shown, &said)
}

fn matches(shown: &[String], said: &[String]) -> bool {
    match shown {
        [] => said.is_empty(),
        [any, rest @ ..] if any == "..." => {
            (0..=said.len()).any(|skipped| matches(rest, &said[skipped..]))
        }
        [line, rest @ ..] => said
            .split_first()
            .is_some_and(|(first, said)| first == line && matches(rest, said)),
    }
}

/// A line without what differs from run to run: ids, numbers, months, the width of columns. A number alone
/// stays: it is an exit code or the result of a command.
fn masked(line: &str) -> String {
    if line.trim().parse::<u64>().is_ok() {
        return line.trim().to_owned();
    }
    let words = line.split_whitespace().map(|word| {
        let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
        let is_month = word.len() == 3 && months.find(word).is_some_and(|at| at % 3 == 0);
        if is_month {
            "Month".to_owned()
        } else {
            without_numbers(word)
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_numbers(word: &str) -> String {
    let mut shown = String::new();
    for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let token = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_id = token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
        if is_id {
            shown.push_str("ID");
            shown.push_str(&part[token.len()..]);
            continue;
        }
        for c in part.chars() {
            match c.is_ascii_digit() {
                true if shown.ends_with('0') => {}
                true => shown.push('0'),
                false => shown.push(c),
            }
        }
    }
    shown
}
