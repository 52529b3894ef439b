//! What a process that holds secrets asks of the kernel for itself as a whole.
//!
//! It knows nothing of where the secrets are.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Turns core dumps off, and with them the reading of this process's memory by others of
/// the same user. Root can read it still. To be called before there are secrets.
///
/// Both, because either alone has a hole: a core dump that is piped to a program is not
/// bound by the limit, and an exec makes a process dumpable again.
pub fn harden() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn the_kernel_says_so_too() {
        harden().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        assert_eq!(getrlimit(Resource::Core), none);
        // What is off already can be turned off again.
        harden().unwrap();
    }
}
