//! One real server in this process, on free ports and a temporary folder, driven over its sockets.

mod coordination;
mod harness;
mod lifecycle;
mod mesh;
mod registry;
