//! The key that signs the tokens of service accounts.
//!
//! It is made at the first start and kept beside the authority, so that tokens outlive the server and every server of
//! a cluster takes those of the others. A token is signed with one algorithm, ES256, and what a token says about its
//! algorithm is never believed.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{PkiError, files, write_private};

/// The file of the key in the directory of the authority, under kubeadm's name for it.
const FILE: &str = "sa.key";

/// The one algorithm of tokens, as JWTs name it.
const ALGORITHM: &str = "ES256";

/// Signs the tokens of service accounts, and knows its own signature.
pub struct AccountKey {
    pair: EcdsaKeyPair,
    id: String,
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is no key for [`AccountKey`].
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it holds no private key ({0})")]
    Form(#[from] rcgen::Error),
    #[error("it holds no key for ES256 ({0})")]
    Kind(ring::error::KeyRejected),
}

impl AccountKey {
    /// A new key that is kept nowhere: what it signs is worth nothing once it is gone.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn unkept() -> Result<Self, PkiError> {
        let issue = |source| PkiError::Issue { name: "service accounts".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        Self::of(&key).map_err(|_| issue(rcgen::Error::CouldNotParseKeyPair))
    }

    /// Loads `sa.key` from `directory`, or makes it if it does not exist.
    ///
    /// # Errors
    /// See [`PkiError`]; an existing key is never overwritten.
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        files::private_directory(directory)?;
        let path = directory.join(FILE);
        if !path.exists() {
            let issue = |source| PkiError::Issue { name: "service accounts".to_owned(), source };
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
            write_private(&path, key.serialize_pem().as_bytes())?;
        }
        let pem = files::read_private(&path)?;
        let key = KeyPair::from_pem(&pem).map_err(Unfit::from).and_then(|key| Self::of(&key));
        key.map_err(|unfit| PkiError::Damaged { path, problem: unfit.to_string() })
    }

    fn of(key: &KeyPair) -> Result<Self, Unfit> {
        let random = SystemRandom::new();
        let der = key.serialized_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random);
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        Ok(AccountKey { pair: pair.map_err(Unfit::Kind)?, id })
    }

    /// The token that says `claims`, as a JWT.
    #[must_use]
    pub(crate) fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({ "alg": ALGORITHM, "kid": self.id });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let said = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), said.as_bytes()).ok()?;
        Some(format!("{said}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// What a token says, if it is this key's.
    pub(crate) fn read(&self, token: &str) -> Result<Value, NotOurs> {
        let (said, signature) = token.rsplit_once('.').ok_or(NotOurs::Form)?;
        let (_, claims) = said.split_once('.').ok_or(NotOurs::Form)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| NotOurs::Form);
        let (claims, signature) = (decode(claims)?, decode(signature)?);
        let claims = serde_json::from_slice(&claims).map_err(|_| NotOurs::Form)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        match key.verify(said.as_bytes(), &signature) {
            Ok(()) => Ok(claims),
            Err(_) => Err(NotOurs::Signature { claims }),
        }
    }

    /// What others need to verify tokens, as a JWK set.
    #[must_use]
    pub(crate) fn public_set(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let (x, y) = self.pair.public_key().as_ref().get(1..).unwrap_or_default().split_at(32);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": text(x), "y": text(y),
        }] })
    }
}

/// Why a token says nothing to us.
#[derive(Debug, PartialEq)]
pub(crate) enum NotOurs {
    /// It is no JWT.
    Form,
    /// It is a JWT that somebody else signed, or that was changed: nothing of it can be believed.
    Signature { claims: Value },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_read_by_its_key_alone_and_only_as_it_was_signed() {
        let (key, other) = (AccountKey::unkept().unwrap(), AccountKey::unkept().unwrap());
        let claims = json!({ "sub": "me" });
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.read(&token).unwrap(), claims);
        assert_eq!(other.read(&token), Err(NotOurs::Signature { claims: claims.clone() }));

        let [header, _, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let changed = format!("{header}.{}.{signature}", part(json!({ "sub": "you" })));
        assert!(matches!(key.read(&changed), Err(NotOurs::Signature { .. })));
        // What a token says of its own algorithm is not asked.
        let unsigned = format!("{}.{}.", part(json!({ "alg": "none" })), part(claims));
        assert!(matches!(key.read(&unsigned), Err(NotOurs::Signature { .. })));
        for rubbish in ["", "a", "a.b", "a.b.c", "....", "e30.e30"] {
            assert_eq!(key.read(rubbish), Err(NotOurs::Form), "{rubbish}");
        }
    }

    #[test]
    fn a_key_is_made_once_kept_private_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("pki");
        let first = AccountKey::load_or_create(&directory).unwrap();
        let path = directory.join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = AccountKey::load_or_create(&directory).unwrap();
        assert!(again.read(&first.sign(&json!({})).unwrap()).is_ok());
        assert_eq!(again.public_set(), first.public_set());

        write_private(&path, b"rubbish").unwrap();
        let complaint = AccountKey::load_or_create(&directory).unwrap_err().to_string();
        assert!(complaint.contains("sa.key is not usable: it holds no private key"), "{complaint}");
    }

    #[test]
    fn the_published_key_verifies_a_token() {
        let key = AccountKey::unkept().unwrap();
        let token = key.sign(&json!({ "sub": "me" })).unwrap();
        let set = key.public_set();
        let member = |name: &str| URL_SAFE_NO_PAD.decode(set["keys"][0][name].as_str().unwrap()).unwrap();
        let point = [vec![4], member("x"), member("y")].concat();
        let (said, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        public.verify(said.as_bytes(), &signature).unwrap();
        let header = URL_SAFE_NO_PAD.decode(said.split_once('.').unwrap().0).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header, json!({ "alg": "ES256", "kid": set["keys"][0]["kid"] }));
    }
}
