//! gRPC between the processes of the control plane and their followers: mTLS channels, and servers that refuse every
//! RPC which does not stand in their authorization table.

mod authorization;
mod channel;
mod ending;
mod recorder;
mod server;

pub use authorization::{Rpc, Who, methods, uncovered};
pub(crate) use channel::channel_with;
pub use channel::{channel, channel_to_any};
pub use recorder::{Recorded, Recorder, Subject};
pub use server::Server;
