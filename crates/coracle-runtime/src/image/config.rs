//! Manifests and configurations of images, as far as they matter here.

use coracle_cri::ImageRunConfig;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};

use super::digest::Digest;
use super::{ImageError, ImageResult};

/// Bytes of a manifest, index or configuration. Registries take manifests of 4 MiB.
pub(crate) const DOCUMENT_MAX: u64 = 8 << 20;
/// Values in such a document. Each takes many times its text once it is parsed; a manifest has a few hundred.
const VALUES_MAX: usize = 100_000;
/// Layers of one image: what overlay can stack, with room to spare.
const LAYERS_MAX: usize = 200;

/// What a configuration says about the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParsedConfig {
    pub(crate) run: ImageRunConfig,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
}

/// Parses the configuration and checks that it is for this kind of machine.
pub(crate) fn parse_config(bytes: &[u8]) -> ImageResult<ParsedConfig> {
    let bad = |what: String| ImageError::BadArchive { what: format!("image configuration: {what}") };
    check_values(bytes, "image configuration")?;
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if *config.os() != Os::Linux || *config.architecture() != host_architecture() {
        return Err(ImageError::NoPlatform {
            name: format!("an image for {}/{}", config.os(), config.architecture()),
            platform: host_platform(),
        });
    }
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| Digest::parse(id).ok_or_else(|| bad(format!("{id:?} is not a sha256 digest"))))
        .collect::<ImageResult<Vec<_>>>()?;
    if diff_ids.len() > LAYERS_MAX {
        return Err(ImageError::Limit(format!("the image has more than {LAYERS_MAX} layers")));
    }
    let process = config.config().clone().unwrap_or_default();
    let run = ImageRunConfig {
        entrypoint: process.entrypoint().clone().unwrap_or_default(),
        cmd: process.cmd().clone().unwrap_or_default(),
        env: process.env().clone().unwrap_or_default(),
        working_dir: process.working_dir().clone().unwrap_or_default(),
        user: process.user().clone().unwrap_or_default(),
        stop_signal: process.stop_signal().clone().unwrap_or_default(),
        labels: process.labels().clone().unwrap_or_default().into_iter().collect(),
        resolved_user: None,
    };
    let (uid, username) = split_user(&run.user);
    Ok(ParsedConfig { run, diff_ids, uid, username })
}

/// `USER` as the image service reports it: a number, or else a name; the group is left out.
fn split_user(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

/// A manifest, or a list of manifests.
pub(crate) enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// Refuses a document of very many values before it is parsed.
pub(crate) fn check_values(json: &[u8], what: &str) -> ImageResult<()> {
    let (mut values, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b',' if !in_string => values += 1,
            _ => {}
        }
    }
    if values > VALUES_MAX {
        return Err(ImageError::Limit(format!("{what}: more than {VALUES_MAX} values")));
    }
    Ok(())
}

/// Parses a manifest or an index; `media_type` is what the reference to it or the server called it.
pub(crate) fn parse_document(bytes: &[u8], media_type: Option<&str>) -> ImageResult<Document> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: Option<u32>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let bad = |what: String| ImageError::BadArchive { what: format!("image manifest: {what}") };
    check_values(bytes, "image manifest")?;
    let probe: Probe = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if probe.schema_version == Some(1) {
        return Err(bad("schema version 1 is not supported".to_owned()));
    }
    let media_type = probe.media_type.as_deref().or(media_type);
    let is_index = match media_type {
        Some(name) if is_index(&MediaType::from(name)) => true,
        Some(name) if is_manifest(&MediaType::from(name)) => false,
        _ => probe.manifests.is_some(),
    };
    if is_index {
        serde_json::from_slice(bytes).map(Document::Index).map_err(|error| bad(error.to_string()))
    } else {
        serde_json::from_slice(bytes).map(Document::Manifest).map_err(|error| bad(error.to_string()))
    }
}

pub(crate) fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

pub(crate) fn is_manifest(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageManifest
        || media_type.to_string() == "application/vnd.docker.distribution.manifest.v2+json"
}

/// The content for this machine among those of an index.
pub(crate) fn select_platform<'a>(entries: &'a [Descriptor], name: &str) -> ImageResult<&'a Descriptor> {
    let usable = |d: &&Descriptor| is_index(d.media_type()) || is_manifest(d.media_type());
    let fits = |d: &&Descriptor| d.platform().as_ref().is_some_and(is_host);
    let neutral = |d: &&Descriptor| d.platform().is_none();
    entries
        .iter()
        .filter(usable)
        .find(fits)
        .or_else(|| entries.iter().filter(usable).find(neutral))
        .ok_or_else(|| ImageError::NoPlatform { name: name.to_owned(), platform: host_platform() })
}

/// Whether content marked with a platform is for this machine; content without a mark may be.
pub(crate) fn may_fit_host(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_none_or(is_host)
}

fn is_host(platform: &oci_spec::image::Platform) -> bool {
    *platform.os() == Os::Linux && *platform.architecture() == host_architecture()
}

fn host_architecture() -> Arch {
    match std::env::consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        other => Arch::Other(other.to_owned()),
    }
}

/// For messages: `linux/amd64`.
pub(crate) fn host_platform() -> String {
    format!("linux/{}", host_architecture())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_a_number_or_a_name() {
        assert_eq!(split_user(""), (None, String::new()));
        assert_eq!(split_user("65532:65532"), (Some(65532), String::new()));
        assert_eq!(split_user("nobody:nogroup"), (None, "nobody".to_owned()));
    }

    #[test]
    fn the_host_is_chosen_from_an_index() {
        let descriptor = |architecture: &str, os: &str| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
                "digest": Digest::of(architecture.as_bytes()).to_string(),
                "platform": {"architecture": architecture, "os": os},
            })
        };
        let host = host_architecture().to_string();
        let entries: Vec<Descriptor> = serde_json::from_value(serde_json::json!([
            descriptor("unknown", "unknown"),
            descriptor("s390x", "linux"),
            descriptor(&host, "windows"),
            descriptor(&host, "linux"),
        ]))
        .unwrap();
        assert_eq!(select_platform(&entries, "x").unwrap(), &entries[3]);
        let error = select_platform(&entries[..3], "x").unwrap_err().to_string();
        assert_eq!(error, format!("no image for platform linux/{host} in x"));
    }

    #[test]
    fn a_configuration_for_another_machine_is_refused() {
        let config = r#"{"architecture":"s390x","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let error = parse_config(config.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("no image for platform"), "{error}");
    }
}
