//! Answers of the admin port.
