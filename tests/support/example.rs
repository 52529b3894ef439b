//! The programs in `examples/` that tests run.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Where cargo has built an example: beside the tests. It is no dependency of theirs for cargo,
/// so it may be missing.
pub fn program(name: &str) -> PathBuf {
    let test = env::current_exe().expect("this program");
    let target = test.parent().and_then(Path::parent).expect("the directory of the build");
    let program = target.join("examples").join(name);
    let fix = format!("cargo build --all-features --example {name}");
    assert!(program.exists(), "{} is missing: {fix}", program.display());
    program
}
