//! Users and groups of this host, by name.
//!
//! Read from `/etc/passwd` and `/etc/group` and nowhere else: a name service would
//! make the start of the sidecar depend on the network. Numbers always work.

use std::{fs::File, io::Read};

/// Looks names of users and groups up.
pub trait Accounts {
    /// The uid of a user.
    fn user(&self, name: &str) -> Option<u32>;
    /// The gid of a group.
    fn group(&self, name: &str) -> Option<u32>;
}

/// The accounts of this host.
#[derive(Clone, Copy, Debug)]
pub struct HostAccounts;

/// No accounts: only numbers are understood. For tests and fuzzing.
#[derive(Clone, Copy, Debug)]
pub struct NoAccounts;

impl Accounts for HostAccounts {
    fn user(&self, name: &str) -> Option<u32> {
        find(&read("/etc/passwd")?, name)
    }

    fn group(&self, name: &str) -> Option<u32> {
        find(&read("/etc/group")?, name)
    }
}

impl Accounts for NoAccounts {
    fn user(&self, _name: &str) -> Option<u32> {
        None
    }

    fn group(&self, _name: &str) -> Option<u32> {
        None
    }
}

/// Both files have the name first and the number third.
fn find(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn read(path: &str) -> Option<String> {
    const MAX: u64 = 4 * 1024 * 1024;
    let mut text = String::new();
    File::open(path).ok()?.take(MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whole() {
        let file = "root:x:0:0:root:/root:/bin/sh\ndata\nbase:x:nine:\ndatabase:x:42:\n";
        assert_eq!(find(file, "root"), Some(0));
        assert_eq!(find(file, "database"), Some(42));
        for absent in ["data", "base", "roo", "", "x"] {
            assert_eq!(find(file, absent), None, "{absent:?}");
        }
    }

    #[test]
    fn this_host_has_a_root() {
        assert_eq!(HostAccounts.user("root"), Some(0));
    }
}
