//! The numbers on `/metrics`.
