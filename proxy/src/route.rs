//! Which route a request takes, and how its path and target are made for the next hop. Pure.
//!
//! *Order:* host → virtual host ([`table`]) → path in its normal form ([`path`]) → the first route whose conditions
//! hold ([`matcher`]) → its action and policies, as values.

pub mod compiled;
pub mod host;
pub mod matcher;
pub mod path;
pub mod rewrite;
pub mod table;
