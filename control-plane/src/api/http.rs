//! The HTTP port: one router, with JSON answers for what it does not know.
