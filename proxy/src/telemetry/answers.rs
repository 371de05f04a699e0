//! Answers of one service or route: how many of each class, and how long they took.

use std::time::Duration;

use http::StatusCode;
use weft_core::metrics::{Counter, Histogram};

/// Of the status, as labels.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Their handles.
#[derive(Debug)]
pub struct Answers {
    classes: [Counter; 5],
    seconds: Histogram,
}

impl Answers {
    /// `class` finds the counter of one of [`CLASSES`].
    pub(super) fn new(class: impl FnMut(&'static str) -> Counter, seconds: Histogram) -> Self {
        Self { classes: CLASSES.map(class), seconds }
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.classes[class - 1].inc();
        self.seconds.observe(took.as_secs_f64());
    }
}
