//! Sets the wall clock of a sidecar, and of no other process: see `wall_clock.c`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The clock of processes that are started in its [`environment`](Self::environment).
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// One that is right. What it is made of stands in `dir`.
    pub fn new(dir: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/wall_clock.c");
        let (library, file) = (dir.join("wall_clock.so"), dir.join("wall_clock"));
        let mut compiler = Command::new("cc");
        let compiled = compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        assert!(compiled.status().expect("a C compiler, as Rust needs one").success());
        let clock = Self { library, file };
        clock.jump(0);
        clock
    }

    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        [("LD_PRELOAD", text(&self.library)), ("KEYWARD_TEST_CLOCK", text(&self.file))]
    }

    /// Has it be so many seconds ahead of the right time from here on.
    pub fn jump(&self, seconds: i64) {
        // Written over, never made anew: it is mapped.
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.file);
        let file = file.as_mut().expect("a file");
        std::io::Write::write_all(file, &seconds.to_ne_bytes()).expect("it is written");
    }
}
