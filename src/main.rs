//! The `keyward` command. Everything is in the library.
fn main() {}
