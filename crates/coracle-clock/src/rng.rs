//! Seeded randomness, one stream per purpose.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore, SeedableRng};

/// A stream of random numbers from a seed.
///
/// Each purpose has a stream of its own ([`Rng::fork`]), so that one more draw in one place does not shift the
/// numbers everywhere else.
#[derive(Debug)]
pub struct Rng(StdRng);

impl Rng {
    /// The stream of `seed`.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Rng(StdRng::seed_from_u64(seed))
    }

    /// A stream seeded by the operating system. Only the wiring of a real cluster calls this.
    #[must_use]
    pub fn from_os() -> Self {
        Rng(StdRng::from_os_rng())
    }

    /// A new stream for `purpose`, derived from this one's seed material and the name.
    #[must_use]
    pub fn fork(&mut self, purpose: &str) -> Rng {
        let mut seed = [0u8; 32];
        self.0.fill_bytes(&mut seed);
        for (i, byte) in purpose.bytes().enumerate() {
            seed[i % 32] = seed[i % 32].rotate_left(3) ^ byte;
        }
        Rng(StdRng::from_seed(seed))
    }

    /// Any 64-bit number.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.random_range(0..bound) }
    }

    /// Fills `buffer` with random bytes. With [`Rng::from_os`] they are fit for secrets.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill_bytes(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream_and_purposes_differ() {
        let draw = |seed: u64, purpose: &str| Rng::seeded(seed).fork(purpose).next_u64();
        assert_eq!(draw(7, "uids"), draw(7, "uids"));
        assert_ne!(draw(7, "uids"), draw(7, "names"));
        assert_ne!(draw(7, "uids"), draw(8, "uids"));
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::seeded(1);
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| rng.below(3) < 3));
    }
}
