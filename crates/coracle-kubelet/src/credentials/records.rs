//! With which credentials each image was fetched.
//!
//! An image that was fetched with a Secret is not there for Pods that could not have fetched it: they have to show to
//! the registry that they may. What was there before the node agent fetched anything, or was fetched without
//! credentials, is there for everybody.
//!
//! A pull is written down before it begins, so that an image that arrives while nobody can take note of its credentials
//! is not taken for one that was there before. [`decide`] is pure; [`Records`] keeps its files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_cri::{AuthConfig, Image};
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::keyring::{Credential, hash};

/// Directory of the records of images that were fetched.
const PULLED: &str = "pulled";
/// Directory of the records of pulls.
const PULLING: &str = "pulling";
/// Proofs that are taken note of without a pull.
const PROOFS_MAX: usize = 100;

/// Which Secret has shown that an image may be fetched with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    namespace: String,
    name: String,
    uid: String,
    /// Of the credentials themselves.
    hash: String,
}

impl Proof {
    pub(super) fn of(secret: &Secret, auth: &AuthConfig) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let meta = &secret.metadata;
        Proof {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            hash: hash(auth),
        }
    }

    /// The same credentials, wherever they are, or the same Secret, whatever it holds now.
    fn vouches_for(&self, other: &Proof) -> bool {
        self.hash == other.hash || self.is_of_same_secret(other)
    }

    fn is_of_same_secret(&self, other: &Proof) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }
}

/// Who may use an image by the name of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Access {
    Everybody,
    /// Pods with such credentials; nobody if there are none.
    With(Vec<Proof>),
}

/// What is known of one image that the node agent has fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Record {
    image: String,
    repositories: BTreeMap<String, Access>,
}

/// A pull that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    /// The name that is fetched.
    name: String,
    /// The image that had this name before.
    before: Option<String>,
    /// How many such pulls there are.
    #[serde(skip)]
    count: usize,
}

/// Whether a Pod may use an image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// With these credentials, which from now on vouch for others.
    AllowedWith(Proof),
    /// The registry has to be asked.
    Ask,
}

fn decide(record: Option<&Record>, arriving: bool, repository: &str, credentials: &[Credential]) -> Verdict {
    let Some(record) = record else {
        return if arriving { Verdict::Ask } else { Verdict::Allowed };
    };
    let known = match record.repositories.get(repository) {
        Some(Access::Everybody) => return Verdict::Allowed,
        Some(Access::With(known)) => known,
        None => return Verdict::Ask,
    };
    let mut shown = credentials.iter().map(|credential| &credential.proof);
    match shown.find(|proof| known.iter().any(|known| known.vouches_for(proof))) {
        Some(proof) if known.contains(proof) || known.len() >= PROOFS_MAX => Verdict::Allowed,
        Some(proof) => Verdict::AllowedWith(proof.clone()),
        None => Verdict::Ask,
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By image id.
    records: BTreeMap<String, Record>,
    /// By name.
    intents: BTreeMap<String, Intent>,
}

impl Records {
    /// Reads what is on the disk. Of images that are gone nothing is kept; those that arrived in a pull of which nobody
    /// knows the end are for nobody without proof. `images` are those that are here, if that is known. Blocks.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(crate) fn open(directory: &Path, images: Option<&[Image]>) -> io::Result<Self> {
        let here = |id: &str| images.is_none_or(|images| images.iter().any(|image| image.id == id));
        let mut state = State::default();
        for entry in entries(&directory.join(PULLED))? {
            match read::<Record>(&entry) {
                Some(record) if here(&record.image) => {
                    state.records.insert(record.image.clone(), record);
                }
                _ => remove(&entry),
            }
        }
        let records = Records { directory: directory.to_owned(), state: Mutex::default() };
        for entry in entries(&directory.join(PULLING))? {
            let intent = read::<Intent>(&entry);
            if let (Some(intent), None) = (&intent, images) {
                // Until the next start it may have brought any image by its name.
                state.intents.insert(intent.name.clone(), Intent { count: 1, ..intent.clone() });
                continue;
            }
            if let (Some(intent), Some(images)) = (intent, images) {
                let named = images.iter().find(|image| has_name(image, &intent.name));
                let arrived = named.filter(|image| intent.before.as_deref() != Some(image.id.as_str()));
                if let Some(image) = arrived
                    && !state.records.contains_key(&image.id)
                {
                    let record = Record { image: image.id.clone(), ..Record::default() };
                    records.keep(&record)?;
                    state.records.insert(image.id.clone(), record);
                }
            }
            remove(&entry);
        }
        *records.lock() = state;
        Ok(records)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are replaced as a whole: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it matters with which credentials a Pod comes.
    pub(crate) fn asks_for_proof(&self, image: &Image, name: &str, repository: &str) -> bool {
        self.verdict(image, name, repository, &[]) != Verdict::Allowed
    }

    fn verdict(&self, image: &Image, name: &str, repository: &str, credentials: &[Credential]) -> Verdict {
        let state = self.lock();
        let arriving =
            state.intents.get(name).is_some_and(|intent| intent.before.as_deref() != Some(image.id.as_str()));
        decide(state.records.get(&image.id), arriving, repository, credentials)
    }

    /// Whether a Pod with these credentials may use an image that is here. May block.
    pub(crate) fn allows(
        &self,
        image: &Image,
        name: &str,
        repository: &str,
        credentials: &[Credential],
    ) -> bool {
        match self.verdict(image, name, repository, credentials) {
            Verdict::Allowed => true,
            Verdict::Ask => false,
            Verdict::AllowedWith(proof) => {
                if let Err(why) = self.note(&image.id, repository, Some(&proof)) {
                    warn!(image = image.id, error = %why, "cannot take note of credentials");
                }
                true
            }
        }
    }

    /// A pull begins. Blocks.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(crate) fn begin(&self, name: &str, before: Option<&Image>) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(intent) = state.intents.get_mut(name) {
            intent.count += 1;
            return Ok(());
        }
        let intent = Intent { name: name.to_owned(), before: before.map(|image| image.id.clone()), count: 1 };
        write(&self.file(PULLING, name), &intent, false)?;
        state.intents.insert(name.to_owned(), intent);
        Ok(())
    }

    /// A pull has ended, with this image if it succeeded; `proof` says with what. Blocks.
    ///
    /// # Errors
    /// It cannot be written down: the image is here for nobody before a pull that can.
    pub(crate) fn end(&self, name: &str, pulled: Option<(&str, &str, Option<&Proof>)>) -> io::Result<()> {
        if let Some((image, repository, proof)) = pulled {
            self.note(image, repository, proof)?;
        }
        let mut state = self.lock();
        if let Some(intent) = state.intents.get_mut(name) {
            intent.count -= 1;
            if intent.count == 0 {
                state.intents.remove(name);
                remove(&self.file(PULLING, name));
            }
        }
        Ok(())
    }

    /// An image may be used with `proof`, or by everybody.
    fn note(&self, image: &str, repository: &str, proof: Option<&Proof>) -> io::Result<()> {
        let mut state = self.lock();
        let mut record = state.records.get(image).cloned().unwrap_or_default();
        record.image = image.to_owned();
        let access = record.repositories.entry(repository.to_owned()).or_insert(Access::With(Vec::new()));
        match proof {
            None => *access = Access::Everybody,
            Some(proof) => {
                if let Access::With(known) = access {
                    // Of one Secret only what it holds now.
                    known.retain(|known| !known.is_of_same_secret(proof));
                    known.push(proof.clone());
                }
            }
        }
        if state.records.get(image) != Some(&record) {
            self.keep(&record)?;
            state.records.insert(image.to_owned(), record);
        }
        Ok(())
    }

    fn keep(&self, record: &Record) -> io::Result<()> {
        write(&self.file(PULLED, &record.image), record, true)
    }

    fn file(&self, kind: &str, name: &str) -> PathBuf {
        let digest = Sha256::digest(name);
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(kind).join(name)
    }
}

/// Whether an image has this name, as people write it or in full.
fn has_name(image: &Image, name: &str) -> bool {
    let full = crate::pod::image_name::full(name);
    image.repo_tags.iter().chain(&image.repo_digests).any(|of| of == name || Some(of) == full.as_ref())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Of a write that was cut off.
        if path.extension().is_some_and(|extension| extension == "next") {
            remove(&path);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a file says; `None` if it says nothing sensible, as one does that was being written when the machine went down.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write<T: Serialize>(path: &Path, what: &T, durable: bool) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = fs::File::create(&next)?;
    file.write_all(&serde_json::to_vec(what).map_err(io::Error::other)?)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&next, path)?;
    match path.parent().filter(|_| durable) {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn remove(path: &Path) {
    if let Err(why) = fs::remove_file(path) {
        warn!(path = %path.display(), error = %why, "cannot remove a record of an image");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: &str = "reg.org/a";
    const NAME: &str = "reg.org/a:1";

    fn proof(name: &str, uid: &str, secret: &str) -> Proof {
        Proof {
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            hash: secret.to_owned(),
        }
    }

    fn with(proof: &Proof) -> [Credential; 1] {
        [Credential { auth: AuthConfig::default(), proof: proof.clone() }]
    }

    fn image(id: &str) -> Image {
        Image { id: id.to_owned(), repo_tags: vec![NAME.to_owned()], ..Image::default() }
    }

    fn opened(directory: &tempfile::TempDir, images: &[Image]) -> Records {
        Records::open(directory.path(), Some(images)).unwrap()
    }

    #[test]
    fn what_was_here_before_is_for_everybody_and_what_was_fetched_with_a_secret_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let records = opened(&directory, &[]);
        let image = image("one");
        assert!(records.allows(&image, NAME, REPOSITORY, &[]));
        records.begin(NAME, None).unwrap();
        assert!(!records.allows(&image, NAME, REPOSITORY, &[]), "it has just arrived");
        let mine = proof("s", "1", "secret");
        records.end(NAME, Some(("one", REPOSITORY, Some(&mine)))).unwrap();
        for _ in 0..2 {
            // Also after a restart.
            let records = opened(&directory, std::slice::from_ref(&image));
            assert!(!records.allows(&image, NAME, REPOSITORY, &[]));
            assert!(!records.allows(&image, NAME, REPOSITORY, &with(&proof("s", "2", "other"))));
            assert!(!records.allows(&image, NAME, "other.org/a", &with(&mine)), "by another name");
            assert!(records.allows(&image, NAME, REPOSITORY, &with(&mine)));
            assert!(
                records.allows(&image, NAME, REPOSITORY, &with(&proof("t", "3", "secret"))),
                "a copy of it"
            );
            assert!(
                records.allows(&image, NAME, REPOSITORY, &with(&proof("s", "1", "new"))),
                "it has changed"
            );
            assert!(
                records.allows(&image, NAME, REPOSITORY, &with(&proof("u", "4", "new"))),
                "a copy of that"
            );
        }
        let records = opened(&directory, std::slice::from_ref(&image));
        records.begin(NAME, Some(&image)).unwrap();
        records.end(NAME, Some(("one", REPOSITORY, None))).unwrap();
        assert!(records.allows(&image, NAME, REPOSITORY, &[]), "the registry gives it to everybody now");
        assert!(!records.asks_for_proof(&image, NAME, REPOSITORY));
    }

    #[test]
    fn an_image_that_arrived_while_the_agent_died_is_for_nobody_without_proof() {
        let directory = tempfile::tempdir().unwrap();
        opened(&directory, &[]).begin(NAME, None).unwrap();
        let records = opened(&directory, &[image("one")]);
        assert!(!records.allows(&image("one"), NAME, REPOSITORY, &[]));
        let records = opened(&directory, &[image("one")]);
        assert!(!records.allows(&image("one"), NAME, REPOSITORY, &[]), "that is kept");
        // Nor if the runtime did not say what is here when the agent came back.
        let directory = tempfile::tempdir().unwrap();
        opened(&directory, &[]).begin(NAME, None).unwrap();
        let records = Records::open(directory.path(), None).unwrap();
        assert!(!records.allows(&image("one"), NAME, REPOSITORY, &[]));
        // One that was there before, and still is, has not arrived.
        let directory = tempfile::tempdir().unwrap();
        opened(&directory, &[]).begin(NAME, Some(&image("one"))).unwrap();
        assert!(opened(&directory, &[image("one")]).allows(&image("one"), NAME, REPOSITORY, &[]));
    }

    #[test]
    fn nothing_is_kept_of_images_that_are_gone_and_of_files_that_say_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let records = opened(&directory, &[]);
        records.end(NAME, Some(("one", REPOSITORY, Some(&proof("s", "1", "x"))))).unwrap();
        fs::write(directory.path().join(PULLED).join("x"), "{").unwrap();
        opened(&directory, &[]);
        assert_eq!(fs::read_dir(directory.path().join(PULLED)).unwrap().count(), 0);
    }

    #[test]
    fn pulls_of_one_name_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let records = opened(&directory, &[]);
        records.begin(NAME, None).unwrap();
        records.begin(NAME, None).unwrap();
        records.end(NAME, None).unwrap();
        assert!(!records.allows(&image("one"), NAME, REPOSITORY, &[]));
        records.end(NAME, None).unwrap();
        assert!(records.allows(&image("one"), NAME, REPOSITORY, &[]));
        assert_eq!(fs::read_dir(directory.path().join(PULLING)).unwrap().count(), 0);
    }
}
