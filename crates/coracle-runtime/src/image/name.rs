//! Image names: from what a user writes to the one form that the store uses.

use oci_client::{ParseError, Reference};

use super::digest::Digest;
use super::{ImageError, ImageResult};

/// A normalized name: registry, repository and either a tag or a digest. With both, the digest decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName {
    reference: Reference,
}

impl ImageName {
    /// Parses a name as Docker and Kubernetes do: `busybox` is `docker.io/library/busybox:latest`.
    pub(crate) fn parse(name: &str) -> ImageResult<ImageName> {
        let invalid = |reason: String| ImageError::InvalidName { name: name.to_owned(), reason };
        let reference = match name.parse::<Reference>() {
            Ok(reference) => reference,
            Err(ParseError::ReferenceInvalidFormat) if name.to_lowercase().parse::<Reference>().is_ok() => {
                return Err(invalid(ParseError::NameContainsUppercase.to_string()));
            }
            Err(error) => return Err(invalid(error.to_string())),
        };
        if let Some(digest) = reference.digest()
            && Digest::parse(digest).is_none()
        {
            return Err(invalid("only sha256 digests are supported".to_owned()));
        }
        let reference = match (reference.tag(), reference.digest()) {
            (Some(_), Some(digest)) => reference.clone_with_digest(digest.to_owned()),
            _ => reference,
        };
        Ok(ImageName { reference })
    }

    /// The digest, if the name has one.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.reference.digest().and_then(Digest::parse)
    }

    /// The name of the same repository's content with `digest`.
    pub(crate) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.reference.registry(), self.reference.repository())
    }

    /// What a registry client uses.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The host (and port) to talk to.
    pub(crate) fn registry(&self) -> &str {
        self.reference.resolve_registry()
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reference.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalized() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, normal) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.35", "docker.io/library/busybox:1.35".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (&format!("busybox:1@{digest}"), format!("docker.io/library/busybox@{digest}")),
        ] {
            assert_eq!(ImageName::parse(given).unwrap().to_string(), normal, "{given}");
        }
    }

    #[test]
    fn bad_names_are_refused_with_a_reason() {
        for (given, reason) in [
            ("", "repository name must have at least one component"),
            ("Busybox", "repository name must be lowercase"),
            ("a b", "invalid reference format"),
            ("busybox:", "invalid reference format"),
            ("busybox@sha256:12", "invalid reference format"),
            ("../etc", "invalid reference format"),
        ] {
            let error = ImageName::parse(given).unwrap_err().to_string();
            assert_eq!(error, format!("couldn't parse image name {given:?}: {reason}"));
        }
    }
}
