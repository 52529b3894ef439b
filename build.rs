//! Compiles `proto/` without protoc: protox parses, tonic generates.

use std::{env, error::Error, fs, path::PathBuf};

/// Messages that carry a plaintext DEK. `src/wire.rs` gives each a `Debug` that
/// shows lengths only and a `Drop` that wipes; the derived `Debug` must go.
const SECRET_MESSAGES: [&str; 5] = [
    "keyward.v1.WrapRequest",
    "keyward.v1.UnwrapResponse",
    "keyward.v1.UnwrapStreamResponse",
    "keyward.v1.UnwrapStreamResponse.outcome",
    "keyward.v1.GenerateDekResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    if env::var_os("CARGO_FEATURE_CLIENT").is_none() {
        return Ok(());
    }
    let descriptors =
        protox::compile(["keyward/v1/keywrap.proto", "keyward/v1/admin.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("keyward.v1.descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut prost = tonic_prost_build::Config::new();
    prost.skip_debug(SECRET_MESSAGES);
    tonic_prost_build::configure()
        .codec_path("crate::wire::SmallCodec")
        .build_transport(false)
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        .compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
