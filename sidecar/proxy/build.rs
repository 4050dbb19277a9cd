//! How an optimized sidecar is linked for Linux, so that it takes little memory (docs/performance.md).
//!
//! The kernel maps 64 KiB of code at a time: functions that run at the start and while nothing happens lie together
//! (`link/order.ld`), those of calls behind them, and what hardly ever runs stays on disk. `TENON_PLAIN_LINK=1` leaves this
//! out: for valgrind, which finds no names in a section of another name, for linkers that know no such script, and for
//! programs that are to run where glibc is older than where they are built.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=link");
    println!("cargo:rerun-if-env-changed=TENON_PLAIN_LINK");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|it| it == value);
    let linux = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !linux || !is("PROFILE", "release") {
        return;
    }
    let argument = |argument: String| println!("cargo:rustc-link-arg-bin=tenon-sidecar={argument}");
    for object in cc::Build::new().file("link/malloc.c").compile_intermediates() {
        argument(object.display().to_string());
    }
    if is("TENON_PLAIN_LINK", "1") || env::var("HOST") != env::var("TARGET") || another_linker() {
        return;
    }
    // Addresses that the loader writes: a bit for each instead of 24 bytes. No older glibc starts such a program.
    if glibc().is_some_and(|version| version >= (2, 36)) {
        argument("-Wl,-z,pack-relative-relocs".to_owned());
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    argument(format!("-Wl,-T,{}", Path::new(&folder).join("link/order.ld").display()));
}

/// Somebody has chosen a linker, of which nobody knows what it understands.
fn another_linker() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    env::var_os("RUSTC_LINKER").is_some() || flags.contains("fuse-ld") || flags.contains("linker=")
}

/// Of the machine that builds.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
