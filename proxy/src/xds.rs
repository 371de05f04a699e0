//! The delta ADS client.
