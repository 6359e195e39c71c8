//! What those who write a file are told of it, and what is stored.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use super::{
    OLD, content, edit, file, mounted, pattern, ran, replace, script, size, told,
    unmounted_and_clean,
};
use crate::support::map::Map;
use crate::support::process::system;

/// Each writes `new` over 31 bytes, looks where the end is in the way of its language, and writes
/// `END` there.
#[test]
fn what_a_program_writes_at_the_end_that_it_was_told_is_what_is_stored() {
    let place = mounted(&[]);
    let c = script(
        &place,
        "end.c",
        "#include <stdio.h>
int main(int n, char **a) {
    FILE *f = fopen(a[1], \"w+\");
    if (!f || fputs(\"new\", f) < 0 || fseek(f, 0, SEEK_END) || fputs(\"END\", f) < 0) return 1;
    return fclose(f) != 0;
}
",
    );
    let binary = place.path().join("end");
    ran(Command::new("cc").arg("-o").arg(&binary).arg(c));
    let java = script(
        &place,
        "End.java",
        "import java.io.*;
import java.nio.*;
public class End {
    public static void main(String[] a) throws Exception {
        try (RandomAccessFile f = new RandomAccessFile(a[0], \"rw\")) {
            f.setLength(0);
            var c = f.getChannel();
            c.write(ByteBuffer.wrap(\"new\".getBytes()));
            c.position(c.size());
            c.write(ByteBuffer.wrap(\"END\".getBytes()));
        }
    }
}
",
    );
    let lua = "local f = assert(io.open(arg[1], 'w+')); f:write('new'); f:seek('end'); \
        f:write('END'); assert(f:close())";
    let lua = script(&place, "end.lua", lua);
    let node = "const fs = require('fs'); const f = fs.openSync(process.argv[1], 'w+');
        fs.writeSync(f, 'new'); fs.writeSync(f, 'END', fs.fstatSync(f).size); fs.closeSync(f);";
    let python = "import os, sys
with open(sys.argv[1], 'wb+', buffering=0) as f:
    f.write(b'new')
    assert os.fstat(f.fileno()).st_size == 3
    f.seek(0, os.SEEK_END)
    f.write(b'END')
";
    let php = "$f = fopen($argv[1], 'w+'); fwrite($f, 'new'); fseek($f, fstat($f)['size']); \
        fseek($f, 0, SEEK_END); fwrite($f, 'END'); fclose($f);";
    let ruby = "File.open(ARGV[0], 'w+') { |f| f.write('new'); f.flush; \
        f.seek(f.size); f.seek(0, IO::SEEK_END); f.write('END') }";
    let bash = "exec 3<>\"$0\"; : > \"$0\"; printf new > \"$0\"; printf END >> \"$0\"";
    let programs: [(&str, Vec<&std::ffi::OsStr>); 8] = [
        (binary.to_str().expect("UTF-8"), vec![]),
        ("java", vec![java.as_os_str()]),
        ("lua5.4", vec![lua.as_os_str()]),
        ("node", vec!["-e".as_ref(), node.as_ref()]),
        ("python3", vec!["-c".as_ref(), python.as_ref()]),
        ("php", vec!["-r".as_ref(), php.as_ref(), "--".as_ref()]),
        ("ruby", vec!["-e".as_ref(), ruby.as_ref()]),
        ("bash", vec!["-c".as_ref(), bash.as_ref()]),
    ];
    for (program, args) in programs {
        let path = file(&place, OLD);
        ran(Command::new(program).args(args).arg(&path));
        let stored = content(&path);
        assert_eq!(String::from_utf8_lossy(&stored), "newEND", "{program}");
        assert_eq!(size(&path), 6, "{program}");
    }
    unmounted_and_clean(&place);
}

#[test]
fn who_writes_is_told_of_his_draft_and_everybody_else_of_what_is_published() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let outsider = || {
        let mut stat = Command::new("stat");
        ran(stat.args(["-c", "%s"]).arg(&path)).trim().to_owned()
    };
    let mut writer = replace(&path);
    assert_eq!((told(&writer), outsider()), (0, "31".into()));
    writer.write_all(b"new").expect("written");
    assert_eq!((told(&writer), outsider()), (3, "31".into()));
    // The kernel's own idea of the end is that of the writer.
    assert_eq!(writer.seek(SeekFrom::End(0)).expect("sought"), 3);
    writer.set_len(2000).expect("extended");
    assert_eq!((told(&writer), outsider()), (2000, "31".into()));
    assert_eq!(writer.seek(SeekFrom::End(-1)).expect("sought"), 1999);
    drop(writer);
    assert_eq!((size(&path), outsider()), (2000, "2000".into()));
    // In place, too.
    let editor = edit(&path);
    editor.write_all_at(b"end", 3000).expect("written");
    assert_eq!((told(&editor), outsider()), (3003, "2000".into()));
    editor.set_len(1).expect("cut");
    assert_eq!((told(&editor), outsider()), (1, "2000".into()));
    drop(editor);
    assert_eq!(outsider(), "1");
    unmounted_and_clean(&place);
}

#[test]
fn a_child_that_writes_through_the_descriptor_of_another_is_told_of_the_draft() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let script = "import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC)
os.write(fd, b'by the opener')
if os.fork() == 0:
    os.write(fd, b', and the child')
    assert os.fstat(fd).st_size == 28, os.fstat(fd).st_size
    os.pwrite(fd, b'!', os.fstat(fd).st_size)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
os.close(fd)
";
    ran(Command::new("python3").args(["-c", script]).arg(&path));
    assert_eq!(content(&path), b"by the opener, and the child!");
    unmounted_and_clean(&place);
}

#[test]
fn times_move_with_the_publication_for_others_and_at_once_for_who_writes() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let times = |of: &std::fs::Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    let outsider = || {
        let mut stat = Command::new("stat");
        ran(stat.args(["-c", "%.9Y %.9Z"]).arg(&path))
    };
    for in_place in [false, true] {
        let before = outsider();
        let own = times(&std::fs::metadata(&path).expect("there"));
        let writer = if in_place {
            edit(&path)
        } else {
            replace(&path)
        };
        writer.set_len(5).expect("cut");
        let cut = times(&writer.metadata().expect("told"));
        assert!(cut > own && cut.2 >= own.2, "{in_place}: {cut:?} {own:?}");
        writer.write_all_at(b"X", 0).expect("written");
        assert!(times(&writer.metadata().expect("told")) > cut, "{in_place}");
        assert_eq!(outsider(), before, "{in_place}");
        drop(writer);
        assert_ne!(outsider(), before, "{in_place}");
    }
    unmounted_and_clean(&place);
}

/// `rsync -t` goes by length and modification time.
#[test]
fn a_copy_made_in_the_middle_of_an_edit_is_made_again_afterwards() {
    let place = mounted(&[]);
    let path = file(&place, b"0123456789");
    // rsync counts in seconds.
    let time = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    edit(&path).set_modified(time(1000)).expect("set");
    let copy = place.path().join("copy");
    let rsync = || {
        system(
            "rsync",
            &["-t".as_ref(), path.as_os_str(), copy.as_os_str()],
        );
        content(&copy)
    };
    for (by_time, expected) in [(false, b"X123456789"), (true, b"Y123456789")] {
        let editor = edit(&path);
        editor.write_all_at(&expected[..1], 0).expect("written");
        if by_time {
            editor.set_modified(time(2000)).expect("set");
        }
        assert_ne!(rsync(), expected);
        drop(editor);
        assert_eq!(rsync(), expected);
    }
    unmounted_and_clean(&place);
}

/// By appending from a buffer that is a mapping itself, of the file that is read.
#[test]
fn the_size_that_a_writer_is_told_grows_with_what_it_appends() {
    let place = mounted(&[]);
    let path = file(&place, OLD);
    let source = place.point().join("source");
    std::fs::write(&source, pattern(20_000)).expect("written");
    let source = File::open(source).expect("open");
    let map = Map::private(&source, 20_000).expect("mapped");
    let mut options = OpenOptions::new();
    let writer = options.append(true).custom_flags(libc::O_TRUNC).open(&path);
    let writer = writer.expect("open");
    for count in 1..=5 {
        let wrote = nix::unistd::write(&writer, &map.bytes().expect("no SIGBUS")[..4000]);
        assert_eq!(wrote, Ok(4000));
        assert_eq!(told(&writer), 4000 * count);
    }
    drop((writer, map, source));
    assert!(content(&path) == pattern(20_000)[..4000].repeat(5));
    unmounted_and_clean(&place);
}
