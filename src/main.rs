//! The `keyward` command. Everything is in the library.

use std::process::ExitCode;

use keyward::alloc::Wiping;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping::new();

fn main() -> ExitCode {
    keyward::cli::main()
}
