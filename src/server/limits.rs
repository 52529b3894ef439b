//! The limit of open files, which bounds the connections of a process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, as a server does that is
/// started with a shell's defaults. Returns what it is now; `None` for unlimited. A
/// refusal leaves it as it was.
pub fn raise_nofile_limit() -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_hard_one_afterwards() {
        assert_eq!(raise_nofile_limit(), getrlimit(Resource::Nofile).maximum);
    }
}
