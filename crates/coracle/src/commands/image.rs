//! `coracle image`: works on the node's image directory, whether or not the cluster runs.

use std::process::ExitCode;

use anyhow::{Context, bail};
use coracle_clock::Clock;
use coracle_cri::{Image, ImageService};
use coracle_runtime::image::ImageStore;

use crate::cli::{Form, Image as Command};
use crate::cluster::Cluster;
use crate::files::private_directory;
use crate::{daemon, output};

pub(crate) fn run(cluster: &Cluster, command: Command) -> anyhow::Result<ExitCode> {
    // Images may be imported before the first start; there is nothing else to do with a cluster that is not here.
    match command {
        Command::Import { .. } => private_directory(&cluster.data)?,
        Command::Ls { .. } | Command::Rm { .. } if !cluster.exists() => bail!(cluster.unknown()),
        Command::Ls { .. } | Command::Rm { .. } => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = daemon::open_images(cluster)?;
        match command {
            Command::Import { path, image } => {
                let clock = Clock::system();
                let mut shown = usize::MAX;
                let imported = store
                    .import(&path, image.as_deref(), &mut |progress| {
                        if progress.layers_done != shown && progress.layers_total > 0 {
                            shown = progress.layers_done;
                            output::progress(
                                clock.elapsed(),
                                format_args!("layer {} of {}", progress.layers_done, progress.layers_total),
                            );
                        }
                    })
                    .with_context(|| format!("cannot import {}", path.display()))?;
                for one in imported {
                    let name = one.names.first().unwrap_or(&one.image.id);
                    output::result(format_args!("imported {name} ({})", megabytes(one.image.size)));
                }
            }
            Command::Ls { output: form } => list(&store, form.output).await?,
            Command::Rm { images } => {
                for name in images {
                    let removed = store.remove(&name).with_context(|| format!("cannot remove {name}"))?;
                    removed.untagged.iter().for_each(|name| output::result(format_args!("untagged {name}")));
                    if let Some(id) = removed.deleted {
                        output::result(format_args!("deleted {id}"));
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(store: &ImageStore, form: Form) -> anyhow::Result<()> {
    let images = store.list_images().await?;
    if form == Form::Json {
        output::result(serde_json::to_string_pretty(&images)?);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = images.iter().flat_map(rows).collect();
    output::result(output::columns(&["IMAGE", "ID", "SIZE"], &rows));
    Ok(())
}

/// A row for each name of an image; one with no name for an image that has none.
fn rows(image: &Image) -> Vec<Vec<String>> {
    let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    let row = |name: &str| vec![name.to_owned(), id.clone(), megabytes(image.size)];
    if names.is_empty() { vec![row("<none>")] } else { names.iter().map(|name| row(name)).collect() }
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}
