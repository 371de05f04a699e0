//! What happens to a packet between two hosts: a plain value with a seeded source of randomness.

use std::time::Duration;

/// One direction between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Of 1000 packets so many are lost.
    pub lost_permille: u32,
    /// Of 1000 packets so many come twice.
    pub repeated_permille: u32,
    /// Every packet takes this long.
    pub delay: Duration,
    /// And up to so much more, each for itself, so that they overtake each other.
    pub jitter: Duration,
}

/// All links between hosts numbered from 0.
#[derive(Debug)]
pub struct Fabric {
    links: Vec<Vec<Link>>,
    rng: fastrand::Rng,
}

impl Fabric {
    /// Perfect links between `hosts` hosts.
    pub fn new(hosts: usize, seed: u64) -> Self {
        Self { links: vec![vec![Link::default(); hosts]; hosts], rng: fastrand::Rng::with_seed(seed) }
    }

    /// All links are perfect again.
    pub fn heal(&mut self) {
        self.links.iter_mut().flatten().for_each(|link| *link = Link::default());
    }

    /// Changes one direction.
    pub fn change(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.links[from][to]);
    }

    /// Changes every direction.
    pub fn change_all(&mut self, change: impl FnMut(&mut Link)) {
        self.links.iter_mut().flatten().for_each(change);
    }

    /// Cuts both directions between two hosts.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.links[a][b].cut = true;
        self.links[b][a].cut = true;
    }

    /// When copies of a packet arrive, counted from now: none if it is lost, two if it comes twice.
    pub fn arrivals(&mut self, from: usize, to: usize) -> Arrivals {
        let link = self.links[from][to];
        if link.cut || self.hits(link.lost_permille) {
            return Arrivals { first: None, second: None };
        }
        let first = Some(self.delay(&link));
        let second = self.hits(link.repeated_permille).then(|| self.delay(&link));
        Arrivals { first, second }
    }

    fn hits(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.u32(0..1000) < permille
    }

    fn delay(&mut self, link: &Link) -> Duration {
        link.delay + link.jitter.mul_f64(self.rng.f64())
    }
}

/// See [`Fabric::arrivals`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Arrivals {
    pub first: Option<Duration>,
    pub second: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_link_brings_every_packet_once_and_at_once() {
        let mut fabric = Fabric::new(2, 1);
        assert_eq!(fabric.arrivals(0, 1), Arrivals { first: Some(Duration::ZERO), second: None });
    }

    #[test]
    fn a_link_that_is_cut_one_way_brings_nothing_that_way_and_all_the_other_way() {
        let mut fabric = Fabric::new(2, 1);
        fabric.change(0, 1, |link| link.cut = true);
        assert_eq!((fabric.arrivals(0, 1).first, fabric.arrivals(1, 0).first), (None, Some(Duration::ZERO)));
        fabric.heal();
        assert_eq!(fabric.arrivals(0, 1).first, Some(Duration::ZERO));
    }

    #[test]
    fn losses_repetitions_and_delays_are_about_as_many_as_asked_for() {
        let mut fabric = Fabric::new(2, 1);
        let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(5));
        fabric.change_all(|link| {
            *link = Link { lost_permille: 200, repeated_permille: 100, delay, jitter, cut: false }
        });
        let all: Vec<_> = (0..10_000).map(|_| fabric.arrivals(0, 1)).collect();
        let lost = all.iter().filter(|one| one.first.is_none()).count();
        let repeated = all.iter().filter(|one| one.second.is_some()).count();
        assert!(
            (1800..2200).contains(&lost) && (700..900).contains(&repeated),
            "{lost} lost, {repeated} repeated"
        );
        assert!(all.iter().flat_map(|one| one.first).all(|after| after >= delay && after < delay + jitter));
    }
}
