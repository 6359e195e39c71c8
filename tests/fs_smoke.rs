//! The file system layer without a kernel: what is written is there after the vault was opened
//! again.

mod support;

use support::layer::Layer;

#[test]
fn what_was_published_is_there_after_reopening() {
    let layer = Layer::new();
    let fs = layer.open();
    let (ino, fh) = fs.create(1, b"password", 0o600);
    fs.write(fh, 0, b"hunter2").unwrap();
    fs.flush(fh).unwrap();
    fs.release(fh);
    fs.finish();
    let fs = layer.open();
    assert_eq!(fs.lookup(1, b"password").unwrap().ino, ino);
    assert_eq!(fs.read_all(ino).unwrap(), b"hunter2");
    fs.finish();
    let report = layer.check();
    assert_eq!(report.problem_count, 0, "{report:?}");
    assert_eq!((report.nodes, report.entries, report.versions), (3, 1, 1));
}
