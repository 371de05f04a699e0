//! Failures made on purpose.

use std::time::Duration;

use http::StatusCode;
use weft_xds_proto::resource::route as ir;

/// See [`ir::Fault`].
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Duration, ir::Fraction)>,
    abort: Option<(Aborted, ir::Fraction)>,
}

/// The answer of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aborted {
    /// With this status.
    Http(StatusCode),
    /// 200 with this `grpc-status`.
    Grpc(u32),
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drawn {
    /// It waits.
    pub delay: Option<Duration>,
    /// It is answered.
    pub abort: Option<Aborted>,
}

impl Fault {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If the status is none after all.
    pub fn new(f: &ir::Fault) -> Result<Self, String> {
        let abort = match f.abort {
            None => None,
            Some((ir::Abort::Grpc(status), share)) => Some((Aborted::Grpc(status), share)),
            Some((ir::Abort::Http(status), share)) => {
                Some((Aborted::Http(StatusCode::from_u16(status).map_err(|e| e.to_string())?), share))
            }
        };
        Ok(Self { delay: f.delay, abort })
    }

    /// Draws for one request; the two independently of each other.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> Drawn {
        Drawn {
            delay: self.delay.filter(|(_, share)| is_among(*share, rng)).map(|(delay, _)| delay),
            abort: self.abort.filter(|(_, share)| is_among(*share, rng)).map(|(abort, _)| abort),
        }
    }
}

/// Whether one request is among a share of them.
pub fn is_among(share: ir::Fraction, rng: &mut fastrand::Rng) -> bool {
    rng.u32(0..ir::Fraction::ALL.millionths()) < share.millionths()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_faults_is_what_was_asked_for() {
        let share = ir::Fraction::new(1, 4).unwrap();
        let fault = Fault::new(&ir::Fault {
            delay: Some((Duration::from_secs(1), ir::Fraction::ALL)),
            abort: Some((ir::Abort::Http(503), share)),
        })
        .unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let drawn: Vec<_> = (0..10_000).map(|_| fault.draw(&mut rng)).collect();
        assert!(drawn.iter().all(|d| d.delay.is_some()), "all are delayed");
        let aborted = drawn.iter().filter(|d| d.abort.is_some()).count();
        // Four standard deviations.
        assert!((2_327..=2_673).contains(&aborted), "{aborted} of 10000");
        let mut rng = fastrand::Rng::with_seed(1);
        assert!((0..1000).all(|_| !is_among(ir::Fraction::new(0, 1).unwrap(), &mut rng)));
    }
}
