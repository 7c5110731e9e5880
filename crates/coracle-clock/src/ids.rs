//! Identities: UIDs of objects and the random part of generated names.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Rng;

/// Characters of generated name suffixes: no vowels and no look-alikes, as upstream's.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A shared source of identities.
pub struct Ids(Mutex<Rng>);

impl Ids {
    /// Identities drawn from `rng`.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Ids(Mutex::new(rng))
    }

    /// A version 4 UUID in its usual text form, as `metadata.uid` has it.
    pub fn uid(&self) -> String {
        let mut bytes = [0u8; 16];
        self.rng().fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// The five characters that `metadata.generateName` appends.
    pub fn name_suffix(&self) -> String {
        name_suffix(&mut self.rng(), 5)
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        // A poisoned generator is still a generator: no invariant spans two draws.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

/// `length` characters of the alphabet of generated names.
pub fn name_suffix(rng: &mut Rng, length: usize) -> String {
    (0..length)
        .map(|_| {
            let index = usize::try_from(rng.below(SUFFIX_ALPHABET.len() as u64)).unwrap_or(0);
            char::from(SUFFIX_ALPHABET[index])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_four_and_repeat_with_the_seed() {
        let ids = Ids::new(Rng::seeded(3));
        let (a, b) = (ids.uid(), ids.uid());
        assert_ne!(a, b);
        assert_eq!(a.len(), 36);
        assert_eq!(&a[14..15], "4");
        assert_eq!(Ids::new(Rng::seeded(3)).uid(), a);
    }

    #[test]
    fn suffixes_use_the_safe_alphabet() {
        let suffix = Ids::new(Rng::seeded(3)).name_suffix();
        assert_eq!(suffix.len(), 5);
        assert!(suffix.bytes().all(|b| SUFFIX_ALPHABET.contains(&b)), "{suffix}");
    }
}
