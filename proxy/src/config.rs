//! What a proxy is told at start.
