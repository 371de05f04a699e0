//! Named limits of the data path.
