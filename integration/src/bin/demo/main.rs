//! `make demo`: the sample mesh from nothing, and what it allows and refuses. `make up`: the same mesh, left running.

mod rows;
mod sample;
mod tenants;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs the sample mesh of mesh-config/demo.
#[derive(Parser)]
#[command(after_help = "`make demo` and `make up` build what this needs first.")]
struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Copy)]
enum What {
    /// Start the mesh, make calls that must pass and calls that must be refused, print a table, stop the mesh
    Run,
    /// Start the mesh and leave it running until Ctrl-C
    Up,
}

fn main() -> ExitCode {
    match run(Flags::parse().what) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(what: What) -> anyhow::Result<ExitCode> {
    match what {
        // Whatever asks the demo to end in the middle: the mesh is dropped, and so ends with it.
        What::Run => tokio::select! {
            code = rows::run() => code,
            ended = sample::asked_to_end() => Err(anyhow::anyhow!("{}: the mesh is stopped", ended?)),
        },
        What::Up => sample::stay().await,
    }
}
