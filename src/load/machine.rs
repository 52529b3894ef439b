//! What was measured on, as far as it explains figures. The name of the host is nobody's
//! business and stays out.

use std::{fs, thread};

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What the processor calls itself; empty if it does not say.
    pub cpu: String,
    /// Threads that this process can run at once; 0 if that is not known.
    pub cores: usize,
    /// Release of the kernel; empty if it is not known.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: model(&read("/proc/cpuinfo")).unwrap_or_default(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

fn model(cpuinfo: &str) -> Option<String> {
    let names = |line: &str| line.starts_with("model name") || line.starts_with("CPU part");
    let line = cpuinfo.lines().find(|line| names(line))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t: fpu\n";
        assert_eq!(model(text).as_deref(), Some("AMD EPYC 9R14"));
        assert_eq!(model("nothing"), None);
        assert!(Machine::here().cores > 0);
    }
}
