//! What an image or a container may try.

use std::os::unix::fs::symlink;

use coracle_cri::{Mount, MountPropagation};

use crate::host::{Host, output, shell};

#[tokio::test(flavor = "multi_thread")]
async fn links_of_an_image_write_nothing_on_the_host() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("resolv.conf"), "untouched").unwrap();
    for name in ["dev", "proc", "sys"] {
        symlink(&victim, host.image().join(name)).unwrap();
    }
    symlink(victim.join("resolv.conf"), host.image().join("etc/resolv.conf")).unwrap();
    symlink("../../../../../../../..", host.image().join("up")).unwrap();
    symlink("/run", host.image().join("var/run")).unwrap();
    let runtime = host.open().await;
    let volume = host.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("token"), "secret\n").unwrap();
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: volume.clone(),
        readonly: true,
        propagation: MountPropagation::Private,
    };
    let mut config = shell(
        "cat /run/secrets/x/token; cat /up/data/token; echo x > /dev/null; ls -ld /dev | head -c 1; echo",
    );
    config.mounts = vec![mount("/var/run/secrets/x"), mount("/up/data")];
    assert_eq!(output(&host, &runtime, &config).await, "secret\nsecret\nd\n");
    let left: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["resolv.conf"]);
    assert_eq!(std::fs::read_to_string(victim.join("resolv.conf")).unwrap(), "untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_the_host_cannot_be_opened() {
    let host = Host::new();
    let runtime = host.open().await;
    let text = output(
        &host,
        &runtime,
        &shell("mknod /tmp/m c 1 1 2>/dev/null; (cat /tmp/m | head -c 1) 2>&1 | head -n 1; head -c 1 /dev/zero | busybox wc -c"),
    )
    .await;
    assert!(text.contains("can't open") && text.ends_with("1\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keepers_program_cannot_be_written() {
    let host = Host::new();
    let runtime = host.open().await;
    // The shell asks to be replaced by whoever starts it; there is only itself, and its image is its own.
    let text = output(&host, &runtime, &shell("readlink /proc/1/exe; readlink /proc/self/exe")).await;
    assert_eq!(text, "/bin/busybox\n/bin/busybox\n");
}
