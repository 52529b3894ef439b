//! What the operating system knows of this process.

use std::fs;

/// Memory that is resident now, in bytes; `None` if it cannot be read.
pub(super) fn resident_bytes() -> Option<u64> {
    parse_resident(&fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_kernel_is_read() {
        let status = "Name:\tkeyward\nVmHWM:\t   30000 kB\nVmRSS:\t   18240 kB\nRssAnon:\t 1 kB\n";
        assert_eq!(parse_resident(status), Some(18_240 * 1024));
        assert_eq!(parse_resident("Name:\tkeyward\n"), None);
        assert_eq!(parse_resident("VmRSS:\t 12 MB\n"), None);
    }

    #[test]
    fn this_process_takes_some_memory() {
        assert!(resident_bytes().unwrap() > 1024 * 1024);
    }
}
