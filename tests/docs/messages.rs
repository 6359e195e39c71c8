//! secretfs-messages(7) explains what the program says, and nothing else.

use std::path::Path;

use super::commands;
use super::fresh::{root, sources, text};

/// The shortest piece of a message that tells it from others.
const SHORTEST: usize = 10;

fn page() -> String {
    let page = text("src/cli/man/secretfs-messages.7.in");
    words(&commands::plain(&page)).replace('`', "")
}

/// One blank between words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A literal as the program shows it, where it begins in a source.
fn literal(source: &str) -> Option<String> {
    let start = source.find('"')? + 1;
    let mut shown = String::new();
    let mut characters = source[start..].chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => return Some(words(&shown).replace('`', "")),
            // An escape stands for one character; one at the end of a line for none.
            '\\' => shown.extend(characters.next().filter(|c| *c != '\n').or(Some(' '))),
            c => shown.push(c),
        }
    }
    None
}

/// What stands between the placeholders of a message.
fn pieces(message: &str) -> Vec<String> {
    let outside = message.split('{').enumerate().map(|(place, part)| {
        let rest = part.split_once('}').map_or("", |(_, rest)| rest);
        if place == 0 { part } else { rest }
    });
    let outside = outside.map(|part| part.trim_matches([' ', ':', ';', ',', '`']).to_owned());
    outside.filter(|part| part.len() >= SHORTEST).collect()
}

/// Messages for the log that are more than what another part of the program says.
fn logged() -> Vec<(String, Vec<String>)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut found = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(&file).expect("UTF-8");
        for name in ["tracing::warn!(", "tracing::error!("] {
            let calls = source.split(name).skip(1);
            let messages = calls.filter_map(literal);
            let messages = messages.map(|message| (message.clone(), pieces(&message)));
            found.extend(messages.filter(|(_, pieces)| !pieces.is_empty()));
        }
    }
    found
}

#[test]
fn every_warning_and_error_of_the_log_is_explained() {
    let page = page();
    let logged = logged();
    assert!(
        logged.len() > 40,
        "the reader sees too little: {}",
        logged.len()
    );
    for (message, pieces) in logged {
        let is_there = pieces.iter().any(|piece| page.contains(piece.as_str()));
        assert!(is_there, "secretfs-messages(7) lacks: {message}");
    }
}

#[test]
fn every_message_that_is_explained_is_one_of_the_program() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let all: Vec<String> = files.iter().map(|path| shown(path)).collect();
    let page = text("src/cli/man/secretfs-messages.7.in");
    let lines: Vec<&str> = page.lines().collect();
    let terms = lines.windows(2).filter(|pair| pair[0] == ".TP");
    let terms: Vec<String> = terms.map(|pair| commands::plain(pair[1])).collect();
    assert!(
        terms.len() > 60,
        "the reader sees too little: {}",
        terms.len()
    );
    for term in terms {
        // Placeholders are in capitals.
        let is_placeholder = |word: &str| {
            let word = word.trim_matches(|c: char| !c.is_alphanumeric());
            !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase())
        };
        let mut pieces = vec![String::new()];
        for word in term.split_whitespace() {
            match is_placeholder(word) && word != "WAL" {
                true => pieces.push(String::new()),
                false => pieces
                    .last_mut()
                    .expect("one")
                    .push_str(&format!("{word} ")),
            }
        }
        let mut pieces = pieces
            .iter()
            .map(|piece| piece.trim_matches([' ', ':', ';', ',', '.']));
        let is_said = pieces.any(|piece| {
            piece.len() >= SHORTEST && all.iter().any(|source| source.contains(piece))
        });
        assert!(is_said, "the program does not say: {term}");
    }
}

/// A source with its literals as they are shown.
fn shown(path: &Path) -> String {
    let source = std::fs::read_to_string(path).expect("UTF-8");
    let joined = source
        .replace("\\\n", " ")
        .replace("\\\"", "\"")
        .replace('`', "");
    words(&joined)
}
