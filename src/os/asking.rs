//! Questions that may hang, such as those to a mount whose daemon is stopped.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

/// The answer of `ask`; `None` if it does not come within `patience`. A call that hangs cannot be
/// cancelled: its thread ends with the process.
///
/// # Errors
/// When there is no thread to ask in.
pub(crate) fn answer_within<T: Send + 'static>(
    patience: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, answers) = mpsc::channel();
    let asking = std::thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || drop(sender.send(ask())))?;
    let answer = answers.recv_timeout(patience).ok();
    if answer.is_some() {
        // Join it: a fork may come next.
        let _ = asking.join();
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_hangs_is_given_up_in_time() {
        let (_sender, never) = mpsc::channel::<u8>();
        let hung = answer_within(Duration::from_millis(20), move || never.recv().is_ok());
        assert_eq!(hung.expect("a thread"), None);
        let answered = answer_within(Duration::from_secs(60), || 7);
        assert_eq!(answered.expect("a thread"), Some(7));
    }
}
