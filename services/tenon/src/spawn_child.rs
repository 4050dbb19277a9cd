//! `tenon spawn-child`: becomes another program that ends when its parent does.
//!
//! The kernel sends the signal when the parent's *thread* that started this process ends, so a supervisor starts its
//! children from its main thread. The setting survives `exec`, so the program needs to know nothing of it.

use std::{convert::Infallible, os::unix::process::CommandExt as _};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::{
    cli::{DeathSignal, SpawnChild},
    failure::Failure,
};

/// Becomes the program. Returns only when that failed.
///
/// # Errors
/// The parent is gone already, or the program cannot be run.
pub fn exec(args: &SpawnChild) -> Result<Infallible, Failure> {
    let signal = match args.signal {
        DeathSignal::Term => Signal::TERM,
        DeathSignal::Kill => Signal::KILL,
    };
    set_parent_process_death_signal(Some(signal))
        .map_err(|error| Failure::new(format!("cannot tie this process to its parent: {error}")))?;
    // The parent may have died between its fork and the line above; then no signal will ever come.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if u32::try_from(parent) != Ok(args.parent) {
        return Err(Failure::new(format!("process {} is not the parent of this one (any more)", args.parent)));
    }
    let Some((program, arguments)) = args.program.split_first() else {
        return Err(Failure::usage("no program given").next("write it after `--`"));
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(Failure::new(format!("cannot run {}: {error}", program.to_string_lossy())))
}
