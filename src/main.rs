//! The `secretfs` command; everything is in the library.

/// What is given back is wiped.
#[global_allocator]
static HEAP: secretfs::crypto::heap::Wiping = secretfs::crypto::heap::Wiping;

fn main() -> std::process::ExitCode {
    secretfs::cli::main()
}
