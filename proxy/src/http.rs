//! The HTTP request path.
