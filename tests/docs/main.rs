//! What is written for users is true, and what they give that is wrong is refused in words.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod cli_usage;
mod commands;
mod format;
mod fresh;
mod house;
mod messages;
