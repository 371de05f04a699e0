//! The leader's clock for leases.
