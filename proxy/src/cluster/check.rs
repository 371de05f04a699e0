//! Active health of one endpoint: thresholds over the results of checks. Pure.

use weft_xds_proto::resource::cluster::HealthCheck;

/// What checks have shown so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum CheckStatus {
    /// None is done: what the mesh says of it counts.
    #[default]
    Unknown,
    /// In.
    Passing,
    /// Out.
    Failing,
}

/// Results in a row.
#[derive(Debug, Default, Clone)]
pub struct CheckState {
    status: CheckStatus,
    in_a_row: u32,
    last_error: Option<String>,
}

impl CheckState {
    /// As checks of another process left it.
    pub(super) fn learnt(said: Result<(), String>) -> Self {
        let status = if said.is_ok() { CheckStatus::Passing } else { CheckStatus::Failing };
        Self { status, in_a_row: 0, last_error: said.err() }
    }

    /// Where it stands.
    pub fn status(&self) -> CheckStatus {
        self.status
    }

    /// Why the last check failed; `None` after one that passed.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Counts one result. Answers whether the status changed. The first result counts at once: nothing is known
    /// that it would contradict.
    pub fn record(&mut self, result: Result<(), String>, policy: &HealthCheck) -> bool {
        let (agrees_with, threshold) = match &result {
            Ok(()) => (CheckStatus::Passing, policy.healthy_threshold),
            Err(_) => (CheckStatus::Failing, policy.unhealthy_threshold),
        };
        self.last_error = result.err();
        if self.status == agrees_with {
            self.in_a_row = 0;
            return false;
        }
        self.in_a_row += 1;
        if self.status != CheckStatus::Unknown && self.in_a_row < threshold {
            return false;
        }
        self.status = agrees_with;
        self.in_a_row = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> HealthCheck {
        HealthCheck { unhealthy_threshold: 2, healthy_threshold: 3, ..HealthCheck::default() }
    }

    fn fail() -> Result<(), String> {
        Err("refused".to_owned())
    }

    #[test]
    fn first_result_counts_at_once() {
        let mut one = CheckState::default();
        assert!(one.record(fail(), &policy()));
        assert_eq!((one.status(), one.last_error()), (CheckStatus::Failing, Some("refused")));
        let mut other = CheckState::default();
        assert!(other.record(Ok(()), &policy()));
        assert_eq!(other.status(), CheckStatus::Passing);
    }

    #[test]
    fn status_changes_after_results_in_a_row_and_not_after_mixed_ones() {
        let mut state = CheckState::default();
        state.record(Ok(()), &policy());
        assert!(!state.record(fail(), &policy()));
        assert!(!state.record(Ok(()), &policy()));
        assert!(!state.record(fail(), &policy()));
        assert!(state.record(fail(), &policy()));
        assert_eq!(state.status(), CheckStatus::Failing);
        assert!(!state.record(Ok(()), &policy()));
        assert!(!state.record(Ok(()), &policy()));
        assert!(state.record(Ok(()), &policy()));
        assert_eq!((state.status(), state.last_error()), (CheckStatus::Passing, None));
    }
}
