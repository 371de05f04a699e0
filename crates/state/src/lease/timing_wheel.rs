//! Timing wheel.
