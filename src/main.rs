//! The `secretfs` command; everything is in the library.

fn main() -> std::process::ExitCode {
    secretfs::cli::main()
}
