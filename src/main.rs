//! The `secretfs` command. Everything else is in the library.

/// Wipes every block before freeing it.
#[global_allocator]
static HEAP: secretfs::crypto::heap::Wiping = secretfs::crypto::heap::Wiping;

fn main() -> std::process::ExitCode {
    secretfs::cli::main()
}
