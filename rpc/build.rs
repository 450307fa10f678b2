//! Compiles the protobuf definitions with a compiler in pure Rust: building needs no `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

/// Relative to the include folders; these are also the names that reflection shows.
const FILES: [&str; 5] =
    ["common.proto", "registration.proto", "bdev.proto", "host.proto", "keelson/v1/subsystem.proto"];
const INCLUDES: [&str; 2] = ["proto/mayastor", "proto"];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, INCLUDES)?;

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)?;
    Ok(())
}
