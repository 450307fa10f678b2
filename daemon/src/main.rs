//! The binary `keelson`. Everything is in the library: see [`keelson::cli`].

fn main() -> std::process::ExitCode {
    keelson::cli::main()
}
